"""Exercises of 06_dpo, and its museum pieces: a DPO loss and a row of labels with one thing wrong in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llama3_lab.course.exercises import Exercise

REFERENCE, REWARDS, BETA = (0.8, 0.2), (0.0, 1.0), 0.5  # of 06.1: two answers, as the reference and the judge see them
WRONG = 0.05  # of 06.2: the share of pairs that raters get the wrong way round
LOGGED = ("preference loss", "nll", "implicit reward margin", "chosen logp")  # of 06.4
PLAN = {  # of 06.5: what each part may be
    "reference": ("base", "round1-policy", "round2-sft"),
    "pairs": ("batch-0", "batch-1", "batch-2"),
    "control": ("none", "DPO for more steps", "SFT on the chosen, as many steps"),
    "measured on": ("training pairs", "validation prompts", "test prompts"),
}


def museum_loss(chosen_B: Any, rejected_B: Any, ref_chosen_B: Any, ref_rejected_B: Any, beta: float) -> Any:
    """Return the mean DPO loss. (A museum piece: one thing is wrong with it.)"""
    from torch.nn.functional import logsigmoid

    margin_B = (chosen_B - ref_rejected_B) - (rejected_B - ref_chosen_B)
    return -logsigmoid(beta * margin_B).mean()


def museum_labels(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[int]:
    """Return the labels of one row of DPO. (A museum piece: one thing is wrong with it.)"""
    return [*prompt_ids, *answer_ids]


def _tilted(answer: float) -> str | None:
    odds = REFERENCE[1] / REFERENCE[0]
    near = {"unnormalised": REFERENCE[1] * math.exp(REWARDS[1] / BETA), "no reference": 1 / (1 + math.exp(-1 / BETA)),
            "times": _share(odds * math.exp(BETA)), "reference": REFERENCE[1], "greedy": 1.0}  # fmt: skip
    if math.isclose(answer, _share(odds * math.exp(1 / BETA)), abs_tol=0.006):
        return None
    return next((key for key, value in near.items() if math.isclose(answer, value, abs_tol=0.006)), "far")


def _share(odds: float) -> float:
    return odds / (1 + odds)


def _smoothed(loss: Callable[..., Any]) -> str | None:
    import torch
    from torch.nn.functional import logsigmoid

    inputs = [torch.tensor(x) for x in ([-9.0, -4.0, -7.0], [-8.0, -9.0, -6.5], [-8.0, -5.0, -7.5], [-9.0, -8.0, -6.0])]
    beta, m_B = 0.3, torch.tensor([-2.0, 2.0, 1.0])  # the margins of these rows, by hand
    right_B, wrong_B = -logsigmoid(beta * m_B), -logsigmoid(-beta * m_B)
    mean = ((1 - WRONG) * right_B + WRONG * wrong_B).mean()
    mine = loss(*inputs, beta, WRONG)
    if not isinstance(mine, torch.Tensor) or mine.ndim:
        return "scalar"
    known = {
        "plain": right_B.mean(), "swapped": (WRONG * right_B + (1 - WRONG) * wrong_B).mean(),
        "one side": (1 - WRONG) * right_B.mean(), "unweighted": (right_B + WRONG * wrong_B).mean(),
        "sum": 3 * mean, "blurred": -torch.log((1 - WRONG) * (-right_B).exp() + WRONG * (-wrong_B).exp()).mean(),
    }  # fmt: skip
    if not torch.isclose(mine, mean, atol=1e-4):
        return next((key for key, value in known.items() if torch.isclose(mine, value, atol=1e-4)), "far")
    far = torch.tensor([-5000.0])
    return None if torch.isfinite(loss(0 * far, far, 0 * far, 0 * far, beta, WRONG)) else "overflow"


def _mended(loss: Callable[..., Any]) -> str | None:
    import torch

    from llama3_lab.pipeline.losses import dpo_loss

    c, r, rc, rr = (-20 * torch.rand(64, generator=torch.Generator().manual_seed(i)) for i in range(4))
    mine, beta = loss(c, r, rc, rr, 0.1), 0.1
    none = torch.zeros(64)
    known = {"same": museum_loss(c, r, rc, rr, beta), "backwards": dpo_loss(r, c, rr, rc, beta),
             "no reference": dpo_loss(c, r, none, none, beta)}  # fmt: skip
    if torch.isclose(mine, dpo_loss(c, r, rc, rr, beta), atol=1e-5):
        return None
    found = next((key for key, value in known.items() if torch.isclose(mine, value, atol=1e-5)), None)
    at_start = loss(c, r, c, r, 0.1)
    return found or ("still" if not math.isclose(float(at_start), math.log(2), abs_tol=1e-4) else "far")


def _seen(names: Collection[str]) -> str | None:
    if isinstance(names, str) or set(names) - set(LOGGED):
        return "names"
    if set(names) & {"preference loss", "implicit reward margin"}:
        return "cancels"
    return None if len(set(names)) == 2 else "per token" if "chosen logp" in names else "sum"


def _plan(plan: Mapping[str, str]) -> str | None:
    if set(plan) != set(PLAN) or any(plan[part] not in PLAN[part] for part in PLAN):
        return "names"
    if plan["reference"] != "round2-sft":
        return "reference"
    if plan["pairs"] != "batch-2":
        return "stale"
    if plan["control"] != PLAN["control"][2]:
        return "control"
    return {"training pairs": "seen", "test prompts": "spent"}.get(plan["measured on"])


EXERCISES = (
    Exercise(
        "06.1", "predict", "Two answers and a brake", 1, 3, 4, 1, _tilted,
        {"unnormalised": "That is the weight of the second answer before all weights are divided by their sum.",
         "no reference": "You let the reward decide alone; the reference likes the first answer four times as much.",
         "times": "β divides the reward: a small β lets the reward count for more.",
         "reference": "That is the reference's own share, as if the reward did not count.",
         "greedy": "Only β = 0 would give everything to the better answer.",
         "far": "Weigh each answer by its reference probability times exp(reward / β), then divide by the sum."},
        "The odds are the reference's odds times exp(difference of rewards / β): that is the whole derivation.",
    ),
    Exercise(
        "06.2", "implement", "A loss that knows its raters", 2, 2, 10, 2, _smoothed,
        {"scalar": "Return one number as a tensor: the mean over the pairs.",
         "plain": "That is the plain DPO loss: `wrong` does not count in it yet.",
         "swapped": "The two weights are exchanged: most pairs are the right way round.",
         "one side": "The pairs that may be the wrong way round are missing: add their loss, with their weight.",
         "unweighted": "The two weights must add up to 1.",
         "sum": "Take the mean over the pairs, not the sum.",
         "blurred": "You mix the probabilities inside the logarithm; mix the two losses.",
         "overflow": "At a margin of thousands of nats your loss is not finite: use logsigmoid, not log of sigmoid.",
         "far": "Call the margin m. One loss is for the pair as given, one for the pair turned round."},
        "Now the best margin is finite: beyond log((1 − wrong) / wrong) / β nats the loss rises again. TRL calls the "
        "share `label_smoothing`.",
    ),
    Exercise(
        "06.3", "diagnose", "A first loss that is not log 2", 2, 3, 10, 3, _mended,
        {"same": "This gives the same numbers as before. Which reference belongs to which answer?",
         "backwards": "The first loss is right now, but the rejected answers are pushed up: mind the margin's sign.",
         "no reference": "You took the reference out. Then the loss pulls towards no model, and starts where it likes.",
         "still": "With policy and reference equal, the margin must be 0 for every pair, whatever the pair. Try it.",
         "far": "It starts at log 2, but then moves another way: write the two log-ratios on two lines."},
        "Seen from step 0, this bug and a wrong reference model look alike: check both when the first loss is off.",
    ),
    Exercise(
        "06.4", "diagnose", "The prompt among the labels", 3, 3, 10, 4, _seen,
        {"names": f"Give a set of names out of: {', '.join(LOGGED)}.",
         "cancels": "Both answers of a pair follow the same prompt. What is left of the prompt in a difference?",
         "per token": "One more: which of them is divided by a number of tokens that has now grown?",
         "sum": "One more: which of them is a plain sum over the labelled tokens?"},
        "In the difference the prompt cancels, so neither loss nor margin shows this bug; the NLL term, though, now "
        "learns to write prompts.",
    ),
    Exercise(
        "06.5", "design", "DPO of round two", 2, 3, 6, 5, _plan,
        {"names": "Give a dict with the four parts, each one of the words that stand there.",
         "reference": "The reference is the model that the new adapter is put on, so that the first loss is log 2.",
         "stale": "Whose answers are in that batch? The policy to be trained no longer writes them.",
         "control": "What would show that the preferences did it, and not the training on good answers?",
         "seen": "On pairs that it has trained on, every training looks good.",
         "spent": "Those prompts are for the last measurement; a choice made on them spoils them."},
        "Write such a plan down before the run: afterwards every number looks as if it had been the goal.",
    ),
)  # fmt: skip
