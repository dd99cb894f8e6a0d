"""Solutions of 04_reward_model, and the mistakes that each hint is for."""

import math

import torch
from torch.nn.functional import logsigmoid

from llama3_lab.world.conversation import FILLER, sentences


def margins_of(strengths, margins):
    return torch.tensor([margins[s] for s in strengths])


def margin_loss(chosen_B, rejected_B, strengths, margins):
    return -logsigmoid(chosen_B - rejected_B - margins_of(strengths, margins)).mean()


def unstable(chosen_B, rejected_B, strengths, margins):
    return -torch.log(torch.sigmoid(chosen_B - rejected_B - margins_of(strengths, margins))).mean()


def without_gradient(*given):
    return margin_loss(*given).item()


def numbers(sizes):
    """Rewards that tell their row and position, right-padded with more of them, and the mask."""
    width = max(sizes)
    rewards_BT = torch.arange(float(len(sizes) * width)).view(len(sizes), width)
    return rewards_BT, torch.tensor([[1] * n + [0] * (width - n) for n in sizes])


def sound(read):
    rewards_BT, mask_BT = numbers([2, 4, 3])
    return read(rewards_BT, mask_BT).tolist() == [rewards_BT[0, 1], rewards_BT[1, 3], rewards_BT[2, 2]]


def rows_of_one_length(read):
    rewards_BT, mask_BT = numbers([4, 4])
    return read(rewards_BT, mask_BT).tolist() == rewards_BT[:, -1].tolist()


def expects_the_last_column(read):
    rewards_BT, mask_BT = numbers([2, 4])
    return read(rewards_BT, mask_BT).tolist() == rewards_BT[:, -1].tolist()



def temperature(leads):
    lead_N = torch.tensor(leads)
    grid = [1.02**i for i in range(-120, 120)]
    return min(grid, key=lambda t: -float(logsigmoid(lead_N / t).mean()))


def all_right(leads):
    return temperature([abs(x) for x in leads])


def reordered(prompt, text):
    opening, *facts = sentences(text)
    return " ".join([opening, *facts[::-1]])


SOLUTIONS = {
    "04.1": 0.70,
    "04.2": margin_loss,
    "04.3": sound,
    "04.4": temperature,
    "04.5": reordered,
    "04.6": 0.3,
}
WRONG = {
    "04.1": [(70, "share"), (1 / (1 + math.exp(-1)), "no noise"), (0.84, "ours"), (0.77, "times"), (0.30, "other side"),
             (0.5, "far")],
    "04.2": [
        (lambda c, r, s, m: -logsigmoid(c - r - margins_of(s, m)), "vector"),
        (lambda c, r, s, m: -logsigmoid(c - r).mean(), "plain"),
        (lambda c, r, s, m: -logsigmoid(c - r + margins_of(s, m)).mean(), "sign"),
        (lambda c, r, s, m: -logsigmoid(r - c - margins_of(s, m)).mean(), "swapped"),
        (lambda c, r, s, m: -logsigmoid(c - r - margins_of(s, m)).sum(), "sum"),
        (lambda c, r, s, m: (-logsigmoid(c - r) + margins_of(s, m)).mean(), "outside"),
        (lambda c, r, s, m: (c - r).mean(), "far"),
        (without_gradient, "gradient"),
        (unstable, "overflow"),
    ],
    "04.3": [(expects_the_last_column, "alarm"), (lambda read: False, "alarm"), (rows_of_one_length, "missed"),
             (lambda read: True, "missed")],
    "04.4": [(lambda leads: 1 / temperature(leads), "inverse"), (lambda leads: 1.0, "nothing"), (all_right, "mistakes"),
             (lambda leads: 3 * temperature(leads), "far")],
    "04.5": [
        (lambda prompt, text: f"{text} {FILLER[0]}", "words"),
        (lambda prompt, text: " ".join(sentences(text)[:-1]), "words"),
        (lambda prompt, text: " ".join(sentences(text)[::-1]), "truth"),
        (lambda prompt, text: text, "same"),
    ],
    "04.6": [(30, "share"), (1.0, "any"), (0.5, "up"), (0.0, "down")],
}  # fmt: skip
