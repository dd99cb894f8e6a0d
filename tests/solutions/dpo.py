"""Solutions of 06_dpo, and the mistakes that each hint is for."""

import torch
from torch.nn.functional import logsigmoid

from llama3_lab.course.exercises.dpo import museum_loss


def margin(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B):
    return (chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)


def smoothed(*inputs):
    *logps, beta, wrong = inputs
    m = beta * margin(*logps)
    return (-(1 - wrong) * logsigmoid(m) - wrong * logsigmoid(-m)).mean()


def of_margin(formula):
    """Return a loss of (β · margin, wrong)."""
    return lambda *inputs: formula(inputs[-2] * margin(*inputs[:4]), inputs[-1])


def unstable(m, wrong):
    return (-(1 - wrong) * torch.log(torch.sigmoid(m)) - wrong * torch.log(torch.sigmoid(-m))).mean()


def blurred(m, wrong):
    return -torch.log((1 - wrong) * torch.sigmoid(m) + wrong * torch.sigmoid(-m)).mean()


def mended(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta):
    return -logsigmoid(beta * margin(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B)).mean()


PLAN = {"reference": "round2-sft", "pairs": "batch-2", "control": "SFT on the chosen, as many steps",
        "measured on": "validation prompts"}  # fmt: skip
SOLUTIONS = {
    "06.1": 0.649,
    "06.2": smoothed,
    "06.3": mended,
    "06.4": {"nll", "chosen logp"},
    "06.5": PLAN,
}
WRONG = {
    "06.1": [(1.478, "unnormalised"), (0.881, "no reference"), (0.292, "times"), (0.2, "reference"), (1.0, "greedy"),
             (0.5, "far")],
    "06.2": [
        (of_margin(lambda m, w: (-(1 - w) * logsigmoid(m) - w * logsigmoid(-m))), "scalar"),
        (of_margin(lambda m, w: 0.7), "scalar"),
        (of_margin(lambda m, w: -logsigmoid(m).mean()), "plain"),
        (of_margin(lambda m, w: (-w * logsigmoid(m) - (1 - w) * logsigmoid(-m)).mean()), "swapped"),
        (of_margin(lambda m, w: -(1 - w) * logsigmoid(m).mean()), "one side"),
        (of_margin(lambda m, w: (-logsigmoid(m) - w * logsigmoid(-m)).mean()), "unweighted"),
        (of_margin(lambda m, w: (-(1 - w) * logsigmoid(m) - w * logsigmoid(-m)).sum()), "sum"),
        (of_margin(blurred), "blurred"),
        (of_margin(unstable), "overflow"),
        (of_margin(lambda m, w: -logsigmoid((1 - 2 * w) * m).mean()), "far"),
    ],
    "06.3": [
        (museum_loss, "same"),
        (lambda c, r, rc, rr, beta: mended(c, r, rr, rc, beta), "same"),
        (lambda c, r, rc, rr, beta: mended(r, c, rr, rc, beta), "backwards"),
        (lambda c, r, rc, rr, beta: -logsigmoid(beta * (c - r)).mean(), "no reference"),
        (lambda c, r, rc, rr, beta: -logsigmoid(beta * ((c - rc) + (r - rr)) + 1).mean(), "still"),
        (lambda c, r, rc, rr, beta: -logsigmoid(margin(c, r, rc, rr)).mean(), "far"),
    ],
    "06.4": [
        ("nll", "names"),
        ({"loss"}, "names"),
        ({"preference loss", "nll"}, "cancels"),
        (["implicit reward margin"], "cancels"),
        ({"chosen logp"}, "per token"),
        ({"nll"}, "sum"),
    ],
    "06.5": [
        ({"reference": "round2-sft"}, "names"),
        ({**PLAN, "pairs": "all"}, "names"),
        ({**PLAN, "reference": "base"}, "reference"),
        ({**PLAN, "reference": "round1-policy"}, "reference"),
        ({**PLAN, "pairs": "batch-0"}, "stale"),
        ({**PLAN, "control": "none"}, "control"),
        ({**PLAN, "control": "DPO for more steps"}, "control"),
        ({**PLAN, "measured on": "training pairs"}, "seen"),
        ({**PLAN, "measured on": "test prompts"}, "spent"),
    ],
}
