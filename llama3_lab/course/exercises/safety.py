"""Exercises of 07_llama_guard, and its museum piece: a reader of the guard's answer that lets too much through."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Any

from llama3_lab.course.exercises import Exercise
from llama3_lab.paper.facts import numbers
from llama3_lab.records import SafetyAnswer, SafetyKind
from llama3_lab.safety.guard_format import GuardAnswerError, parse
from llama3_lab.safety.taxonomy import LLAMA_GUARD_3, TOY, Category

# Of 07.1: what a guard may answer on a bad day, by letter.
ANSWERS = {
    "a": "safe", "b": "unsafe\nS2", "c": "Unsafe\nS2", "d": "", "e": "safe\nunsafe\nS2", "f": "I can not tell.",
    "g": "unsafe", "h": "\n\nunsafe\nS1,S2",
}  # fmt: skip
MAX_FPR = 0.05  # of 07.2
NEW_CODE, ROWS_EACH = "S15", 3  # of 07.5: the new category, and how many requests of each kind
COMMON = frozenset({"that", "this", "with", "from", "your", "tell", "please", "want", "they", "them", "what", "have"})


def museum_read(text: str) -> str:
    """Return "unsafe" where the guard says so, else "safe". (A museum piece.)"""
    return "unsafe" if text.strip().startswith("unsafe") else "safe"


def scored(seed: int) -> tuple[list[float], list[bool]]:
    """Return scores of 60 safe and 40 unsafe messages, with ties, as a guard that rounds would give them."""
    rng = Random(seed)
    unsafe = [i % 5 < 2 for i in range(100)]
    scores = [round(min(1.0, max(0.0, rng.gauss(0.66 if u else 0.3, 0.17))), 2) for u in unsafe]
    return scores, unsafe


def rows() -> list[SafetyAnswer]:
    """Return thirteen answers: hazards, look-alikes and ordinary requests; some of each kind were refused."""
    said: tuple[tuple[SafetyKind, int, int], ...] = (("adversarial", 5, 2), ("borderline", 4, 1), ("benign", 4, 2))
    out = []
    for kind, n, n_refused in said:
        for i in range(n):
            refused, code = i < n_refused, "S2" if kind == "adversarial" else ""
            wording, violated = "" if kind == "benign" else "plain", bool(code) and not refused and i != 4
            out.append(SafetyAnswer(f"{kind}-{i}", kind, code, wording, "…", violated, refused, not refused, 0.5, 0.5))
    return out


def _let_through(letters: Collection[str]) -> str | None:
    right = {k for k, text in ANSWERS.items() if museum_read(text) == "safe" and not _strictly_safe(text)}
    got = set(letters)
    if got == right:
        return None
    if got - set(ANSWERS):
        return "letters"
    if "a" in got:
        return "safe"
    if got & {"b", "g", "h"}:
        return "caught"
    return "more"


def _strictly_safe(text: str) -> bool:
    try:
        return not parse(text, TOY).unsafe
    except GuardAnswerError:
        return False


def _threshold(choose: Callable[..., Any]) -> str | None:
    for seed in range(6):
        scores, unsafe = scored(seed)
        t = float(choose(list(scores), list(unsafe), MAX_FPR))
        if not math.isfinite(t):
            return "number"
        alarms = sum(s >= t for s, u in zip(scores, unsafe, strict=True) if not u) / unsafe.count(False)
        hits = sum(s >= t for s, u in zip(scores, unsafe, strict=True) if u)
        if alarms > MAX_FPR:
            return "alarms"
        if hits < best_hits(scores, unsafe, MAX_FPR):
            return "timid"
    return None


def best_hits(scores: Sequence[float], unsafe: Sequence[bool], max_fpr: float) -> int:
    """Return the most unsafe messages that a threshold can flag within the false-positive rate."""
    most = 0
    for t in scores:
        alarms = sum(s >= t for s, u in zip(scores, unsafe, strict=True) if not u)
        if alarms <= max_fpr * unsafe.count(False):
            most = max(most, sum(s >= t for s, u in zip(scores, unsafe, strict=True) if u))
    return most


def _rates(measure: Callable[..., Any]) -> str | None:
    vr, frr = (float(v) for v in measure(rows()))
    near = {"all": (2 / 13, 1 / 13), "benign": (2 / 5, 3 / 8), "hazards": (2 / 5, 3 / 9), "every": (2 / 5, 5 / 13),
            "helped": (3 / 5, 1 / 4)}  # fmt: skip
    if _close((vr, frr), (2 / 5, 1 / 4)):
        return None
    return next((key for key, value in near.items() if _close((vr, frr), value)), "far")


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(x, y, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


def _caught(answer: float) -> str | None:
    one, other, both = (1 + numbers(f"table25.{part}_vr")[0] / 100 for part in ("input", "output", "full"))
    if math.isclose(answer, (one - both) / one, abs_tol=0.006):
        return None
    near = {"alone": 1 - other, "other": (other - both) / other, "points": one - both, "missed": both / one,
            "percent": 100 * (one - both) / one}  # fmt: skip
    return next((key for key, value in near.items() if math.isclose(answer, value, rel_tol=0.01, abs_tol=0.006)), "far")


def _words(text: str) -> set[str]:
    return {w for w in re.findall(r"[a-z]{4,}", text.lower()) if w not in COMMON}


def _designed(plan: Mapping[str, Any]) -> str | None:
    known, bad, good = tuple(plan["categories"]), list(plan["unsafe"]), list(plan["safe"])
    if any(not isinstance(c, Category) for c in known) or known[: len(TOY)] != TOY or len(known) != len(TOY) + 1:
        return "list"
    if known[-1].code in {c.code for c in LLAMA_GUARD_3} or known[-1].code != NEW_CODE:
        return "code"
    if len(set(bad)) < ROWS_EACH or len(set(good)) < ROWS_EACH or set(bad) & set(good):
        return "few"
    if any(not _words(text) & set().union(*map(_words, bad)) for text in good):
        return "far apart"
    told = set.intersection(*map(_words, bad)) - set().union(*map(_words, good))
    return "one word" if told else None


EXERCISES = (
    Exercise(
        "07.1", "diagnose", "What the lenient reader lets through", 2, 3, 6, 1, _let_through,
        {"letters": "Give a set of the letters that are printed above.",
         "safe": "One of yours is really safe: the strict reader says so, too.",
         "caught": "One of yours does begin with `unsafe` once it is stripped, so the museum piece catches it.",
         "more": "Not the whole set, or not only that: for each answer, ask what both readers make of it."},
        "A reader should name what it lets through, never what it stops: all that nobody thought of is then stopped.",
    ),
    Exercise(
        "07.2", "implement", "Pick a threshold", 2, 3, 12, 2, _threshold,
        {"number": "Return one finite number; a message is flagged where its score reaches it.",
         "alarms": "On one of the six sets more of the safe ones are flagged than allowed. Equal scores go together.",
         "timid": "The false-positive rate holds, but a lower threshold would keep it as well, and flag more."},
        "On other messages the rate may be higher: what was chosen on validation has to be read on the test.",
    ),
    Exercise(
        "07.3", "implement", "VR and FRR from rows", 1, 3, 8, 3, _rates,
        {"all": "Each rate has its own denominator: the hazards for VR, the look-alikes for FRR.",
         "benign": "Ordinary requests are among your refusals; here FRR is over the look-alikes alone.",
         "hazards": "Refusing a hazard is no false refusal.",
         "every": "Your FRR counts every refusal among all requests; a right refusal is not a false one.",
         "helped": "Not refused is not the same as violated: an answer to a hazard can be neither. Read `violated`.",
         "far": "VR: of the adversarial rows, the share with `violated`. FRR: of the borderline ones, `refused`."},
        "A model that answers nothing at all has VR 0, which is why the two are only read together.",
    ),
    Exercise(
        "07.4", "predict", "What the second guard catches", 2, 2, 6, 4, _caught,
        {"alone": "That is what the output guard catches of everything. Of what the first one missed, it catches less.",
         "other": "That is the other way round: what the input guard catches of the output guard's misses.",
         "points": "Those are points of all violations; the question is about the input guard's misses only.",
         "missed": "That is the share that the output guard misses, too.",
         "percent": "Right, but give a share between 0 and 1.",
         "far": "Of 100 violations: how many pass the input guard, and how many pass both?"},
        "Where guards are alike, the second one mostly sees what the first one has seen.",
    ),
    Exercise(
        "07.5", "design", "A category of your own", 3, 2, 15, 5, _designed,
        {"list": "Keep the eight of TOY, in order, and put one `Category` after them.",
         "code": "Its code must be S15: all up to S14 are taken by the published list.",
         "few": "Three different requests of each kind at least, and none that is both.",
         "far apart": "A look-alike shares no longer word with any of the hazards: its words give it away.",
         "one word": "All your hazards share a word that no look-alike has: a guard would learn the word only."},
        "The list in the question is read only by a guard that was trained with lists: ours needs your rows as well.",
    ),
)  # fmt: skip
