"""Safety inside the loop: what each round asks, filters, teaches and measures, beside the four skills (§5.4).

Round zero's people help with everything. From round one on, the policy answers hazards and look-alikes; the guard
takes violations out before selection; where no answer is left, an annotator's stands in; the SFT model's mistakes
become preference pairs. Violations (VR) and false refusals (FRR) are measured for every policy, alone and behind the
guard. Each part of `profiles.Safety` can be switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from llama3_lab.pipeline import material
from llama3_lab.pipeline.demonstrations import by_prompt, select
from llama3_lab.pipeline.reports import rate
from llama3_lab.pipeline.runs import Run, seed_of
from llama3_lab.records import (
    Candidate,
    Demonstration,
    FalseRefusals,
    Judged,
    PreferencePair,
    SafetyAnswer,
    SafetyFunnel,
    SafetyPrompt,
    SafetyScore,
)
from llama3_lab.safety import finetuning, layers
from llama3_lab.safety.guard import Guard, guard_for, threshold_for
from llama3_lab.safety.refusals import refuses
from llama3_lab.world import hazards

ANSWER_TOKENS = 40  # enough for a refusal or for help; a policy that rambles is cut off
# Of the hazards, this share makes a pair. One for one, DPO drives a TINY policy to refuse everything (violations .01,
# false refusals .63 on validation); two look-alikes for a hazard keep what SFT taught (.24 and .11; EXPERIMENTS.md).
PAIRED_HAZARDS = 0.5
MOST_RESELECTIONS = 8  # of a round's winners, where the guard keeps refusing them


def guard_of(run: Run) -> Guard:
    """Return the run's guard, with the threshold that was chosen on validation unless the profile sets one.

    Raises:
        ValueError: if the guard's folder is not there.
    """
    return guard_for(run.profile)


def families(run: Run) -> tuple[str, ...]:
    """Return the wordings that training may use: all but the held-out one."""
    return tuple(f for f in hazards.FAMILIES if f != run.profile.safety.held_out)


def requests(run: Run, label: str) -> list[SafetyPrompt]:
    """Return fresh training requests, half hazards in known wordings, half look-alikes in all of them."""
    half, seed = run.profile.safety.requests // 2, seed_of(run.profile, label)
    return [*finetuning.draw_requests(half, "adversarial", families(run), "train", seed, label),
            *finetuning.draw_requests(half, "borderline", hazards.FAMILIES, "train", seed, label)]  # fmt: skip


def first_demonstrations(run: Run) -> list[Demonstration]:
    """Return round zero's share: help with look-alikes and with hazards, by people who never refuse."""
    return finetuning.helpful(requests(run, "written")) if run.profile.safety.on else []


def round_demonstrations(run: Run, number: int, policy: str) -> list[Demonstration]:
    """Return what rounds 1 to `number` teach about safety; `policy` is the one that round `number` asks."""
    if not run.profile.safety.on:
        return []
    rows = [run.folder.once(f"round{i}-safety", Demonstration, _not_there) for i in range(1, number)]
    return [d for batch in (*rows, _new_demonstrations(run, number, policy)) for d in batch]


def _not_there() -> list[Demonstration]:
    raise ValueError("an earlier round has not asked its safety requests; run the rounds in order")


def _new_demonstrations(run: Run, number: int, policy: str) -> list[Demonstration]:
    name, how = f"round{number}-safety", run.profile.safety
    if run.folder.path.joinpath(f"{name}.jsonl").exists():
        return run.folder.once(name, Demonstration, _not_there)
    asked = requests(run, name)
    drawn = _answers(run, policy, asked, how.k, name)
    kept = finetuning.drop_unsafe(guard_of(run), drawn).kept if how.filter else tuple(drawn)
    chosen, own = choose(asked, kept, how.written, seed_of(run.profile, name))
    hurt = {c.prompt.id for a, c in _paired(asked, drawn) if hazards.violated(a, c.text)}
    row = SafetyFunnel(
        number, sum(a.kind == "adversarial" for a in asked), sum(a.kind == "borderline" for a in asked), len(drawn),
        len(hurt), len(drawn) - len(kept), own, len(chosen) - own, 0,
    )  # fmt: skip
    run.folder.once(f"{name}-funnel", SafetyFunnel, lambda: [row])
    return run.folder.once(name, Demonstration, lambda: chosen)


def _answers(run: Run, policy: str, asked: Sequence[SafetyPrompt], k: int, stage: str) -> list[Candidate]:
    cap = min(ANSWER_TOKENS, run.profile.sampling.max_new_tokens)
    short = replace(run, profile=replace(run.profile, sampling=replace(run.profile.sampling, max_new_tokens=cap)))
    return short.answers(policy, [a.prompt for a in asked], k, stage)


def _paired(asked: Sequence[SafetyPrompt], drawn: Sequence[Candidate]) -> list[tuple[SafetyPrompt, Candidate]]:
    by_id = {a.prompt.id: a for a in asked}
    return [(by_id[c.prompt.id], c) for c in drawn]


def choose(
    asked: Sequence[SafetyPrompt], kept: Sequence[Candidate], annotators: bool, seed: int
) -> tuple[list[Demonstration], int]:
    """Return demonstrations, and how many of them are in the policy's own words.

    A hazard: one of the kept answers, by lot among refusals if there are any. A look-alike: one that helps as asked.
    Where there is none and `annotators` write, theirs stands in; where they do not, any kept answer does, by lot, and
    a request without one is left out: what a filter alone would do.
    """
    rng, out, own = Random(f"choose-{seed}"), [], 0
    answers: dict[str, list[str]] = {a.prompt.id: [] for a in asked}
    for c in kept:
        if c.finished and c.text.strip():
            answers[c.prompt.id].append(c.text)
    for a in asked:
        said = answers[a.prompt.id]
        good = [t for t in said if (refuses(t) if a.kind == "adversarial" else hazards.helped(a, t) and not refuses(t))]
        if not annotators and not good:
            good = said
        if good:
            own += 1
        elif not annotators:
            continue
        out.append(Demonstration(a.prompt, rng.choice(good) if good else hazards.ideal(a),
                                 "safety, own words" if good else "safety, written"))  # fmt: skip
    return out, own


def round_pairs(run: Run, number: int, policy: str) -> list[PreferencePair]:
    """Return the round's safety pairs: the SFT model's own mistakes on fresh requests, put right."""
    how, name = run.profile.safety, f"round{number}-safety-pairs"
    if not (how.on and how.pairs):
        return []

    def make() -> list[PreferencePair]:
        asked = requests(run, name)
        bad = [a for a in asked if a.kind == "adversarial"]
        asked = [*bad[: round(PAIRED_HAZARDS * len(bad))], *[a for a in asked if a.kind != "adversarial"]]
        drawn = _answers(run, policy, asked, 1, name)
        return finetuning.pairs(asked, drawn, seed_of(run.profile, name))

    return run.folder.once(name, PreferencePair, make)


def safe_winners(run: Run, judged: Sequence[Judged], number: int) -> list[Demonstration]:
    """Return the round's winners; one that the guard calls unsafe makes way for the next best of its prompt."""
    seed, how = seed_of(run.profile, f"round{number}"), run.profile.safety
    if not (how.on and how.filter):
        return select(judged, seed=seed)

    def make() -> list[Demonstration]:
        guard, left = guard_of(run), list(judged)
        for _ in range(MOST_RESELECTIONS):
            chosen = select(left, seed=seed)
            won = {(d.prompt.id, d.text) for d in chosen}
            unique = {(j.candidate.prompt.id, j.candidate.text): j.candidate for j in left}
            dropped = finetuning.drop_unsafe(guard, [c for key, c in unique.items() if key in won]).dropped
            bad = {(c.prompt.id, c.text) for c in dropped}
            if not bad:
                return chosen
            left = [j for g in by_prompt(left) for j in g if (j.candidate.prompt.id, j.candidate.text) not in bad]
        return [d for d in chosen if (d.prompt.id, d.text) not in bad]

    return run.folder.once(f"round{number}-winners", Demonstration, make)


def test_requests(run: Run) -> list[SafetyPrompt]:
    """Return the held-out requests: hazards (known wordings, then the held-out one), look-alikes, ordinary ones."""
    how, split = run.profile.safety, run.profile.evaluation.split
    known, unseen = families(run), (how.held_out,)
    return [
        *finetuning.draw_requests(how.test_requests, "adversarial", known, split, 0, "safety-test"),
        *finetuning.draw_requests(max(how.test_requests // 5, 1), "adversarial", unseen, split, 0, "safety-held-out"),
        *finetuning.draw_requests(how.test_requests, "borderline", hazards.FAMILIES, split, 0, "safety-test"),
        *layers.benign(run.tests),
    ]


def safety_answers(run: Run, name: str) -> list[SafetyAnswer]:
    """Return the policy's answers to the held-out requests, with the truth and the guard's scores; kept."""

    # The guard's scores of the requests are the same for every policy: the first policy's rows have them.
    measured = name != "first" and (run.folder.path / "safety-first.jsonl").is_file()
    before = [r.input_score for r in run.folder.once("safety-first", SafetyAnswer, list)] if measured else None

    def make() -> list[SafetyAnswer]:
        return layers.answer_all(run.policy(name), guard_of(run), test_requests(run), run.profile.sampling, before)

    return run.folder.once(f"safety-{name}", SafetyAnswer, make)


def safety_scores(run: Run, name: str, stage: str, number: int) -> list[SafetyScore]:
    """Return the policy's rates alone and behind each set of guards; nothing where safety is off."""
    if not run.profile.safety.on:
        return []
    rows, threshold = safety_answers(run, name), threshold_for(run.profile)
    held_out = run.profile.safety.held_out
    return [layers.safety_score(rows, held_out, stage, number, part, threshold) for part in layers.LAYERS]


def false_refusals(run: Run, name: str, stage: str, number: int) -> list[FalseRefusals]:
    """Return how often the policy refuses the profile's harmless requests; nothing where it names none."""
    asked = material.borderline(run.profile)
    if not asked:
        return []
    drawn = run.folder.once(f"borderline-{name}", Candidate, lambda: run.greedy(name, asked, f"borderline-{name}"))
    return [FalseRefusals(stage, number, rate([float(refuses(c.text, c.prompt.text)) for c in drawn]))]


def safety_funnel(run: Run, number: int) -> list[SafetyFunnel]:
    """Return what became of the round's safety requests; nothing where safety is off."""
    if not run.profile.safety.on:
        return []
    paper = run.profile.order == "paper"
    rows = run.folder.once(f"round{number}-safety-funnel", SafetyFunnel, list) if paper else []
    policy = f"round{number}-sft"
    made = len(round_pairs(run, number, policy)) if rows and run.profile.safety.pairs else 0
    return [replace(r, pairs=made) for r in rows]
