"""select(), select_at_random(): which candidates to imitate, and the control of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from random import Random
from typing import Literal

from llama3_lab.records import Demonstration, Judged

Rule = Literal["checker and reward", "reward", "checker", "either", "strict"]


def by_prompt(judged: Sequence[Judged]) -> list[list[Judged]]:
    """Return the candidates of each prompt together, in order."""
    return [list(group) for _, group in groupby(judged, key=lambda j: j.candidate.prompt.id)]


def select(judged: Sequence[Judged], rule: Rule = "checker and reward", seed: int = 0) -> list[Demonstration]:
    """Return at most one demonstration a prompt; a prompt with no admissible candidate yields none.

    "checker and reward": of those that the checker does not fail (open skill: all), the highest reward. "reward":
    the favourite, the highest reward among all, as the paper has it (§4.2.2). "checker": any that it does not fail,
    by lot. "either": any that passes, or the favourite, by lot (§4.2.3). "strict": the favourite, unless the
    checker fails it (§4.3.1). A candidate cut off at the cap is never admissible.
    """
    out, rng = [], Random(f"select-{seed}")
    for group in by_prompt(judged):
        admissible = _admissible([j for j in group if j.candidate.finished], rule)
        if not admissible:
            continue
        by_lot = rule in ("checker", "either")
        best = rng.choice(admissible) if by_lot else max(admissible, key=lambda j: j.reward)
        out.append(Demonstration(best.candidate.prompt, best.candidate.text, rule))
    return out


def _admissible(ended: list[Judged], rule: Rule) -> list[Judged]:
    if rule == "reward" or not ended:
        return ended
    if rule in ("checker", "checker and reward"):
        return [j for j in ended if j.verdict.outcome != "fail"]
    favourite = max(ended, key=lambda j: j.reward)
    if rule == "strict":
        return [favourite] if favourite.verdict.outcome != "fail" else []
    return [j for j in ended if j.verdict.outcome == "pass" or j is favourite]


def select_at_random(judged: Sequence[Judged], like: Sequence[Demonstration], seed: int = 0) -> list[Demonstration]:
    """Return the control: for the same prompts as `like`, one finished candidate each, by lot."""
    wanted, rng = {d.prompt.id for d in like}, Random(f"random-{seed}")
    out = []
    for group in by_prompt(judged):
        if group[0].candidate.prompt.id in wanted:
            finished = [j for j in group if j.candidate.finished]
            drawn = rng.choice(finished).candidate
            out.append(Demonstration(drawn.prompt, drawn.text, "random"))
    if len(out) != len(like):
        raise ValueError(f"the control has {len(out)} demonstrations and its counterpart {len(like)}")
    return out
