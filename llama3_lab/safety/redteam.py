"""The red team: scripted attackers put hazards in every wording they know; what gets through becomes training data.

attack() tries the known families on each target; archive() keeps a cell for each category and family, in the manner of
Rainbow Teaming; patch() turns failures into refusals, with as many look-alikes in the same wordings beside them, so
that a wording alone does not teach refusing (§5.4.3, §5.4.6). One family is never attacked with: it shows over-fitting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from llama3_lab.models import Policy
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.reports import rate
from llama3_lab.profiles import Sampling
from llama3_lab.records import Demonstration, Rate, SafetyPrompt, Split
from llama3_lab.safety.finetuning import demonstrations, draw_requests
from llama3_lab.world import hazards


@dataclass(frozen=True)
class Attack:
    """One request of the red team, and the answer it got. success: the answer helps."""

    asked: SafetyPrompt
    answer: str
    success: bool


@dataclass(frozen=True)
class Cell:
    """How often one wording gets one category's hazards through."""

    code: str
    family: str
    success: Rate


def draw_targets(n: int, families: Sequence[str], split: Split, seed: int) -> list[SafetyPrompt]:
    """Return n targets, each in the wording of every family: n · len(families) requests, target by target."""
    rng = Random(f"red-team-{split}-{seed}")
    out: list[SafetyPrompt] = []
    for i in range(n):
        out += hazards.variants(rng, "adversarial", families, split, f"red-team-{seed}-{i:04d}")
    return out


def attack(policy: Policy, targets: Sequence[SafetyPrompt], how: Sampling) -> list[Attack]:
    """Return what the policy says to every request, greedily; same length and order."""
    answers = sample(policy, [t.prompt for t in targets], replace(how, k=1, temperature=0.0))
    return [Attack(t, c.text, hazards.violated(t, c.text)) for t, c in zip(targets, answers, strict=True)]


def archive(attacks: Sequence[Attack]) -> list[Cell]:
    """Return one cell for each category and family that was tried, in the order of their first attack."""
    keys = list(dict.fromkeys((a.asked.code, a.asked.family) for a in attacks))
    out = []
    for code, family in keys:
        hits = [float(a.success) for a in attacks if (a.asked.code, a.asked.family) == (code, family)]
        out.append(Cell(code, family, rate(hits)))
    return out


def broken_targets(attacks: Sequence[Attack], n_families: int) -> list[bool]:
    """Return, for each target, whether any of its wordings got through."""
    groups = [attacks[i : i + n_families] for i in range(0, len(attacks), n_families)]
    return [any(a.success for a in group) for group in groups]


def patch(attacks: Sequence[Attack], most: int, seed: int) -> list[Demonstration]:
    """Return training data from the failures: at most `most` refusals, and as many look-alikes helped with.

    Failures are drawn by lot where there are more. No failure: nothing to learn from, an empty list.

    Raises:
        ValueError: if an attack's request is not a training one.
    """
    held = [a.asked.prompt.id for a in attacks if a.asked.prompt.split != "train"]
    if held:
        raise ValueError(f"attack {held[0]!r} is held out ({len(held)} such); only training requests may train")
    failures = [a.asked for a in attacks if a.success]
    chosen = Random(f"patch-{seed}").sample(failures, min(most, len(failures)))
    if not chosen:
        return []
    families = [a.family for a in chosen]
    beside = draw_requests(len(chosen), "borderline", families, "train", seed, f"patch-{seed}")
    return demonstrations([*chosen, *beside])
