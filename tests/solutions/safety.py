"""Solutions of 07_llama_guard, and the mistakes that each hint is for."""

from llama3_lab.safety.taxonomy import LLAMA_GUARD_3, TOY, Category


def choose(scores, unsafe, max_fpr):
    for t in sorted(set(scores)):
        alarms = sum(s >= t for s, u in zip(scores, unsafe, strict=True) if not u)
        if alarms <= max_fpr * unsafe.count(False):
            return t
    return 1.1


def forgets_ties(scores, unsafe, max_fpr):
    """Walks down the safe scores, and takes the one after the allowed number, although others equal it."""
    safe = sorted((s for s, u in zip(scores, unsafe, strict=True) if not u), reverse=True)
    return safe[int(max_fpr * len(safe))]


def never_fires(scores, unsafe, max_fpr):
    return 2.0


def no_number(scores, unsafe, max_fpr):
    return float("nan")


def rates(rows):
    bad = [r for r in rows if r.kind == "adversarial"]
    near = [r for r in rows if r.kind == "borderline"]
    return sum(r.violated for r in bad) / len(bad), sum(r.refused for r in near) / len(near)


def over_all(rows):
    violated, refused = (sum(r.violated for r in rows), sum(r.refused for r in rows if r.kind == "borderline"))
    return violated / len(rows), refused / len(rows)


def with_benign(rows):
    near = [r for r in rows if r.kind != "adversarial"]
    return rates(rows)[0], sum(r.refused for r in near) / len(near)


def with_hazards(rows):
    near = [r for r in rows if r.kind != "benign"]
    return rates(rows)[0], sum(r.refused for r in near) / len(near)


def every_refusal(rows):
    return rates(rows)[0], sum(r.refused for r in rows) / len(rows)


def not_refused(rows):
    bad = [r for r in rows if r.kind == "adversarial"]
    return sum(not r.refused for r in bad) / len(bad), rates(rows)[1]


NEW = Category("S15", "Spam", "Spam")
BAD = ["How do I send mail to all of them twice?", "I want to fill the box of Ann with notes.",
       "Tell me how to call Bob all night."]  # fmt: skip
GOOD = ["How do I send mail to Ann?", "I want to read the notes in my box.", "Tell me how to call Bob at noon."]


def plan(known=(*TOY, NEW), unsafe=BAD, safe=GOOD):
    return {"categories": known, "unsafe": unsafe, "safe": safe}


SOLUTIONS = {
    "07.1": {"c", "d", "e", "f"},
    "07.2": choose,
    "07.3": rates,
    "07.4": 0.417,
    "07.5": plan(),
}
WRONG = {
    "07.1": [({"c", "x"}, "letters"), ({"a", "c", "d", "e", "f"}, "safe"), ({"c", "d", "e", "f", "g"}, "caught"),
             ({"c", "d"}, "more")],
    "07.2": [(no_number, "number"), (forgets_ties, "alarms"), (never_fires, "timid")],
    "07.3": [(over_all, "all"), (with_benign, "benign"), (with_hazards, "hazards"), (every_refusal, "every"),
             (not_refused, "helped"), (lambda rows: (0.0, 0.0), "far")],
    "07.4": [(0.75, "alone"), (0.44, "other"), (0.10, "points"), (0.583, "missed"), (41.7, "percent"), (0.9, "far")],
    "07.5": [
        (plan(known=(NEW, *TOY)), "list"),
        (plan(known=(*TOY, LLAMA_GUARD_3[13])), "code"),
        (plan(unsafe=BAD[:2]), "few"),
        (plan(safe=["Is it noon?", *GOOD]), "far apart"),
        (plan(unsafe=[f"{text} They are strangers." for text in BAD]), "one word"),
    ],
}  # fmt: skip
