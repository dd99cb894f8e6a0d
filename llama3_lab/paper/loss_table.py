"""Runs as a table of parameters, tokens and losses, in logarithms; Huber's objective of a surface on them. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama3_lab.paper.surface import Surface

if TYPE_CHECKING:
    import numpy as np

# Where a search stays, as logarithms (theta of LossTable): terms within e^±30 nats, exponents from 0.001 to 20.
BOX = ((-30.0, -30.0, -30.0, -7.0, -7.0), (30.0, 30.0, 30.0, 3.0, 3.0))


@dataclass(frozen=True)
class LossTable:
    """Runs as logarithms, N and D less their middle ones, and the objective on them.

    theta: logarithms of E, of A/N₀^α and B/D₀^β (the terms at the middle: they hang together with the exponents less
    than A and B do), of α and of β.
    """

    u: np.ndarray
    v: np.ndarray
    log_l: np.ndarray
    middle: tuple[float, float]

    @classmethod
    def of(cls, parameters: Any, tokens: Any, losses: Any) -> LossTable:
        """Return the table of these columns; ValueError, one line, where they are no runs to fit."""
        import numpy as np

        log_n, log_d, log_l = (np.log(c) for c in _columns(parameters, tokens, losses))
        middle = float(log_n.mean()), float(log_d.mean())
        return cls(log_n - middle[0], log_d - middle[1], log_l, middle)

    def pick(self, rows: np.ndarray) -> LossTable:
        """Return the runs of these numbers, with the same middle."""
        return LossTable(self.u[rows], self.v[rows], self.log_l[rows], self.middle)

    def parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted log losses, and the share of each of the three terms in the prediction."""
        import numpy as np

        theta = np.clip(theta, *BOX)
        alpha, beta = np.exp(theta[3:])
        logs = np.stack([np.full_like(self.u, theta[0]), theta[1] - alpha * self.u, theta[2] - beta * self.v])
        top = logs.max(0)
        terms = np.exp(logs - top)
        whole = terms.sum(0)
        return top + np.log(whole), terms / whole

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Return the derivatives of the predicted log losses, shape (runs, 5)."""
        import numpy as np

        (e, a, b), (alpha, beta) = self.parts(theta)[1], np.exp(np.clip(theta, *BOX)[3:])
        columns = np.stack([e, a, b, -alpha * self.u * a, -beta * self.v * b], axis=1)
        return np.where((theta > BOX[0]) & (theta < BOX[1]), columns, 0.0)

    def value(self, theta: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient."""
        import numpy as np

        residual = self.parts(theta)[0] - self.log_l
        size = np.abs(residual)
        cost = np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2)).sum()
        return float(cost), self.jacobian(theta).T @ np.clip(residual, -delta, delta)

    def start(self, alpha: float, beta: float) -> np.ndarray:
        """Return the theta that has these exponents and the E, A and B (at least 0) of least squares."""
        import numpy as np
        from scipy.optimize import nnls

        losses = np.exp(self.log_l)
        columns = np.stack([np.ones_like(self.u), np.exp(-alpha * self.u), np.exp(-beta * self.v)], axis=1)
        found, _ = nnls(columns / losses[:, None], np.ones_like(losses))
        return np.log([*np.maximum(found, 1e-3 * losses.min()), alpha, beta])

    def surface(self, theta: np.ndarray) -> Surface:
        """Return theta as coefficients."""
        import numpy as np

        theta = np.clip(theta, *BOX)
        alpha, beta = np.exp(theta[3:])
        a, b = (np.exp(theta[i] + x * middle) for i, x, middle in zip((1, 2), (alpha, beta), self.middle, strict=True))
        return Surface(float(np.exp(theta[0])), float(a), float(b), float(alpha), float(beta))

    def theta(self, surface: Surface) -> np.ndarray:
        """Return coefficients as theta; the inverse of `surface`."""
        import numpy as np

        e, a, b, alpha, beta = np.maximum(surface.values(), 1e-300)
        return np.array([np.log(e), np.log(a) - alpha * self.middle[0], np.log(b) - beta * self.middle[1],
                         np.log(alpha), np.log(beta)])  # fmt: skip


def _columns(parameters: Any, tokens: Any, losses: Any) -> list[np.ndarray]:
    """Return the three columns as arrays, checked."""
    import numpy as np

    columns = [np.asarray(c, dtype=float) for c in (parameters, tokens, losses)]
    named = dict(zip(("parameters", "tokens", "loss"), columns, strict=True))
    if len({c.shape for c in columns}) > 1 or columns[0].ndim != 1:
        raise ValueError(f"columns of {', '.join(str(c.size) for c in columns)} numbers; give three of one length")
    for name, column in named.items():
        fine = np.isfinite(column) & (column > 0)
        if not fine.all():
            at = int(np.argmin(fine))
            raise ValueError(f"run {at + 1}: {name} is {column[at]}; it must be a number above 0")
    if len(columns[0]) < 6:
        raise ValueError(f"{len(columns[0])} runs; five coefficients need six or more")
    for name in ("parameters", "tokens"):
        if (different := len(np.unique(named[name]))) < 3:
            raise ValueError(f"{different} different numbers of {name}; with fewer than three, E, a factor and an "
                             "exponent cannot be told apart")  # fmt: skip
    return columns
