"""Exercises of 10_eight_billion: what a card changes, a micro-batch, sick trainings, an adapter's mail, a bill."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llama3_lab.course.exercises import Exercise
from llama3_lab.paper.architecture import llama3
from llama3_lab.paper.catalogue import Gpu, find_gpu
from llama3_lab.paper.costs import Costs, costs
from llama3_lab.paper.facts import fact
from llama3_lab.pipeline.health import check
from llama3_lab.placement import Placement, place, trainings
from llama3_lab.profiles import EIGHT_B, Profile, override
from llama3_lab.records import Curve, HealthCheck

SMALL, LARGE = 8, 32  # of 10.1: rows at once on a small card and on a large one

# 10.3: five trainings, each with one thing wrong. Stage, answers cut off in a thousand, curves.
SICK: Mapping[str, tuple[str, int, Mapping[str, tuple[float, ...]]]] = {
    "A": ("sft", 0, {"loss": (1.31, 1.24, 2.87, 5.4)}),
    "B": ("sft", 212, {"loss": (1.31, 1.12, 1.04, 0.98)}),
    "C": ("dpo", 0, {"preference loss": (1.96, 1.2, 0.8, 0.71), "implicit reward margin": (-2.4, -0.9, 0.1, 0.3),
                     "chosen logp": (-210.0, -205.0, -203.0, -202.0)}),
    "D": ("reward", 0, {"loss": (0.694, 0.695, 0.693, 0.694), "reward margin": (0.01, 0.002, -0.003, -0.001)}),
    "E": ("dpo", 0, {"preference loss": (0.693, 0.4, 0.11, 0.02), "implicit reward margin": (0.0, 1.1, 4.8, 9.5),
                     "chosen logp": (-210.0, -260.0, -390.0, -510.0)}),
}  # fmt: skip
CAUSES: Mapping[int, str] = {
    1: "chosen and rejected were shuffled on the way: nothing in the text tells which is better",
    2: "rows are too short for the data: max_length is still that of TINY",
    3: "the preference term is followed to the end, and no NLL term holds the chosen answers",
    4: "the learning rate is still that of TINY",
    5: "the reference's log-probabilities are those of an older policy",
    6: "the card is too small",
}
CURE = {"A": 4, "B": 2, "C": 5, "D": 1, "E": 3}

# 10.4: what lies in the folder of an SFT policy with keep="adapters".
FILES: Mapping[str, str] = {
    "A": "adapter/adapter_model.safetensors",
    "B": "adapter/adapter_config.json",
    "C": "adapter/special_rows.safetensors",
    "D": "config.json",
    "E": "tokenizer.json",
    "F": "training.json",
}
MAIL = {"A", "B", "C"}

BUDGET, WEEKEND = 25.0, 48.0  # of 10.5: USD and hours, by the planner's upper figures
LEAST_K = int(fact("sampling.k").value[0])  # candidates a prompt, the least that is typical
_TRAINING = ("sft.", "reward.", "dpo.")
_MODEL = ("model.", "name", "seed", "sampling.max_new_tokens", "data.subject", "data.benchmarks.")


def symptoms() -> dict[str, HealthCheck]:
    """Return what the health checks warn of in each training of 10.3, by letter."""
    out = {}
    for letter, (stage, cut, curves) in SICK.items():
        made = [Curve(stage, name, tuple(range(1, 1 + len(values))), values) for name, values in curves.items()]
        out[letter] = next(h for h in check(stage, made, cut, 1000) if h.status == "WARN")
    return out


def bill(profile: Profile, gpu: Gpu) -> tuple[Placement, float, float]:
    """Return where an 8B's stages go, and the upper hours and USD of all trainings and all rounds' candidates.

    Raises:
        ValueError: one line, where a stage does not fit, or the card's speed is not known.
    """
    placed, times = place(profile, gpu, llama3("8b")), trainings(profile)
    hours = usd = 0.0
    for at in placed.stages:
        if at.stage == "sample":
            examples, n = profile.data.train_prompts * profile.sampling.k, profile.rounds
        else:
            fit = getattr(profile, at.stage).fit
            examples, n = fit.max_steps * fit.per_device_train_batch_size, times[at.stage]
        found: Costs | None = costs(at.plan.recipe, gpu, examples)
        if found is None:
            raise ValueError(f"{gpu.name}: its speed and rent are not known; name a card, like H100")
        hours, usd = hours + n * found.hours[1], usd + n * found.usd[1]
    return placed, hours, usd


def _rate(answer: float) -> str | None:
    ratio = LARGE / SMALL
    near = {"linear": ratio, "root": math.sqrt(ratio), "inverse": 1 / ratio}
    if math.isclose(answer, 1.0, rel_tol=1e-9):
        return None
    return next((key for key, value in near.items() if math.isclose(answer, value, rel_tol=1e-9)), "far")


def _micro_batch(choose: Callable[..., Any]) -> str | None:
    def at(still: float, row: float) -> Callable[[int], float]:
        return lambda rows: still + row * rows

    def curved(rows: int) -> float:  # a large step's floor, then rows
        return max(18.0, 14.0 + rows)

    cases = ((at(16.0, 0.6), 23.5, 32, 8), (at(16.0, 0.7), 23.5, 24, 8), (at(16.0, 1.0), 78.0, 32, 32),
             (at(16.0, 1.0), 15.0, 32, 0), (curved, 24.5, 30, 10), (at(16.0, 0.5), 24.0, 32, 16))  # fmt: skip
    for needed, gib, batch, right in cases:
        got = choose(needed, gib, batch)
        if got == right:
            continue
        if right == 0:
            return "none"
        if got > batch:
            return "batch"
        if got > 0 and batch % got:
            return "parts"
        if got > 0 and needed(got) > gib:
            return "large"
        return "equal" if needed(right) == gib else "small"
    return None


def _match(answer: Any) -> str | None:
    if not isinstance(answer, Mapping) or set(answer) != set(SICK) or not set(answer.values()) <= set(CAUSES):
        return "form"
    return next((letter for letter, cause in CURE.items() if answer[letter] != cause), None)


def _mail(answer: Any) -> str | None:
    chosen = set(answer)
    if chosen - set(FILES):
        return "letters"
    keys = {"A": "weights", "B": "scale", "C": "rows"}
    return next((key for letter, key in keys.items() if letter not in chosen), "too much" if chosen - MAIL else None)


def _bill(answer: Any) -> str | None:
    gpu, wanted = find_gpu(answer["gpu"]), list(answer["settings"])
    names = [s.partition("=")[0].strip() for s in wanted]
    if any(n.startswith(_TRAINING) for n in names):
        return "training"
    if any(n.startswith(_MODEL) for n in names):
        return "model"
    profile = EIGHT_B
    for setting in wanted:
        profile = override(profile, setting)
    if profile.order != "paper" or not profile.evaluation.control:
        return "control"
    if profile.rounds < 2:
        return "round"
    if profile.sampling.k < LEAST_K:
        return "few"
    if profile.data.train_prompts < EIGHT_B.data.train_prompts // 2:
        return "prompts"
    try:
        _, hours, usd = bill(profile, gpu)
    except ValueError:
        return "fits"
    return "slow" if hours > WEEKEND else "dear" if usd > BUDGET else None


EXERCISES = (
    Exercise(
        "10.1", "predict", "A larger card, and the learning rate", 1, 3, 2, 1, _rate,
        {"linear": "That would be so if a step saw four times as many rows. What is it that the planner chooses?",
         "root": "A rule for batches that grow. Does this one?",
         "inverse": "Fewer rows at once do not make a smaller batch.",
         "far": "Ask what one optimizer step sees on each of the two cards."},
        "Gradients of the parts are added up first: the card decides how long a step takes, not what it does.",
    ),
    Exercise(
        "10.2", "implement", "The most rows that fit", 2, 3, 8, 2, _micro_batch,
        {"none": "Where not even one row fits, say 0.",
         "batch": "More rows at once than a step has.",
         "parts": "A step's rows must split into equal parts.",
         "large": "That does not fit. Ask `needed` about the very number that you return.",
         "equal": "Exactly as much as there is still fits.",
         "small": "It fits, but more would. (Bytes need not grow with every row from the first one on.)"},
        "The package's rule, with two per cent of the card left free: a full one fails at moments of its own choice.",
    ),
    Exercise(
        "10.3", "diagnose", "Five sick trainings", 2, 3, 8, 5, _match,
        {"form": "Give a dictionary with the five letters, and for each the number of a cause.",
         "A": "A: the loss ends four times as high as it began. What makes steps overshoot?",
         "B": "B: the loss looks well. What did the training never see?",
         "C": "C: before the first step policy and reference should be the same model, and are not.",
         "D": "D: the loss of somebody who tosses a coin, from first step to last.",
         "E": "E: the margin grows finely. At whose expense?"},
        "A card that is too small shows in no health check: it stops the run, in its first step if you are lucky.",
    ),
    Exercise(
        "10.4", "diagnose", "What must be in the mail", 2, 2, 4, 4, _mail,
        {"letters": "Answer with letters of the list.",
         "weights": "What was trained is not in the mail.",
         "scale": "The matrices alone do not say by how much their product counts, or where it belongs.",
         "rows": "Without one of the files her model reads the chat format with rows that nobody prepared.",
         "too much": "All that is needed is there, and something that she has already, or that changes no answer."},
        "And say which base it was: an adapter fits on any weights of that shape, and does not complain.",
    ),
    Exercise(
        "10.5", "design", "A loop of 8B for 25 dollars", 3, 3, 12, 3, _bill,
        {"training": "Shorter trainings, rows or adapters are other trainings; leave the three stages alone.",
         "model": "Model, data and the answers' length are given.",
         "control": "Cheap, but then no gain has its control, or it is another loop.",
         "round": "One round is no loop.",
         "few": "So few candidates are fewer than the paper finds typical.",
         "prompts": "Half of the prompts at least, or the rates say nothing.",
         "fits": "Not every stage fits on that card, or its rent is not known.",
         "slow": "It would not be done in a weekend.",
         "dear": "Too dear, by the upper figures. Is the card with the least rent the one with the least bill?"},
        "What counts is dollars for an operation, not for an hour; and rents are assumed, so look up your own.",
    ),
)  # fmt: skip
