"""Exercises of 11_the_report_audited: an invented report to judge, and a museum piece that says too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama3_lab.course.exercises import Exercise
from llama3_lab.paper.claims import VERDICTS
from llama3_lab.paper.evidence_tables import independent
from llama3_lab.paper.facts import numbers
from llama3_lab.records import Comparison

# 11.1: what a report on an invented paper says, what is there, and the verdict.
OKAPI: Mapping[str, tuple[str, str]] = {
    "A": ("It is trained in two stages.", "§2 describes three stages, one after the other."),
    "B": ("A larger batch was tried, and lost.", "No section mentions the size of a batch. All of them were read."),
    "C": ("Its licence is Apache-2.0.", "The paper is silent; the model card says Apache-2.0."),
    "D": ("It learns from two trillion tokens of web text.", "§3: two trillion tokens, three fifths of them web text."),
    "E": ("No model of its size is more elegant.", "§1 calls the design simple."),
    "F": ("It was trained in May.", "The paper is silent. The authors gave a talk that we have not heard."),
}
_OKAPI_VERDICTS = {"A": "wrong", "B": "not_found", "C": "confirmed_elsewhere", "D": "imprecise", "E": "opinion",
                   "F": "unverified"}  # fmt: skip
_OKAPI_HINTS = {"A": "denied", "B": "absence", "C": "card", "D": "half", "E": "taste", "F": "unread"}
INPUT, OUTPUT = -60.0, -50.0  # of 11.2: change of violations by each guard alone, in %

# 11.6: sentences that somebody might write after this notebook; those in _MAY may stand.
SENTENCES: Mapping[str, str] = {
    "a": "Our run shows that Meta's first round taught the format only.",
    "b": "In our run with seed 0, most of the gain in right answers came in round one.",
    "c": "The first share of table 5 does not follow from its count and the total.",
    "d": "The first count of table 5 is wrong.",
    "e": "A simulation has a case in which ten times mediocre data wins, so the small set does not always win.",
    "f": "A simulation has such a case, so Meta should have kept more data.",
    "g": "Section 4 prints no such ablation, so none was made.",
}
_MAY = frozenset("bce")


def a_comparison(difference: float, low: float, high: float, p: float, p_holm: float) -> Comparison:
    """Return a comparison of two stages with these figures; p_holm is p corrected for its family."""
    verdict: Any = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
    return Comparison("toy", "a", "b", "sampled", "all", difference, low, high, p, p_holm, 100, verdict)


def museum_says(c: Comparison) -> str:
    """Return what a comparison says to the claim that a is better. (A museum piece: one thing is wrong with it.)"""
    if c.low > 0 and c.p < 0.05:
        return "supports"
    return "contradicts" if c.high < 0 and c.p < 0.05 else "inconclusive"


def right_says(c: Comparison) -> str:
    """Return the same, rightly: the whole interval on one side, and a p that outlives the correction."""
    if c.p_holm >= 0.05 or c.low <= 0 <= c.high:
        return "inconclusive"
    return "supports" if c.low > 0 else "contradicts"


CASES = tuple(
    a_comparison(sign * d, min(sign * low, sign * high), max(sign * low, sign * high), p, p_holm)
    for d, low, high, p, p_holm in (
        (0.20, 0.10, 0.30, 0.001, 0.004), (0.05, -0.02, 0.12, 0.15, 0.60), (0.05, 0.01, 0.09, 0.02, 0.20),
        (0.01, -0.30, 0.32, 0.90, 1.00), (0.04, -0.001, 0.08, 0.049, 0.049), (0.04, 0.001, 0.08, 0.06, 0.30),
    ) for sign in (1, -1)
)  # fmt: skip
_WRONGLY: dict[str, Callable[[Comparison], str]] = {
    "point": lambda c: "supports" if c.difference > 0 else "contradicts",
    "corrected": museum_says,
    "interval": lambda c: "supports" if c.low > 0 else "contradicts" if c.high < 0 else "inconclusive",
    "one way": lambda c: "supports" if right_says(c) == "supports" else "inconclusive",
    "turned": lambda c: {"supports": "contradicts", "contradicts": "supports"}.get(right_says(c), "inconclusive"),
}


def _verdicts(answer: Mapping[str, str]) -> str | None:
    if set(answer) != set(OKAPI):
        return "letters"
    if any(v not in VERDICTS for v in answer.values()):
        return "words"
    return next((_OKAPI_HINTS[k] for k in OKAPI if answer[k] != _OKAPI_VERDICTS[k]), None)


def _guards(answer: float) -> str | None:
    both = independent(INPUT, OUTPUT)
    if math.isclose(answer, both, abs_tol=0.5):
        return None
    near = {"sign": -both, "sum": INPUT + OUTPUT, "all": -100.0, "best": INPUT, "caught twice": -INPUT * OUTPUT / 100,
            "let through": both + 100}  # fmt: skip
    return next((key for key, value in near.items() if math.isclose(answer, value, abs_tol=0.5)), "far")


def tables() -> list[tuple[list[int], list[float], list[int]]]:
    """Return tables as (counts, printed shares in % to one decimal, rows whose share cannot be right)."""
    counts, shares = [int(c) for c in numbers("table5.counts")], list(numbers("table5.shares"))
    return [
        (counts, shares, [0]),
        ([1, 1, 1], [33.3, 33.3, 33.3], []),
        ([5, 3, 1], [55.6, 33.7, 11.1], [1]),
        ([2, 2, 3], [28.6, 28.6, 42.9], []),
        ([700, 299, 1], [70.0, 29.9, 0.4], [2]),
    ]


def _audit(audit: Callable[..., Any]) -> str | None:
    for counts, shares, slips in tables():
        found = sorted(audit(list(counts), list(shares)))
        if found == slips:
            continue
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(counts) for i in found):
            return "indices"
        if sum(shares) and found == _slips(counts, shares, sum(shares) / 100):
            return "printed"
        return "missed" if set(found) < set(slips) else "alarm" if set(found) > set(slips) else "far"
    return None


def _slips(counts: Sequence[int], shares: Sequence[float], whole: float) -> list[int]:
    """Return the rows whose share is off, were the shares parts of `whole` times 100 %."""
    total = sum(counts)
    return [i for i, (c, s) in enumerate(zip(counts, shares, strict=True)) if abs(100 * whole * c / total - s) > 0.0501]


def _says(says: Callable[[Comparison], str]) -> str | None:
    got = [says(c) for c in CASES]
    if got == [right_says(c) for c in CASES]:
        return None
    if set(got) - {"supports", "contradicts", "inconclusive"}:
        return "words"
    return next((key for key, f in _WRONGLY.items() if got == [f(c) for c in CASES]), "far")


def _sound(test: Callable[..., Any]) -> str | None:
    def by_distance(c: Comparison) -> str:
        half = (c.high - c.low) / 2
        sure = abs((c.high + c.low) / 2) > half and c.p_holm < 0.05
        return "inconclusive" if not sure else "supports" if c.difference > 0 else "contradicts"

    if not (test(right_says) and test(by_distance)):
        return "alarm"
    if test(museum_says):
        return "missed"
    return "partly" if any(test(f) for key, f in _WRONGLY.items() if key in ("point", "turned")) else None


def _sentences(answer: Any) -> str | None:
    chosen = set(answer)
    if chosen - set(SENTENCES):
        return "letters"
    for letters, key in (("af", "meta"), ("d", "which"), ("g", "absence")):
        if chosen & set(letters):
            return key
    return next((key for letter, key in (("b", "own"), ("c", "printed"), ("e", "rule")) if letter not in chosen), None)


def _design(runs: Any) -> str | None:
    arms: dict[tuple[int, float], list[Any]] = {}
    for examples, wrong, seed in runs:
        arms.setdefault((int(examples), float(wrong)), []).append(seed)
    sizes, shares = sorted({n for n, _ in arms}), sorted({w for _, w in arms})
    if len(sizes) < 2 or len(shares) < 2 or (sizes[0], shares[0]) not in arms or (sizes[-1], shares[-1]) not in arms:
        return "arms"
    if sizes[-1] != 10 * sizes[0]:
        return "tenfold"
    if (sizes[0], shares[-1]) not in arms or (sizes[-1], shares[0]) not in arms:
        return "confounded"
    if any(len(set(seeds)) < 3 for seeds in arms.values()):
        return "seeds"
    if len({frozenset(seeds) for seeds in arms.values()}) > 1:
        return "unpaired"
    return "many" if len(runs) > 40 else None


EXERCISES = (
    Exercise(
        "11.1", "diagnose", "Six claims, six verdicts", 2, 3, 8, 1, _verdicts,
        {"letters": "Give one verdict for each of the letters A to F.",
         "words": "Use the seven verdicts as the ledger writes them, with underscores.",
         "denied": "A: the paper speaks of it, and says something else.",
         "absence": "B: nothing there denies it. What do you know after reading every section?",
         "card": "C: the claim is right, but look at where that stands.",
         "half": "D: neither simply right nor simply false.",
         "taste": "E: which measurement could decide it?",
         "unread": "F: there is a source, and you have not read it. Have you looked everywhere?"},
        "The hardest border is that between denied and absent: only who has read it all may say “not found”.",
    ),
    Exercise(
        "11.2", "predict", "Two guards that know nothing of each other", 1, 2, 3, 2, _guards,
        {"sign": "The size is right; violations go down.",
         "sum": "More than all violations cannot go away.",
         "all": "The second guard catches half of what the first lets through; the other half is still there.",
         "best": "Then the second guard would catch only what the first one catches anyway.",
         "caught twice": "That is the share that both would catch.",
         "let through": "That is the share that both let through; the question is for the change.",
         "far": "What share of the violations does each one let through? What share do both?"},
        "Table 25's pairs stay behind this in every language: real guards miss alike.",
    ),
    Exercise(
        "11.3", "implement", "A table that audits itself", 2, 3, 12, 2, _audit,
        {"indices": "Return the positions of rows, from 0.",
         "printed": "You take the printed shares for parts of their own sum. If one of them is off, so is that sum.",
         "missed": "There is a slip that you do not see. How far can rounding to one decimal move a share?",
         "alarm": "You find a slip where there is only rounding.",
         "far": "For each row, compute the share from counts alone, and compare."},
        "One wrong share moves a sum of shares, too, so a sum alone never says which row it is.",
    ),
    Exercise(
        "11.4", "implement", "What an interval lets you say", 2, 3, 8, 3, _says,
        {"words": "Return supports, contradicts or inconclusive.",
         "point": "You decide by the difference alone, however wide its interval.",
         "corrected": "You use p as it is for one comparison; here there is a family of them.",
         "interval": "The interval is not corrected for the family; p_holm is, and has to agree.",
         "one way": "You never contradict. An interval below zero says something, too.",
         "turned": "Right in size, wrong in direction.",
         "far": "Ask two things: does the interval hold zero, and is p_holm below 0.05?"},
        "“Inconclusive” is a result: it says that this experiment was too small for this effect.",
    ),
    Exercise(
        "11.5", "diagnose", "An audit that says too much", 2, 2, 10, 3, _sound,
        {"alarm": "Your test refuses a function that is right.",
         "missed": "The museum piece passes. Which field of a comparison does it never read?",
         "partly": "The museum piece fails, but so should a function that goes by the sign alone or turns it round."},
        "An uncorrected p finds something in one of twenty comparisons of nothing; this run has two dozen.",
    ),
    Exercise(
        "11.6", "diagnose", "What may be written", 2, 3, 6, 4, _sentences,
        {"letters": "Answer with letters of the list.",
         "meta": "One of them concludes from our toy to Meta's model.",
         "which": "Two printed figures disagree. Can you tell from them which one is off?",
         "absence": "One of them takes silence for an answer.",
         "own": "A result of our run may be told as one: look for the sentence that does just that.",
         "printed": "The paper's own figures are evidence about the paper's own figures.",
         "rule": "A general rule needs only one counterexample, and a made-up one will do."},
        "The subject of a sentence has to be the thing that was measured.",
    ),
    Exercise(
        "11.7", "design", "An experiment for the claim that has none", 3, 3, 12, 5, _design,
        {"arms": "The claim compares a small set with few errors and a large one with many: both have to be there.",
         "tenfold": "The claim says ten times.",
         "confounded": "Size and quality change together. Add what tells them apart: each size with each quality.",
         "seeds": "An arm with fewer than three seeds is an anecdote.",
         "unpaired": "Give every arm the same seeds, so that differences can be paired.",
         "many": "That is more than it takes; keep it at forty runs or fewer."},
        "Four arms take the answer apart: what size does, what errors do, and whether one depends on the other.",
    ),
)  # fmt: skip
