"""check(): did a training do what a healthy one does? PASS or WARN, with the figure and the reason.

A WARN stops nothing: it stands in the report, beside the curve that it was read from. "Start" and
"end" are means over the first and the last quarter of the steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from llama3_lab.records import Curve, HealthCheck

LN2_TOLERANCE = 0.05  # nats; a pairwise loss starts at ln 2 where nothing is preferred yet
COLLAPSE_SHARE = 0.25  # of the chosen answers' cost at the start, in nats


@dataclass(frozen=True)
class Training:
    """What a stage showed. seconds: wall time, loading and saving included. tokens: read in training."""

    curves: tuple[Curve, ...]
    health: tuple[HealthCheck, ...]
    seconds: float
    tokens: int


def read_training(out: Path) -> Training:
    """Return what the stage in the folder `out` wrote about itself.

    Raises:
        ValueError: if there is no training.json, or it cannot be read.
    """
    file = Path(out) / "training.json"
    try:
        raw = json.loads(file.read_text())
        curves = tuple(Curve(c["stage"], c["metric"], tuple(c["steps"]), tuple(c["values"])) for c in raw["curves"])
        return Training(curves, tuple(HealthCheck(**h) for h in raw["health"]), raw["seconds"], raw["tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a finished training's record ({error}); run the stage again") from error


def check(
    stage: str, curves: Sequence[Curve], cut: int, answers: int, margins: bool = False
) -> tuple[HealthCheck, ...]:
    """Return the checks that the stage's curves allow. cut: answers of `answers` that max_length cut off.

    margins: a reward loss with margins starts above ln 2, so its start is not checked.
    """
    by_metric = {c.metric: c.values for c in curves}
    out = [_nothing_cut(stage, cut, answers)]
    if "reward margin" in by_metric:
        out += [] if margins else [_starts_at_ln2(stage, "first reward loss", by_metric["loss"])]
        out.append(_rises(stage, "reward margin", by_metric["reward margin"]))
    elif "implicit reward margin" in by_metric:
        out += [_starts_at_ln2(stage, "first DPO loss", by_metric["preference loss"]),
                _rises(stage, "implicit reward margin", by_metric["implicit reward margin"]),
                _no_collapse(stage, by_metric["chosen logp"])]  # fmt: skip
    else:
        out.append(_falls(stage, "SFT loss", by_metric["loss"]))
    return tuple(out)


def _check(stage: str, name: str, good: bool, value: float, reason: str) -> HealthCheck:
    return HealthCheck(stage, name, "PASS" if good else "WARN", value, reason)


def start_and_end(values: Sequence[float]) -> tuple[float, float]:
    """Return the means over the first and over the last quarter (at least one step each)."""
    quarter = max(1, len(values) // 4)
    return fmean(values[:quarter]), fmean(values[-quarter:])


def _nothing_cut(stage: str, cut: int, answers: int) -> HealthCheck:
    share = cut / max(1, answers)
    return _check(stage, "answers fit max_length", cut == 0, share, f"{cut} of {answers} answers cut off")


def _starts_at_ln2(stage: str, name: str, losses: Sequence[float]) -> HealthCheck:
    good = abs(losses[0] - math.log(2)) <= LN2_TOLERANCE
    reason = f"{losses[0]:.3f}; ln 2 = 0.693 ± {LN2_TOLERANCE} where nothing is preferred yet"
    return _check(stage, name, good, losses[0], reason)


def _rises(stage: str, name: str, values: Sequence[float]) -> HealthCheck:
    start, end = start_and_end(values)
    return _check(stage, f"{name} rises", end > start, end - start, f"{start:.3f} at the start, {end:.3f} at the end")


def _falls(stage: str, name: str, values: Sequence[float]) -> HealthCheck:
    start, end = start_and_end(values)
    return _check(stage, f"{name} falls", end < start, end - start, f"{start:.3f} at the start, {end:.3f} at the end")


def _no_collapse(stage: str, logps: Sequence[float]) -> HealthCheck:
    """WARN where the chosen answers' summed log-probability falls by over a quarter of its size."""
    start, end = start_and_end(logps)
    good = end >= start - COLLAPSE_SHARE * abs(start)
    reason = f"{start:.1f} nats an answer at the start, {end:.1f} at the end; may fall by {COLLAPSE_SHARE:.0%}"
    return _check(stage, "chosen log-probability holds", good, end - start, reason)
