"""isoFLOP curves: at one budget, loss against size; the lowest point of a parabola; a power law through such points.

As in §3.2.1: a second-degree polynomial in the logarithm of the size for each budget; its minimum is the
compute-optimal size, and N*(C) = A·C^α, where the paper's N* counts training TOKENS. Every minimum has a
bootstrap interval; where the sizes tried do not reach past the minimum on both sides, that is said, and nothing is
fitted through it. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llama3_lab.paper.power_law import SURE, FittedLaw, above_0, fit_law


@dataclass(frozen=True)
class Cell:
    """A small model, trained for a budget.

    phase: "grid", "exam" (a dearer budget that no curve is fitted to) or "tuning". budget: FLOPs asked for; flops:
    spent, counted exactly. parameters: all. loss: held out, nats a token; spread: standard deviation of it over the
    held-out rows. seconds: of training, on one thread.
    """

    phase: str
    budget: float
    width: int
    layers: int
    heads: int
    parameters: int
    flops: int
    tokens: int
    seed: int
    learning_rate: float
    loss: float
    spread: float
    seconds: float


@dataclass(frozen=True)
class Conditions:
    """How the cells of one phase were made ("grid": those of its exam too).

    seconds: wall time; cpu_seconds: of training, added over the cells.
    """

    phase: str
    seconds: float
    cpu_seconds: float
    workers: int
    held_out_rows: int
    row: int
    batch_rows: int
    torch: str
    machine: str


@dataclass(frozen=True)
class Parabola:
    """loss = bottom + bend · (ln x − ln at)², fitted at one budget; x is the size in parameters.

    at: where it is lowest; low, high: the bootstrap interval of that (0 or infinity where draws had none).
    smallest, largest: the sizes tried. n: cells. bend at or below 0 means that there is no minimum: `at` is nan.
    """

    budget: float
    at: float
    bottom: float
    bend: float
    low: float
    high: float
    smallest: float
    largest: float
    n: int

    @property
    def bracketed(self) -> bool:
        """Whether the minimum's whole interval lies between the smallest and the largest size tried."""
        return self.bend > 0 and self.smallest < self.low and self.high < self.largest

    def loss(self, x: float) -> float:
        """Return the loss on the curve."""
        return self.bottom + self.bend * (math.log(x) - math.log(self.at)) ** 2

    def verdict(self) -> str:
        """Return whether the minimum is bracketed, in words; else on which side sizes are missing."""
        if self.bracketed:
            return "bracketed"
        if not self.bend > 0:
            return "no minimum: the curve bends the wrong way"
        low, high = self.low <= self.smallest, self.high >= self.largest
        side = "smaller and larger" if low and high else "smaller" if low else "larger"
        return f"not bracketed: {side} sizes are missing"


def fit_parabola(budget: float, sizes: Sequence[float], losses: Sequence[float], draws: int = 1000, seed: int = 0,
                 ) -> tuple[Parabola, Any]:  # fmt: skip
    """Return the parabola of one budget, and its minima in `draws` bootstrap draws, as an array of sizes.

    The bootstrap draws residuals, made as large as their degrees of freedom ask. A draw without a minimum counts as
    infinite where the loss still falls with size, else as 0.

    Raises:
        ValueError: one line, if there are fewer than four cells or three sizes, or a number is not above 0.
    """
    import numpy as np

    x, y = np.log(above_0(sizes, "size")), above_0(losses, "loss")
    if len(x) != len(y) or len(x) < 4 or len(np.unique(x)) < 3:
        raise ValueError(f"budget {budget:g}: {len(x)} sizes ({len(np.unique(x))} different) and {len(y)} losses; "
                         "a parabola with an interval needs four cells of three sizes")  # fmt: skip
    middle = x.mean()
    columns = np.stack([np.ones_like(x), x - middle, (x - middle) ** 2], axis=1)
    solve = np.linalg.pinv(columns)
    found = solve @ y
    left = y - columns @ found
    left = (left - left.mean()) * np.sqrt(len(x) / (len(x) - 3))
    drawn = np.random.default_rng(seed).choice(left, (draws, len(x)))
    minima = _minima(found + drawn @ solve.T, middle)
    low, high = np.quantile(minima, [(1 - SURE) / 2, (1 + SURE) / 2], method="nearest")
    at, bend = float(_minima(found[None], middle)[0]), float(found[2])
    bottom = float(found[0] - found[1] ** 2 / (4 * bend)) if bend > 0 else math.nan
    ends = math.exp(x.min()), math.exp(x.max())
    return Parabola(budget, at if bend > 0 else math.nan, bottom, bend, float(low), float(high), *ends, len(x)), minima


def parabolas(cells: Sequence[Cell], size: Callable[[Cell], float], draws: int = 1000, seed: int = 0,
              ) -> dict[float, tuple[Parabola, Any]]:  # fmt: skip
    """Return `fit_parabola` of each budget, lowest first. size: what stands on the x axis, in whatever unit.

    With one seed the draws of two calls are of the same residuals' places, so that they can be compared draw by draw.
    """
    out = {}
    for budget in sorted({c.budget for c in cells}):
        own = [c for c in cells if c.budget == budget]
        out[budget] = fit_parabola(budget, [size(c) for c in own], [c.loss for c in own], draws, seed)
    return out


def seed_spread(cells: Sequence[Cell]) -> tuple[float, int]:
    """Return the standard deviation of the loss over seeds, pooled over cells alike but for the seed, and its degrees.

    Raises:
        ValueError: if no two cells differ by the seed only.
    """
    alike: dict[tuple[float, int, int], list[float]] = {}
    for c in cells:
        alike.setdefault((c.budget, c.width, c.layers), []).append(c.loss)
    degrees = sum(len(losses) - 1 for losses in alike.values())
    if not degrees:
        raise ValueError("no two cells differ by the seed only; the spread over seeds needs such")
    squares = sum((x - sum(losses) / len(losses)) ** 2 for losses in alike.values() for x in losses)
    return math.sqrt(squares / degrees), degrees


def _minima(found: Any, middle: float) -> Any:
    """Return where parabolas are lowest; found: coefficients in ln x − middle, shape (draws, 3)."""
    import numpy as np

    slope, bend = found[:, 1], found[:, 2]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inside = np.exp(middle - slope / (2 * bend))
    return np.where(bend > 0, inside, np.where(slope < 0, np.inf, 0.0))


# -- all budgets


def law_through(fitted: Iterable[tuple[Parabola, Any]]) -> FittedLaw:
    """Return the power law of the minima against the budgets. fitted: what `fit_parabola` returned, one a budget.

    Raises:
        ValueError: if there are fewer than three budgets, or one of them has no minimum.
    """
    fitted = list(fitted)
    if bent := [f"{p.budget:g}" for p, _ in fitted if not p.bend > 0]:
        raise ValueError(f"no minimum at {', '.join(bent)} FLOPs; leave such budgets out")
    return fit_law([p.budget for p, _ in fitted], [p.at for p, _ in fitted], [minima for _, minima in fitted])
