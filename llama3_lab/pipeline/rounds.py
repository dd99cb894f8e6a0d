"""run_loop(): from the base to the last round; every stage is kept, so that a killed run goes on.

A round of the paper (§4.1, figure 7): reward model → rejection sampling → SFT of the base on the
winners → DPO on the newest preference batch → averaging. One thing differs, and is said: our newest
batch is collected after the round's SFT, from the SFT model itself, because at this size pairs with
answers of an older model hurt (EXPERIMENTS.md, docs/decisions/0001).
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from llama3_lab.models import RewardModel, load_reward_model
from llama3_lab.pipeline import demonstrations, material, measurements, pairs, reports, safety_rounds
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.prompts import load_prompts, refuse_leaks
from llama3_lab.pipeline.runs import BASE, Run, seed_of
from llama3_lab.pipeline.training import read_training
from llama3_lab.profiles import Profile
from llama3_lab.records import (
    DECIDED,
    Agreement,
    BestOfK,
    Candidate,
    Checkpoint,
    Comparison,
    Demonstration,
    Evaluation,
    Judged,
    PairCounts,
    PreferencePair,
    Prompt,
    PromptScore,
    RoundReport,
    RunReport,
    SafetyScore,
    SampleAnswer,
    in_order,
)  # fmt: skip
from llama3_lab.store import RunFolder

METRICS = (("greedy", "all"), ("sampled", "all"), ("quality", "conversation"))  # what stages are compared in
ANSWERS_PER_PAIR = 4  # drawn for each pair of different answers wanted: a trained policy repeats itself


def run_loop(profile: Profile, out: Path, placed: Profile | None = None) -> RunReport:
    """Run every stage that `out` does not hold yet, and return the report.

    placed: the profile with what the planner chose for the GPU that is here; the run goes by it, and its folder keeps
    what was asked, so that a run may go on on another card.

    Raises:
        ValueError: for settings, files or checkpoints that cannot be used; earlier stages stay.
    """
    tests = material.tests(profile)
    asked = load_prompts(Path(profile.data.prompts_file)) if profile.data.prompts_file else []
    refuse_leaks(asked, tests)
    with RunFolder(out, profile) as folder:
        if asked and folder.once("prompts-file", Prompt, lambda: asked) != asked:
            raise ValueError(f"{profile.data.prompts_file}: changed since {out} was begun; choose another with --out")
        run = Run(folder, placed or profile, tuple(tests))
        start = begin(run)
        batches = [collect(run, "batch-0", ("first", "sibling"), round_prompts(run, asked, 0))]
        done = []
        one_round = run_round if profile.order == "paper" else run_round_field_report
        for number in range(1, profile.rounds + 1):
            done.append(one_round(run, number, batches, round_prompts(run, asked, number)))
        return finish(run, start, done)


def round_prompts(run: Run, asked: Sequence[Prompt], number: int) -> list[Prompt]:
    """Return a round's training prompts: fresh ones, or the person's own."""
    if asked:
        return list(asked)
    profile, data = run.profile, run.profile.data
    per_skill = (data.train_prompts + data.preference_prompts) // len(material.skills(data))  # asked before, each round
    start = data.demonstrations // len(material.skills(data)) + (number - 1) * per_skill
    return material.asked(profile, data.train_prompts, seed_of(profile, "prompts"), f"round{number}", run.tests, start)


def preference_prompts(run: Run, number: int, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts of a round's newest preference batch: fresh ones, or the person's own.

    On the prompts that its SFT has just learned, a policy repeats the winners: pairs from there teach little.
    """
    if run.profile.data.prompts_file:
        return list(prompts)
    profile, data = run.profile, run.profile.data
    n = len(material.skills(data))
    start = data.demonstrations // n + (number - 1) * ((data.train_prompts + data.preference_prompts) // n)
    return material.asked(profile, data.preference_prompts, seed_of(profile, "preferences"), f"preferences{number}",
                          run.tests, start + data.train_prompts // n)  # fmt: skip


def begin(run: Run) -> tuple[Evaluation, ...]:
    """Make round zero: the first policies, and what the base and the first of them score."""
    first_policies(run)
    return (
        run.scores(BASE, "base, own format", 0, "base"),
        run.scores(BASE, "base, chat format", 0),
        run.scores("first", "first policy", 0),
    )


def first_policies(run: Run, names: Sequence[str] = ("first", "sibling")) -> None:
    """Make the policies that round one begins with: SFT on written demonstrations, flaws included.

    They differ in what is drawn by lot while they train; two of them write the first preference batch (§4.2.1).
    """
    written = material.written(run.profile, seed_of(run.profile, "demonstrations"), run.tests)
    written += safety_rounds.first_demonstrations(run)
    for name in names:
        run.sft(name, written)


def collect(run: Run, name: str, policies: tuple[str, str], prompts: Sequence[Prompt]) -> list[PreferencePair]:
    """Return a preference batch: answers of two policies, or twice of one, compared by annotators (§4.2.1).

    On published problems, where nobody compares: first an open set, later right answers against wrong ones.
    """
    if run.profile.data.subject != "world":
        return run.folder.once(name, PreferencePair, lambda: published_pairs(run, name, policies, prompts))
    rng = Random(seed_of(run.profile, name))
    part = run.profile.reward if policies[0] != policies[1] else run.profile.dpo
    k = -(-part.pairs // len(prompts))

    def make() -> list[PreferencePair]:
        if policies[0] != policies[1]:
            # Most comparisons are of open requests, as in the paper (Table 6: 82 % general English).
            talk = [p for p in prompts if p.skill not in DECIDED]
            first, second = (
                [*run.answers(p, prompts, k, f"{name}-{p}"), *run.answers(p, talk, 3 * k, f"{name}-{p}-open")]
                for p in policies
            )
        else:
            first, second = pairs.distinct(run.answers(policies[0], prompts, ANSWERS_PER_PAIR * k, name), k)
        return pairs.annotated(first, second, run.profile.reward.edit_share, rng.randrange(2**31))

    return run.folder.once(name, PreferencePair, make)


def published_pairs(
    run: Run, name: str, policies: tuple[str, str], prompts: Sequence[Prompt]
) -> list[PreferencePair]:
    """Return the open preference set for the first batch; for later ones the policy's own passes over its fails."""
    if policies[0] != policies[1]:
        return material.first_pairs(run.profile)
    drawn = run.answers(policies[0], prompts, run.profile.sampling.k, name)
    judged = measurements.judge(drawn, reward_model_of(run, int(name.removeprefix("batch-"))))
    found = pairs.from_verdicts(judged, seed=seed_of(run.profile, name))
    if not found:
        raise ValueError(f"{name}: no prompt with both a right and a wrong answer, so nothing to prefer; draw more "
                         "prompts (data.preference_prompts) or more answers (sampling.k)")  # fmt: skip
    return found[: run.profile.dpo.pairs]


def reward_model_of(run: Run, number: int) -> RewardModel:
    """Return a round's reward model."""
    name = f"round{number}-reward"
    return load_reward_model(run.path(name), run.profile.model, name)


def winners(run: Run, number: int) -> tuple[list[Demonstration], list[Demonstration]]:
    """Return the demonstrations of rounds 1 to `number`, and their control: as many, for the same prompts, by lot."""
    rounds = [round_winners(run, i) for i in range(1, number + 1)]
    return [d for best, _ in rounds for d in best], [d for _, lot in rounds for d in lot]


def round_winners(run: Run, number: int) -> tuple[list[Demonstration], list[Demonstration]]:
    """Return what one round adds to `winners`: its own demonstrations and their control."""
    judged, seed = run.folder.once(f"round{number}-judged", Judged, _not_judged), seed_of(run.profile, f"round{number}")
    chosen = safety_rounds.safe_winners(run, judged, number)
    return chosen, demonstrations.select_at_random(judged, chosen, seed)


def _not_judged() -> list[Judged]:
    raise ValueError("an earlier round has not drawn its candidates; run the rounds in order")


def run_round(run: Run, number: int, batches: list[list[PreferencePair]], prompts: list[Prompt]) -> RoundReport:
    """Run one round in the paper's order; appends the round's preference batch to `batches`."""
    r, last = f"round{number}", "first" if number == 1 else f"round{number - 1}-policy"
    strong = [p for b in batches for p in pairs.strong(b, run.profile.reward.min_strength)]
    reward = run.reward(f"{r}-reward", strong)
    judged = judge_round(run, number, last, prompts)
    best, lot = winners(run, number)
    safe = safety_rounds.round_demonstrations(run, number, last)  # the control gets them too
    made = [reward, run.sft(f"{r}-sft", [*best, *safe])]
    evaluations = [run.scores(f"{r}-sft", f"round {number} sft", number)]
    if run.profile.evaluation.control:
        made.append(run.sft(f"{r}-control", [*lot, *safe]))
        evaluations.append(run.scores(f"{r}-control", f"round {number} sft on random", number))
    fresh = preference_prompts(run, number, prompts)
    batches.append(collect(run, f"batch-{number}", (f"{r}-sft", f"{r}-sft"), fresh))
    newest = pairs.strong(batches[-1], run.profile.reward.min_strength)
    made += run.dpo(f"{r}-policy", f"{r}-sft", [*newest, *safety_rounds.round_pairs(run, number, f"{r}-sft")])
    evaluations += [run.scores(f"{r}-dpo-1", f"round {number} dpo", number),
                    run.scores(f"{r}-policy", f"round {number} policy", number)]  # fmt: skip
    counts = count_pairs(batches, len(strong), len(newest))
    chosen, _ = round_winners(run, number)  # the funnel is this round's own
    return report_round(run, number, (judged, chosen), (made, evaluations), counts)


def run_round_field_report(
    run: Run, number: int, batches: list[list[PreferencePair]], prompts: list[Prompt]
) -> RoundReport:
    """Run one round as the field report tells it: SFT → reward model → DPO, winners as preferences.

    SFT comes once (the first policy). Each round the current policy answers, reward model and rules
    pick winners and losers, and DPO goes on from the current policy on those pairs.
    """
    r, last = f"round{number}", "first" if number == 1 else f"round{number - 1}-policy"
    strong = [p for b in batches for p in pairs.strong(b, run.profile.reward.min_strength)]
    reward = run.reward(f"{r}-reward", strong)
    judged = judge_round(run, number, last, prompts)
    best = demonstrations.select(judged, seed=seed_of(run.profile, r))
    newest = pairs.from_verdicts(judged, seed=seed_of(run.profile, r))[: run.profile.dpo.pairs]
    batches.append(newest)
    safe = safety_rounds.round_pairs(run, number, last)
    made = [reward, *run.dpo(f"{r}-policy", last, [*newest, *safe])]
    evaluations = [run.scores(f"{r}-policy", f"round {number} policy", number)]
    return report_round(
        run, number, (judged, best), (made, evaluations), count_pairs(batches, len(strong), len(newest))
    )


def judge_round(run: Run, number: int, last: str, prompts: list[Prompt]) -> list[Judged]:
    """Return the round's candidates, each with verdict and reward: K a prompt, and K more where none was right.

    Without the second helping a strict filter drops hard prompts first, as the paper warns (§4.3.1).
    """
    name, how = f"round{number}-judged", run.profile.sampling

    def make() -> list[Judged]:
        judged: dict[str, list[Judged]] = {p.id: [] for p in prompts}
        asked = list(prompts)
        for helping in range(1 + how.more_for_unsolved):
            stage = f"{name}-{helping}" if helping else name
            drawn = run.answers(last, asked, how.k, stage)
            for j in measurements.judge(drawn, reward_model_of(run, number)):  # loaded after the policy is gone
                judged[j.candidate.prompt.id].append(j)
            asked = [p for p in asked if all(j.verdict.outcome == "fail" for j in judged[p.id])]
            if not asked:
                break
        return [j for group in judged.values() for j in group]

    return run.folder.once(name, Judged, make)


def count_pairs(batches: list[list[PreferencePair]], training: int, dpo: int) -> PairCounts:
    """Return the preference funnel of the newest batch."""
    newest = batches[-1]
    strong = pairs.strong(newest, "better")
    return PairCounts(len(newest), sum(p.edited is not None for p in newest), len(strong), training, dpo,
                      sum(p.true_margin < 0 for p in newest))  # fmt: skip


def tested(run: Run) -> tuple[str, ...]:
    """Return the skills that the run is measured on, in order."""
    return in_order(p.skill for p in run.tests)


def held_out_answers(run: Run) -> list[Candidate]:
    """Return the first policy's answers to the test prompts, K each: what the judges are compared on."""
    plan = run.profile.evaluation
    chosen = [p for s in tested(run) for p in [t for t in run.tests if t.skill == s][: plan.best_of_k_prompts]]
    return run.folder.once("held-out-answers", Candidate,
                           lambda: run.answers("first", chosen, max(plan.best_of_k), "held-out"))  # fmt: skip


def report_round(
    run: Run,
    number: int,
    chosen: tuple[list[Judged], list[Demonstration]],
    results: tuple[list[Checkpoint], list[Evaluation]],
    counts: PairCounts,
) -> RoundReport:
    """Return everything that the round did and showed."""
    judged, best = chosen
    made, evaluations = results
    name = f"round{number}-reward"
    drawn = held_out_answers(run)
    agreed = run.folder.once(f"{name}-agreement", Agreement,
                             lambda: measurements.agreement(reward_model_of(run, number), drawn, number))  # fmt: skip
    trained = [read_training(run.path(c.name)) for c in made if (run.path(c.name) / "training.json").is_file()]
    return RoundReport(
        number, measurements.funnel(judged, best), counts, tuple(made), tuple(evaluations), tuple(agreed),
        tuple(c for t in trained for c in t.curves), tuple(h for t in trained for h in t.health),
        tuple((c.name, run.folder.seconds(c.name)) for c in made), sum(j.candidate.n_tokens for j in judged),
    )  # fmt: skip


def finish(run: Run, start: tuple[Evaluation, ...], rounds: list[RoundReport]) -> RunReport:
    """Return the whole report: comparisons, best-of-K, sample answers."""
    last = f"round{len(rounds)}-policy"
    curves = run.folder.once("best-of-k", BestOfK, lambda: compare_judges(run))
    trained = [read_training(run.path(n)) for n in ("first", "sibling")]
    profile = run.profile
    return RunReport(
        name=run.folder.path.name, profile=profile.name, profile_digest=run.folder.profile_digest, order=profile.order,
        seed=profile.seed, n_rounds=len(rounds), start=start, rounds=tuple(rounds),
        comparisons=tuple(run.folder.once("comparisons", Comparison, lambda: compare_stages(run, len(rounds)))),
        best_of_k=tuple(curves),
        samples=tuple(run.folder.once("sample-answers", SampleAnswer, lambda: before_and_after(run, last))),
        health=tuple(h for t in trained for h in t.health), curves=tuple(c for t in trained for c in t.curves),
        safety=tuple(safety_of(run, len(rounds))),
        safety_funnel=tuple(f for r in rounds for f in safety_rounds.safety_funnel(run, r.round)),
        false_refusals=tuple(f for p in policies_of(run, len(rounds)) for f in safety_rounds.false_refusals(run, *p)),
        seconds=run.folder.total_seconds(), versions=versions(),
        peak_memory_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )  # fmt: skip


def safety_of(run: Run, n_rounds: int) -> list[SafetyScore]:
    """Return VR and FRR of the first policy and of each round's, alone and behind the guard."""
    return [s for policy in policies_of(run, n_rounds) for s in safety_rounds.safety_scores(run, *policy)]


def policies_of(run: Run, n_rounds: int) -> list[tuple[str, str, int]]:
    """Return (name, stage, round) of the first policy, and of each round's SFT model and policy."""
    found = [("first", "first policy", 0)]
    for i in range(1, n_rounds + 1):
        found += [(f"round{i}-sft", f"round {i} sft", i)] if run.profile.order == "paper" else []
        found.append((f"round{i}-policy", f"round {i} policy", i))
    return found


def compare_judges(run: Run) -> list[BestOfK]:
    """Return best-of-K by every judge on the first policy's held-out answers.

    What the reward model and a lot pick out of all K is kept, prompt by prompt, for a paired test.
    """
    drawn, plan = held_out_answers(run), run.profile.evaluation
    before = "round1-sft" if run.profile.order == "paper" else "first"
    judged_by = measurements.judge_scores(drawn, partial(reward_model_of, run, 1), partial(run.policy, before),
                                          partial(run.policy, "round1-policy"))  # fmt: skip
    for judge in ("reward-model", "random"):
        picked = partial(measurements.picks, drawn, judged_by[judge.replace("-", " ")])
        run.folder.once(f"scores-best-of-k-{judge}-chat", PromptScore, picked)
    return measurements.best_of_k(drawn, judged_by, plan.best_of_k)


def compare_stages(run: Run, n_rounds: int) -> list[Comparison]:
    """Return every gain beside its control, corrected as one family."""
    out: list[Comparison] = []

    def add(name: str, a: str, b: str, metric: Any, skill: str = "all") -> None:
        out.append(reports.compare(name, run.rows(a), run.rows(b), metric, skill, (a, b)))

    paper = run.profile.order == "paper"
    metrics = METRICS if "conversation" in tested(run) else METRICS[:2]
    for i in range(1, n_rounds + 1):
        policy = f"round{i}-policy"
        if paper and run.profile.evaluation.control:
            for metric, skill in metrics:
                add(
                    f"round {i}: SFT on selected over SFT on random",
                    f"round{i}-sft",
                    f"round{i}-control",
                    metric,
                    skill,
                )
        before = f"round{i}-sft" if paper else "first" if i == 1 else f"round{i - 1}-policy"
        for metric, skill in metrics:
            add(f"round {i}: DPO over its start", policy, before, metric, skill)
    if n_rounds > 1:
        add("last round over round 1", f"round{n_rounds}-policy", "round1-policy", "sampled")
    for metric, skill in metrics:
        add("last round over the first policy", f"round{n_rounds}-policy", "first", metric, skill)
    for skill in tested(run):
        add(
            "best of K by the reward model over one by lot",
            "best-of-k-reward-model",
            "best-of-k-random",
            "quality",
            skill,
        )
    return reports.holm(out)


def before_and_after(run: Run, last: str) -> list[SampleAnswer]:
    """Return ten test prompts answered by the base, in its own format, and by the last policy."""
    chosen = [p for i, s in enumerate(tested(run)) for p in [t for t in run.tests if t.skill == s][: 3 if i < 2 else 2]]
    how = replace(run.profile.sampling, k=1, temperature=0.0)
    return list(measurements.sample_answers(sample(run.policy(BASE), chosen, how, "base"),
                                            sample(run.policy(last), chosen, how)))  # fmt: skip


def versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of the packages that decide the figures."""
    from importlib.metadata import version

    return tuple((p, version(p)) for p in ("torch", "transformers", "trl", "peft", "tokenizers", "pydantic-monty"))
