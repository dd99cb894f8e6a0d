"""dots(), log_ticks(): what several figures draw in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.ticker import NullLocator


class Interval(Protocol):
    """A number with its interval: a rate or a mean."""

    @property
    def value(self) -> float:
        """The number itself."""

    @property
    def low(self) -> float:
        """The interval's lower end."""

    @property
    def high(self) -> float:
        """The interval's upper end."""


def dots(ax: Any, at: Any, found: Sequence[Interval], across: bool = False, **look: Any) -> Any:
    """Draw numbers with their intervals at positions `at`, `across` laying them along x; return matplotlib's artist.

    Nothing is drawn, and None returned, where there are no numbers.
    """
    if not len(found):
        return None
    values = np.array([f.value for f in found])
    reach = np.array([[max(0.0, f.value - f.low), max(0.0, f.high - f.value)] for f in found]).T
    error = {"xerr": reach} if across else {"yerr": reach}
    x, y = (values, at) if across else (at, values)
    return ax.errorbar(x, y, **error, elinewidth=1.0, capsize=0, **look)


def log_ticks(ax: Any, ticks: Sequence[float], base: int = 10) -> None:
    """Make the x axis logarithmic, with just these ticks, each written out as a number."""
    ax.set_xscale("log", base=base)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
