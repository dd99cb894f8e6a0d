"""Solutions of 11_the_report_audited, and the mistakes that each hint is for."""

from llama3_lab.course.exercises.audit import CASES, museum_says, right_says

VERDICTS = {"A": "wrong", "B": "not_found", "C": "confirmed_elsewhere", "D": "imprecise", "E": "opinion",
            "F": "unverified"}  # fmt: skip


def but(**letters):
    return {**VERDICTS, **letters}


def audit(counts, shares, tolerance=0.0501, whole=100.0):
    return [i for i, c in enumerate(counts) if abs(whole * c / sum(counts) - shares[i]) > tolerance]


def by_printed_sum(counts, shares):
    return audit(counts, shares, whole=sum(shares))


def says(c):
    if c.p_holm < 0.05 and c.low > 0:
        return "supports"
    return "contradicts" if c.p_holm < 0.05 and c.high < 0 else "inconclusive"


def sound(function):
    return [function(c) for c in CASES] == [right_says(c) for c in CASES]


def runs(sizes=(200, 2000), shares=(0.02, 0.25), seeds=range(3)):
    return [(n, w, s) for n in sizes for w in shares for s in seeds]


TWO_ARMS = [(200, 0.02, s) for s in range(3)] + [(2000, 0.25, s) for s in range(3)]
SOLUTIONS = {
    "11.1": VERDICTS,
    "11.2": -80,
    "11.3": audit,
    "11.4": says,
    "11.5": sound,
    "11.6": {"b", "c", "e"},
    "11.7": runs(),
}
WRONG = {
    "11.1": [({"A": "wrong"}, "letters"), (but(B="not found"), "words"), (but(A="not_found"), "denied"),
             (but(B="wrong"), "absence"), (but(C="not_found"), "card"), (but(D="confirmed"), "half"),
             (but(E="unverified"), "taste"), (but(F="not_found"), "unread")],
    "11.2": [(80, "sign"), (-110, "sum"), (-100, "all"), (-60, "best"), (-30, "caught twice"), (20, "let through"),
             (-55, "far")],
    "11.3": [
        (lambda counts, shares: [i + len(counts) for i in audit(counts, shares)], "indices"),
        (by_printed_sum, "printed"),
        (lambda counts, shares: [], "missed"),
        (lambda counts, shares: audit(counts, shares, tolerance=1.0), "missed"),
        (lambda counts, shares: audit(counts, shares, tolerance=0.0), "alarm"),
        (lambda counts, shares: [1], "far"),
    ],
    "11.4": [
        (lambda c: "better", "words"),
        (lambda c: "supports" if c.difference > 0 else "contradicts", "point"),
        (museum_says, "corrected"),
        (lambda c: "supports" if c.low > 0 else "contradicts" if c.high < 0 else "inconclusive", "interval"),
        (lambda c: "supports" if says(c) == "supports" else "inconclusive", "one way"),
        (lambda c: {"supports": "contradicts", "contradicts": "supports"}.get(says(c), "inconclusive"), "turned"),
        (lambda c: "inconclusive", "far"),
    ],
    "11.5": [(lambda function: False, "alarm"), (lambda function: True, "missed"),
             (lambda function: function(CASES[4]) == "inconclusive", "partly")],
    "11.6": [({"z"}, "letters"), ({"a", "b", "c", "e"}, "meta"), ({"b", "c", "d", "e"}, "which"),
             ({"b", "c", "e", "g"}, "absence"), ({"c", "e"}, "own"), ({"b", "e"}, "printed"), ({"b", "c"}, "rule")],
    "11.7": [([(200, 0.02, 0)], "arms"), (runs(sizes=(200, 1000)), "tenfold"), (TWO_ARMS, "confounded"),
             (runs(seeds=(0,)), "seeds"), ([*runs(), (200, 0.02, 9)], "unpaired"), (runs(seeds=range(20)), "many")],
}  # fmt: skip
