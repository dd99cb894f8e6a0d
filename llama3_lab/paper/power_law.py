"""Power laws, y = a · x^α: the paper's own, and one fitted through a few points with its interval. No torch.

The paper's N*(C) = A·C^α (§3.2.1) counts training TOKENS against FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama3_lab.paper.facts import fact

LAWS = ("text", "legend")  # where the paper prints coefficients
SURE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """y = a · x ** alpha, for x above 0."""

    alpha: float
    a: float

    def at(self, x: float) -> float:
        """Return y at x."""
        return float(self.a * x**self.alpha)


def paper_law(where: str) -> PowerLaw:
    """Return the paper's tokens against FLOPs, N*(C), as its "text" or the "legend" of figure 3 prints it.

    Raises:
        ValueError: if `where` is neither.
    """
    if where not in LAWS:
        raise ValueError(f"the paper prints no law in {where!r}; it does in {', '.join(LAWS)}")
    return PowerLaw(float(fact(f"law.{where}.alpha").value), float(fact(f"law.{where}.a").value))


def exponent_for(law: PowerLaw, x: float, y: float) -> float:
    """Return the exponent with which `law`, its factor kept, gives y at x."""
    return math.log(y / law.a) / math.log(x)


@dataclass(frozen=True)
class FittedLaw:
    """A power law through the minima of several budgets; intervals from the minima's own bootstrap draws.

    draws: the exponents and the logarithms of the factors, one of each a draw (nan where a draw had no law).
    """

    law: PowerLaw
    alpha_low: float
    alpha_high: float
    budgets: int
    draws: Any

    def at(self, x: float) -> tuple[float, float, float]:
        """Return y at x, and its interval: how far the law can be carried is seen here."""
        import numpy as np

        alphas, logs = self.draws
        low, high = np.nanquantile(logs + alphas * math.log(x), [(1 - SURE) / 2, (1 + SURE) / 2])
        return self.law.at(x), _exp(low), _exp(high)


def fit_law(budgets: Sequence[float], values: Sequence[float], draws: Any = None) -> FittedLaw:
    """Return the power law of `values` (optimal sizes, or tokens) against budgets, by least squares on logarithms.

    draws: bootstrap draws of the values, shape (budgets, draws), or None for no interval. A draw that is 0 or
    infinite at any budget has no law: nan, left out of intervals, but kept in its place, so that laws of the same
    draws can be compared draw by draw.

    Raises:
        ValueError: if there are fewer than three budgets, or no draw has a law.
    """
    import numpy as np

    x, y = np.log(above_0(budgets, "budget")), np.log(above_0(values, "value"))
    if len(x) != len(y) or len(np.unique(x)) < 3:
        raise ValueError(f"{len(x)} budgets and {len(y)} values; a law that can be wrong needs three budgets")
    alpha, log_a = np.polyfit(x, y, 1)
    law = PowerLaw(float(alpha), float(np.exp(log_a)))
    if draws is None:
        return FittedLaw(law, math.nan, math.nan, len(x), (np.array([alpha]), np.array([log_a])))
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(draws, dtype=float))
    fine = np.isfinite(logs).all(0)
    if not fine.any():
        raise ValueError(f"none of the {logs.shape[1]} draws has a minimum at every budget; leave budgets without out")
    alphas, log_as = np.full((2, logs.shape[1]), math.nan)
    alphas[fine], log_as[fine] = np.polyfit(x, logs[:, fine], 1)
    low, high = np.nanquantile(alphas, [(1 - SURE) / 2, (1 + SURE) / 2])
    return FittedLaw(law, float(low), float(high), len(x), (alphas, log_as))


def above_0(values: Sequence[float], what: str) -> Any:
    """Return numbers as an array; ValueError where one of them is not a number above 0. what: its name there."""
    import numpy as np

    out = np.asarray(values, dtype=float)
    if not (np.isfinite(out) & (out > 0)).all():
        raise ValueError(f"a {what} of {out[~(np.isfinite(out) & (out > 0))][0]}; give numbers above 0")
    return out


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
