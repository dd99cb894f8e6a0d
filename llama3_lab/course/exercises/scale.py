"""Exercises of 01_pretraining_scale, and its museum piece: a bill that falls when the machines stand still."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

from llama3_lab.course.exercises import Exercise
from llama3_lab.paper import scale
from llama3_lab.paper.architecture import Architecture, llama3
from llama3_lab.paper.isoflop import fit_parabola
from llama3_lab.paper.power_law import PowerLaw

RHO, READ = 2.0, 15.0  # of 01.6: balance of parameters and tokens, and training tokens in T
CALLS, BUDGET = 8, 1e18  # of 01.5: sizes that may be tried, and FLOPs of each
OPTIMA = (4e6, 3e7, 2.5e8)  # of 01.5: where the hidden curves are lowest
TO_COUNT = (Architecture(3, 64, 192, 10, 2, 16, 640), Architecture(8, 256, 700, 8, 1, 48, 5000, tied=True))


def museum_hours(flops: float, tflops: float, effective: float = 1.0) -> float:
    """Return the GPU-hours of a run. (A museum piece: one thing is wrong with it.)"""
    return flops / (tflops * 1e12 * 3600) * effective


def hidden_curve(at: float, seed: int = 0) -> Callable[[float], float]:
    """Return the loss that a size of some budget reaches: lowest at `at`, steeper on the small side, with noise."""
    rng = Random(seed)

    def measure(size: float) -> float:
        x = math.log(size / at)
        return 2.0 + 0.35 * (math.exp(-0.36 * x) / 0.36 + math.exp(0.3 * x) / 0.3) / 2 + rng.gauss(0, 0.002)

    return measure


def _tied(answer: float) -> str | None:
    big = llama3("8b")
    one, whole = big.vocabulary * big.width, big.parameters()
    if not 0 <= answer <= 1:
        return "share"
    if math.isclose(answer, one / whole, abs_tol=0.004):
        return None
    large = llama3("405b")
    near = {"both": 2 * one / whole, "405b": one * large.width / big.width / large.parameters(), "none": 0.0}
    return next((key for key, value in near.items() if math.isclose(answer, value, abs_tol=0.004)), "far")


def _attention(share: Callable[..., Any]) -> str | None:
    def of(a: Architecture, row: int, part: float) -> float:
        return part / (part + 2 * a.matrix_parameters() * row)

    for a in TO_COUNT:
        for row in (16, 512):
            pairs, width = row * (row + 1) / 2, 4 * a.layers * a.heads * a.head_dim
            got = float(share(a, row))
            if math.isclose(got, of(a, row, width * pairs), rel_tol=1e-6):
                continue
            near = {"full": of(a, row, width * row**2), "scores": of(a, row, width * pairs / 2),
                    "layers": of(a, row, width * pairs / a.layers),
                    "kv": of(a, row, width * pairs * a.kv_heads / a.heads),
                    "width": of(a, row, 4 * a.layers * a.width * pairs),
                    "ratio": width * pairs / (2 * a.matrix_parameters() * row)}  # fmt: skip
            return next((key for key, value in near.items() if math.isclose(got, value, rel_tol=1e-6)), "far")
    return None


def _hours(test: Callable[..., Any]) -> str | None:
    def by_seconds(flops: float, tflops: float, effective: float = 1.0) -> float:
        return flops / (tflops * effective) / 3.6e15

    if not (test(scale.gpu_hours) and test(by_seconds)):
        return "alarm"
    return "missed" if test(museum_hours) else None


def _open(between: Callable[..., Any]) -> str | None:
    cases = ((PowerLaw(0.5, 0.3), 1e24, 2), (PowerLaw(0.6, 0.05), 1e20, 1), (PowerLaw(0.48, 2), 1e22, 3))
    for law, flops, digits in cases:
        got = tuple(float(x) for x in between(law, flops, digits))
        if len(got) != 2:
            return "two"
        half = 0.5 * 10.0**-digits
        low, high = (law.a * flops ** (law.alpha + d) for d in (-half, half))
        if _close(got, (low, high)):
            continue
        if _close(got, (high, low)):
            return "order"
        one = [law.a * flops ** (law.alpha + d) for d in (-2 * half, 2 * half)]
        factor = [law.a * (1 + d) * flops**law.alpha for d in (-half, half)]
        wide = {"unit": one, "factor": factor}
        return next((key for key, value in wide.items() if _close(got, value)), "far")
    return None


def _close(got: Any, wanted: Any) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(got, wanted, strict=True))


def _choose(choose: Callable[..., Any]) -> str | None:
    for seed, at in enumerate(OPTIMA):
        tried: list[tuple[float, float]] = []
        curve = hidden_curve(at, seed)

        def measure(size: float, curve: Callable[[float], float] = curve, tried: list[Any] = tried) -> float:
            tried.append((float(size), curve(float(size))))
            return tried[-1][1]

        choose(measure)
        if len(tried) > CALLS:
            return "many"
        if len(tried) < 4 or len({size for size, _ in tried}) < 3:
            return "few"
        found, _ = fit_parabola(BUDGET, [size for size, _ in tried], [loss for _, loss in tried], draws=300)
        if not found.bracketed:
            return "outside"
        if not at / 1.6 < found.at < at * 1.6:
            return "bent"
    return None


def _served(answer: float) -> str | None:
    right = 3 * READ * (RHO - 1)
    if math.isclose(answer, right, rel_tol=0.02):
        return None
    near = {"one": 3 * READ * RHO, "three": READ * (RHO - 1), "flops": READ * (RHO - 1) / 3, "unit": right * 1e12}
    return next((key for key, value in near.items() if math.isclose(answer, value, rel_tol=0.02)), "far")


EXERCISES = (
    Exercise(
        "01.1", "predict", "What tying would save", 1, 2, 3, 1, _tied,
        {"share": "Give a share between 0 and 1.",
         "both": "That is both matrices. Tied, one of them stays.",
         "405b": "That is the largest model's share. The vocabulary is the same, so smaller models save more.",
         "none": "A row for each token of the vocabulary, as wide as the model: that is not nothing.",
         "far": "One matrix of vocabulary times width, over all parameters; both numbers stand above."},
        "So small models tie and large ones need not: Llama 3.2 does so at 1B and 3B.",
    ),
    Exercise(
        "01.2", "implement", "Attention's share", 2, 2, 8, 2, _attention,
        {"full": "You count all pairs of a row. A causal token looks at itself and those before it.",
         "scores": "The scores are half of it; the weighted sum of the values costs as much again.",
         "layers": "That is one layer. Each layer has its own pairs.",
         "kv": "Shared keys and values save memory, not products: every query head meets every key.",
         "width": "You took the width for heads times head size. Here they differ.",
         "ratio": "That is attention over the rest; the share is over the whole.",
         "far": "For one pair, one head, one layer: 4 FLOPs for each number of a head. The rest is 2 for each weight."},
        "Backward triples both, so the share of training is the same.",
    ),
    Exercise(
        "01.3", "diagnose", "A bill that falls when nobody works", 1, 3, 8, 3, _hours,
        {"alarm": "Your test refuses a function that is right: hours = FLOPs / (rate × seconds in an hour × share).",
         "missed": "The museum piece passes your test. Try it at a share of the time below 1, beside a share of 1."},
        "It is right at 1, where most people try it; a test at the edge of a range is no test of the range.",
    ),
    Exercise(
        "01.4", "implement", "What a rounded exponent leaves open", 2, 3, 10, 4, _open,
        {"two": "Return two numbers, the lowest and the highest.",
         "order": "The right numbers, the wrong way round: lowest first.",
         "unit": "You moved the exponent by a whole unit of its last digit; rounding hides half of one.",
         "factor": "You moved the factor. It is the exponent that was rounded.",
         "far": "Printed with `digits` decimals, the exponent may be half a unit of the last one lower or higher."},
        "Try it on the paper's own law with two digits: is what the text forecasts inside?",
    ),
    Exercise(
        "01.5", "design", "Eight sizes and no more", 3, 3, 15, 5, _choose,
        {"many": "You called `measure` more often than the budget allows.",
         "few": "A parabola with an interval needs at least four trials of three sizes.",
         "outside": "On one of the curves your sizes do not reach past the minimum on both sides. Look first, "
                    "coarsely, then go where it is.",
         "bent": "Bracketed, but off: the curve is no parabola far from its minimum, and noise drowns it too near. A "
                 "factor of about ten on both sides is a good reach."},
        "Every experimenter does this twice: once to find the valley, once to measure it.",
    ),
    Exercise(
        "01.6", "predict", "Served until it is right", 2, 3, 4, 6, _served,
        {"one": "A balanced model (ρ = 1) needs nobody to be served; yours would.",
         "three": "A training token costs three times as many FLOPs as a served one. Which way does that go?",
         "flops": "You divided by the three; training tokens are the dear ones.",
         "unit": "The answer is asked in T, that is in 10¹² tokens.",
         "far": "The closed form stands above: training tokens, ρ, and how much dearer a token is in training."},
        "The answer doubles if ρ goes from 2 to 3, and ρ hangs on the fitted exponents: hence the wide range.",
    ),
)  # fmt: skip
