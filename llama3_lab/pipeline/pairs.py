"""pairs(): what to prefer to what, from annotators (the paper) or from the verdicts (the field report)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from random import Random

from llama3_lab.pipeline.demonstrations import by_prompt
from llama3_lab.pipeline.truth import true_qualities
from llama3_lab.records import STRENGTHS, Candidate, Judged, PreferencePair, Prompt, Strength
from llama3_lab.world.annotators import annotate
from llama3_lab.world.corpus import ideal


def annotated(
    first: Sequence[Candidate], second: Sequence[Candidate], edit_share: float, seed: int
) -> list[PreferencePair]:
    """Return one pair for each prompt of the two policies' answers, as raters see them (§4.2.1).

    first[i] and second[i] answer the same prompt. Two answers of the same text are no comparison and
    are passed over. Of the winners that could be better, `edit_share` are edited into ideal answers.
    """
    rng = Random(f"annotators-{seed}")
    qualities = true_qualities([*first, *second])
    out = []
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.prompt.id != b.prompt.id:
            raise ValueError(f"answers of different prompts cannot be compared: {a.prompt.id}, {b.prompt.id}")
        if a.text == b.text or not (a.text.strip() and b.text.strip()):
            continue
        pair = annotate(a.prompt, (a.text, b.text), (qualities[i], qualities[i + len(first)]), rng)
        better = ideal(a.prompt)
        if rng.random() < edit_share and better not in (pair.chosen, pair.rejected):
            pair = replace(pair, edited=better)
        out.append(pair)
    return out


def distinct(candidates: Sequence[Candidate], most: int) -> tuple[list[Candidate], list[Candidate]]:
    """Return up to `most` disjoint pairs of different finished answers a prompt, as two lists."""
    first: list[Candidate] = []
    second: list[Candidate] = []
    for _, group in groupby(candidates, key=lambda c: c.prompt.id):
        unique = list({c.text: c for c in group if c.finished and c.text.strip()}.values())
        couples = list(zip(unique[::2], unique[1::2], strict=False))[:most]
        first += [a for a, _ in couples]
        second += [b for _, b in couples]
    return first, second


def from_verdicts(judged: Sequence[Judged], per_prompt: int = 2, seed: int = 0) -> list[PreferencePair]:
    """Return the field report's pairs: a prompt's winners over its losers, by verdict, then reward.

    Checkable skills: passes over fails. Open skill: the highest rewards over the lowest.
    """
    rng, out = Random(f"verdicts-{seed}"), []
    for group in by_prompt(judged):
        finished = [j for j in group if j.candidate.finished and j.candidate.text.strip()]
        ranked = sorted(finished, key=lambda j: -j.reward)
        if group[0].candidate.prompt.check.kind == "rubric":
            good, bad = ranked[: len(ranked) // 4], ranked[-(len(ranked) // 4) or None :]
        else:
            good = [j for j in ranked if j.verdict.outcome == "pass"]
            bad = [j for j in ranked if j.verdict.outcome == "fail"]
        rng.shuffle(bad)
        for w, loser in list(zip(good, bad, strict=False))[:per_prompt]:
            a, b = w.candidate, loser.candidate
            if a.text != b.text:
                qa, qb = true_qualities([a, b])
                out.append(PreferencePair(a.prompt, a.text, b.text, "better", "verifier", qa - qb))
    return out


def strong(pairs: Sequence[PreferencePair], min_strength: Strength) -> list[PreferencePair]:
    """Return the pairs rated at least `min_strength`."""
    return [p for p in pairs if STRENGTHS.index(p.strength) >= STRENGTHS.index(min_strength)]


def triples(pairs: Sequence[PreferencePair]) -> list[tuple[Prompt, str, str]]:
    """Return (prompt, better, worse): edited > chosen > rejected gives three, a plain pair one."""
    out = []
    for p in pairs:
        out.append((p.prompt, p.chosen, p.rejected))
        if p.edited is not None:
            out += [(p.prompt, p.edited, p.chosen), (p.prompt, p.edited, p.rejected)]
    return out
