"""predict(), score(): say an interval first, then see whether it holds, over all notebooks. No torch here.

An interval that you are 90 % sure of should hold the result nine times out of ten: less often means
that you are too sure, always and widely means that you could dare more.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from llama3_lab import places
from llama3_lab.store import StoreError, read_text, write_text

SURE = 0.9  # of holding the result; what a prediction's interval claims
_SURE = f"{100 * SURE:.0f} %"


@dataclass(frozen=True)
class Prediction:
    """An interval that its author is 90 % sure of. key: notebook and subject, like "03.format"."""

    key: str
    low: float
    high: float


def predict(key: str, low: float, high: float) -> Prediction:
    """Print and return the interval that you are 90 % sure of, before you see the result.

    Raises:
        ValueError: unless low < high, both plain numbers.
    """
    for what, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{key}: {what} is {value!r}; give a number")
    if low >= high:
        raise ValueError(f"{key}: low is {low} and high is {high}; low must be the smaller one")
    print(f"{key}: you are {_SURE} sure of {low:g} to {high:g}")
    return Prediction(key, float(low), float(high))


def score(prediction: Prediction, value: float, low: float, high: float) -> None:
    """Print whether the prediction holds the value (measured, with interval low to high), and the score so far.

    The newest result of each key counts. The score is kept in places.predictions(); where that
    cannot be written, this one is printed all the same.
    """
    p, held = prediction, prediction.low <= value <= prediction.high
    where = "holds" if held else "misses"
    print(f"{p.key}: your {p.low:g} to {p.high:g} {where} {value:.2f} [{low:.2f}, {high:.2f}]"
          f"{_nuance(p, held, low, high)}. It was {p.high - p.low:.2f} wide; the result's own interval is "
          f"{high - low:.2f} wide.")  # fmt: skip
    kept = {**_kept(), p.key: {"low": p.low, "high": p.high, "value": value, "held": held}}
    try:
        write_text(places.predictions(), json.dumps(kept, indent=1, sort_keys=True) + "\n")
    except StoreError as error:
        print(f"(not kept: {error})")
    hits, n = sum(bool(k["held"]) for k in kept.values()), len(kept)
    print(f"So far {hits} of {n} {'prediction holds' if n == 1 else 'predictions hold'}; {_SURE} sure should hold "
          f"about {SURE * n:.1f}.{_advice(hits, n)}")  # fmt: skip


def _nuance(p: Prediction, held: bool, low: float, high: float) -> str:
    if held and (low < p.low or high > p.high):
        return ", though not all of its interval"
    if not held and low <= p.high and high >= p.low:
        return ", but not all of its interval"
    return ""


def _advice(hits: int, n: int) -> str:
    """Return what the score says, once there is enough of it: one in 20 who are rightly sure get fewer hits."""
    fewer = sum(math.comb(n, k) * SURE**k * (1 - SURE) ** (n - k) for k in range(hits + 1))
    if fewer < 0.05:
        return " You are surer than you should be: widen."
    return " If the intervals were wide, dare narrower ones." if n >= 8 and hits == n else ""


def _kept() -> dict[str, Any]:
    """Return the predictions scored so far; a file that is missing or damaged counts as none."""
    try:
        kept = json.loads(read_text(places.predictions()))
    except ValueError:
        return {}
    fine = isinstance(kept, dict) and all(isinstance(k, dict) and "held" in k for k in kept.values())
    return kept if fine else {}
