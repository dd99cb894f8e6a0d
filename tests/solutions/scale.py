"""Solutions of 01_pretraining_scale, and the mistakes that each hint is for."""

import math

from llama3_lab.paper.architecture import llama3


def pair_flops(a, row):
    return 4 * a.layers * a.heads * a.head_dim * row * (row + 1) / 2


def share_of(part):
    return lambda a, row: part(a, row) / (part(a, row) + 2 * a.matrix_parameters() * row)


def sound(hours):
    return hours(3.6e15, 1.0) == 1 and math.isclose(hours(3.6e15, 1.0, 0.5), 2)


def always_busy(hours):
    return hours(3.6e15, 1.0) == 1 and hours(7.2e15, 1.0) == 2


def between(law, flops, digits, half=0.5):
    return tuple(law.a * flops ** (law.alpha + side * half * 10**-digits) for side in (-1, 1))


def rounded_factor(law, flops, digits):
    return tuple(law.a * (1 + side * 0.5 * 10**-digits) * flops**law.alpha for side in (-1, 1))


def descend(measure):
    """Three sizes give a first parabola; five more stand around its minimum."""
    xs = (6.0, 7.5, 9.0)
    low, mid, high = (measure(10**x) for x in xs)
    at = xs[1] + 0.5 * 1.5 * (low - high) / (low - 2 * mid + high)
    for step in (-0.8, -0.4, 0.0, 0.4, 0.8):
        measure(10 ** (at + step))


def one_place(measure):
    for i in range(8):
        measure(1e6 * 1.2**i)


def everything(measure):
    for i in range(40):
        measure(10 ** (5.5 + 0.1 * i))


def three_calls(measure):
    for size in (1e6, 3e7, 1e9):
        measure(size)


def far_apart(measure):
    for size in (1e2, 1e3, 1e5, 3e8, 1e12, 1e13, 1e14):
        measure(size)


LARGE = llama3("405b")
SOLUTIONS = {
    "01.1": 0.065,
    "01.2": share_of(pair_flops),
    "01.3": sound,
    "01.4": between,
    "01.5": descend,
    "01.6": 45,
}
WRONG = {
    "01.1": [(6.5, "share"), (0.131, "both"), (LARGE.vocabulary * LARGE.width / LARGE.parameters(), "405b"),
             (0.0, "none"), (0.3, "far")],
    "01.2": [
        (share_of(lambda a, row: 4 * a.layers * a.heads * a.head_dim * row * row), "full"),
        (share_of(lambda a, row: pair_flops(a, row) / 2), "scores"),
        (share_of(lambda a, row: pair_flops(a, row) / a.layers), "layers"),
        (share_of(lambda a, row: pair_flops(a, row) * a.kv_heads / a.heads), "kv"),
        (share_of(lambda a, row: 4 * a.layers * a.width * row * (row + 1) / 2), "width"),
        (lambda a, row: pair_flops(a, row) / (2 * a.matrix_parameters() * row), "ratio"),
        (lambda a, row: 0.5, "far"),
    ],
    "01.3": [(lambda hours: False, "alarm"), (lambda hours: hours(1e18, 1.0, 0.5) == 1, "alarm"),
             (always_busy, "missed"), (lambda hours: True, "missed")],
    "01.4": [
        (lambda law, flops, digits: (1, 2, 3), "two"),
        (lambda law, flops, digits: between(law, flops, digits)[::-1], "order"),
        (lambda law, flops, digits: between(law, flops, digits, half=1), "unit"),
        (rounded_factor, "factor"),
        (lambda law, flops, digits: (law.at(flops),) * 2, "far"),
    ],
    "01.5": [(everything, "many"), (three_calls, "few"), (one_place, "outside"), (far_apart, "bent")],
    "01.6": [(90, "one"), (15, "three"), (5, "flops"), (45e12, "unit"), (30, "far")],
}  # fmt: skip
