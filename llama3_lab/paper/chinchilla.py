"""Fitting L(N, D) = E + A/N^α + B/D^β to any table of runs, with bootstrap intervals. No torch.

The fit is approach 3 of Hoffmann et al. 2022 (§3.3): Huber's loss with δ = 1e-3 on the error of log L, minimised by
L-BFGS from many starts, with the gradient written out. Two things make it sure to end at the bottom: for fixed
exponents E, A and B are a linear problem, so every start begins at its answer; and the best end is polished in
coordinates in which the valley is round (columns of the Jacobian made orthogonal), because in the raw ones A and α,
and B and β, trade off along a ravine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama3_lab.paper.loss_table import LossTable
from llama3_lab.paper.surface import NAMES, Surface

if TYPE_CHECKING:
    import numpy as np

DELTA = 1e-3
EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.2)  # of the starts, for α and for β
FINALISTS = 5  # of the starts' ends, that are polished: the order can still change
TOGETHER = 0.995  # a correlation of log N and log D above it: no run tells the two apart
HOPELESS = 1e3  # a condition above it: coefficients trade off, whatever the intervals say
IDLE = 1e-3  # a term whose share of the loss is below it in every run may as well not be there
WIDE_FACTOR, WIDE_SHARE = 30.0, 0.5  # an interval that is wider leaves a factor, or the others, undetermined


@dataclass(frozen=True)
class Fit:
    """A fitted surface.

    objective: the sum of Huber's losses. runs: how many. starts: how many were made; reached: how many of them
    ended within 0.1 % of the objective before the polish. condition: of the Jacobian with columns of length 1: how
    nearly one coefficient's effect is a mix of the others' (1: not at all). mixed: which ones no run can tell apart.
    idle: those of a term that is nowhere a thousandth of the loss, so that a surface without it fits as well.
    """

    surface: Surface
    objective: float
    runs: int
    starts: int
    reached: int
    condition: float
    mixed: tuple[str, ...]
    idle: tuple[str, ...] = ()


def objective(surface: Surface, parameters: Any, tokens: Any, losses: Any, delta: float = DELTA) -> float:
    """Return what the fit minimises: the sum of Huber's losses of log prediction less log loss."""
    table = LossTable.of(parameters, tokens, losses)
    return table.value(table.theta(surface), delta)[0]


def fit(parameters: Any, tokens: Any, losses: Any, delta: float = DELTA, exponents: Sequence[float] = EXPONENTS) -> Fit:
    """Return the surface of lowest objective for a table of runs, given as three columns of equal length.

    exponents: the starts take every pair of them for α and β.

    Raises:
        ValueError: one line, if the columns differ in length, hold fewer than six runs or a number not above 0,
            or have fewer than three different sizes or numbers of tokens (then E cannot be told from the rest).
    """
    table = LossTable.of(parameters, tokens, losses)
    ends = [_descend(table, table.start(alpha, beta), delta) for alpha in exponents for beta in exponents]
    ends.sort(key=lambda end: end[1])
    reached = sum(value <= ends[0][1] * 1.001 for _, value in ends)
    theta, low = min((_polish(table, theta, delta) for theta, _ in ends[:FINALISTS]), key=lambda end: end[1])
    kept = (*_mixed(table, theta), _idle(table, theta))
    return Fit(table.surface(theta), low, len(table.log_l), len(ends), reached, *kept)


# -- how sure


@dataclass(frozen=True)
class Coefficient:
    """One coefficient with its bootstrap interval. why: in words, what keeps the data from determining it; else ""."""

    name: str
    value: float
    low: float
    high: float
    why: str = ""

    @property
    def determined(self) -> bool:
        """Whether the data say what it is."""
        return not self.why

    def __str__(self) -> str:
        said = f"{self.name} = {self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        return said if self.determined else f"{said}: not determined by these runs, {self.why}"


def intervals(found: Fit, parameters: Any, tokens: Any, losses: Any, draws: int = 300, seed: int = 0,
              ) -> tuple[Coefficient, ...]:  # fmt: skip
    """Return the five coefficients with 95 % intervals, in the order of NAMES; each says whether the data determine it.

    Runs are drawn with replacement and fitted anew from the best optimum; the interval holds the middle 95 % of what
    comes out. (On data of known coefficients with 1 % noise that covers the truth about as often as it says;
    drawing residuals covers it less often, as EXPERIMENTS.md tells.)
    """
    drawn = surfaces(found, parameters, tokens, losses, draws, seed)
    return tuple(_judge(found, name, [s.values()[i] for s in drawn]) for i, name in enumerate(NAMES))


def surfaces(found: Fit, parameters: Any, tokens: Any, losses: Any, draws: int = 300, seed: int = 0) -> list[Surface]:
    """Return the surfaces fitted to `draws` bootstrap draws of the runs: for intervals of anything that follows."""
    import numpy as np

    table, rng, out = LossTable.of(parameters, tokens, losses), np.random.default_rng(seed), list[Surface]()
    theta, n = table.theta(found.surface), len(table.log_l)
    while len(out) < draws:
        drawn = table.pick(rng.integers(0, n, n))
        if min(len(np.unique(drawn.u)), len(np.unique(drawn.v))) >= 3:
            out.append(drawn.surface(_polish(drawn, theta, DELTA, rounds=2)[0]))
    return out


def _judge(found: Fit, name: str, drawn: Sequence[float]) -> Coefficient:
    """Return a coefficient, its interval, and why it is not determined, if so."""
    import numpy as np

    low, high = (float(x) for x in np.quantile(drawn, [0.025, 0.975], method="nearest"))
    value = found.surface.values()[NAMES.index(name)]
    if name in found.mixed:
        others = [m for m in found.mixed if m != name]
        why = f"in which it trades off against {', '.join(others)} (condition {found.condition:.1g})"
    elif name in found.idle:
        why = "which a surface without its term fits as well"
    elif name in ("A", "B"):
        why = f"which leave a factor of more than {WIDE_FACTOR:g}" if high > WIDE_FACTOR * low else ""
    else:
        why = "which leave more than half its size" if high - low > WIDE_SHARE * value else ""
    return Coefficient(name, value, low, high, why)


def _mixed(table: LossTable, theta: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Return the condition of the Jacobian, and the coefficients that trade off where that is hopeless.

    Where tokens follow from parameters (all runs at one ratio) the two terms can change places, which a Jacobian at
    one of many optima need not show; then all four of their coefficients do.
    """
    import numpy as np

    jacobian = table.jacobian(theta)
    length = np.linalg.norm(jacobian, axis=0)
    _, values, axes = np.linalg.svd(jacobian / np.where(length > 0, length, 1.0), full_matrices=False)
    condition = float(values[0] / values[-1]) if values[-1] > 0 else math.inf
    if abs(np.corrcoef(table.u, table.v)[0, 1]) > TOGETHER:
        return condition, NAMES[1:]
    flat = np.abs(axes[values < values[0] / HOPELESS]).max(0, initial=0.0)
    return condition, tuple(name for name, share in zip(NAMES, flat, strict=True) if share > 0.3)


def _idle(table: LossTable, theta: np.ndarray) -> tuple[str, ...]:
    """Return the coefficients of the terms that make up less than IDLE of every prediction."""
    largest = table.parts(theta)[1].max(axis=1)
    of = (("E",), ("A", "alpha"), ("B", "beta"))
    return tuple(name for names, share in zip(of, largest, strict=True) if share < IDLE for name in names)


def _descend(
    table: LossTable, theta: np.ndarray, delta: float, turn: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Return where L-BFGS ends from theta, and the objective there; turn: coordinates to do it in, shape (5, 5)."""
    import numpy as np
    from scipy.optimize import minimize

    turn = np.eye(5) if turn is None else turn

    def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = table.value(theta + turn @ z, delta)
        return value / delta, turn.T @ gradient / delta

    how = {"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9}
    done = minimize(scaled, np.zeros(5), jac=True, method="L-BFGS-B", options=how)
    return theta + turn @ done.x, float(done.fun) * delta


def _polish(table: LossTable, theta: np.ndarray, delta: float, rounds: int = 4) -> tuple[np.ndarray, float]:
    """Return theta moved to the bottom of its valley, in coordinates in which the Jacobian's columns are orthogonal."""
    import numpy as np

    low = table.value(theta, delta)[0]
    for _ in range(rounds):
        _, values, axes = np.linalg.svd(table.jacobian(theta), full_matrices=False)
        # A flat direction would get steps without bound; there the scale stops growing.
        there, value = _descend(table, theta, delta, axes.T / np.maximum(values, 1e-4 * values[0]))
        if not value < low * (1 - 1e-10):
            break
        theta, low = there, value
    return theta, low
