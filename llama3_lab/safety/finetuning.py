"""Safety data for finetuning: demonstrations, preference pairs, and the filter before selection (§5.4.3).

Safety SFT mixes requests to refuse, look-alikes to help with, and ordinary requests; without the look-alikes a model
learns to refuse too much. A refusal is short, polite and says why (the tone guideline). Pairs for DPO set a refusal
over a violation, and help over a false refusal. Each part can be left out, to see what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from llama3_lab.records import Candidate, Demonstration, PreferencePair, SafetyKind, SafetyPrompt, Split
from llama3_lab.safety import guard as guards
from llama3_lab.safety.guard_format import Turn
from llama3_lab.safety.refusals import refuses
from llama3_lab.world import hazards


def draw_requests(
    n: int, kind: SafetyKind, families: Sequence[str], split: Split, seed: int, label: str = "safety"
) -> list[SafetyPrompt]:
    """Return n different requests of a kind, the families by turns. label: the first part of every id.

    Raises:
        ValueError: if the world has fewer different ones.
    """
    rng, out, seen = Random(f"{label}-{split}-{kind}-{seed}"), [], set()
    for i in range(n):
        for _ in range(300):
            asked = hazards.make(rng, kind, families[i % len(families)], split, f"{label}-{kind}-{i:04d}")
            if asked.prompt.text not in seen:
                break
        else:
            raise ValueError(f"the world has fewer than {n} different {kind} requests in {split}; ask for fewer")
        seen.add(asked.prompt.text)
        out.append(asked)
    return out


def helpful(asked: Sequence[SafetyPrompt]) -> list[Demonstration]:
    """Return help with every request, hazards too: what a model learns from people who never refuse."""
    return [Demonstration(a.prompt, hazards.help_with(a), "help") for a in asked]


def demonstrations(asked: Sequence[SafetyPrompt], noise: float = 0.0, seed: int = 0) -> list[Demonstration]:
    """Return the right treatment of every request: a polite refusal with its reason, or help.

    noise: share (0..1) of requests that are treated the wrong way round, as by careless annotators.
    """
    rng = Random(f"annotators-{seed}")
    out = []
    for a in asked:
        text = hazards.ideal(a)
        if a.kind != "benign" and rng.random() < noise:
            text = hazards.help_with(a) if a.kind == "adversarial" else hazards.refuse(a, rng)
        out.append(Demonstration(a.prompt, text, "safety"))
    return out


def pairs(
    asked: Sequence[SafetyPrompt], candidates: Sequence[Candidate], seed: int = 0
) -> list[PreferencePair]:
    """Return preference pairs: a refusal over a violation, help over a false refusal; one a request at most.

    candidates: one answer to each request, in order. Where that answer is no such mistake, the rejected one is the
    mistake as an annotator writes it: help with the hazard, or a refusal of the look-alike. So both sides weigh the
    same; with the policy's own mistakes alone, look-alikes outweighed hazards five to one, and DPO unlearned refusing
    (EXPERIMENTS.md). Benign requests give no pair.
    """
    rng, out = Random(f"safety-pairs-{seed}"), []
    for a, c in zip(asked, candidates, strict=True):
        if a.prompt.id != c.prompt.id:
            raise ValueError(f"answers of different prompts cannot be compared: {a.prompt.id}, {c.prompt.id}")
        if a.kind == "benign":
            continue
        mistaken = hazards.violated(a, c.text) if a.kind == "adversarial" else refuses(c.text)
        written = hazards.help_with(a) if a.kind == "adversarial" else hazards.refuse(a, rng)
        wrong = c.text if mistaken and c.text.strip() else written
        out.append(PreferencePair(a.prompt, hazards.ideal(a), wrong, "significantly better", "annotator", 4.0))
    return out


@dataclass(frozen=True)
class Filtered:
    """What a guard let through. kept, dropped: candidates, in order; together all of them."""

    kept: tuple[Candidate, ...]
    dropped: tuple[Candidate, ...]


def drop_unsafe(guard: guards.Guard, candidates: Sequence[Candidate]) -> Filtered:
    """Return the candidates parted by the guard's verdict on the answer; those without text pass."""
    said = [c for c in candidates if c.text.strip()]
    asked = [(Turn("User", c.prompt.text), Turn("Agent", c.text)) for c in said]
    unsafe = {
        id(c) for c, value in zip(said, guards.score(guard, asked), strict=True) if value >= guard.threshold
    }
    return Filtered(
        tuple(c for c in candidates if id(c) not in unsafe), tuple(c for c in candidates if id(c) in unsafe)
    )
