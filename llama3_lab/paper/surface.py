"""L(N, D) = E + A/N^α + B/D^β, the parametric law of Hoffmann et al. 2022, and coefficients that were published.

N parameters, D tokens, L nats a token. chinchilla.py fits it to a table of runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama3_lab.paper.facts import fact

NAMES = ("E", "A", "B", "alpha", "beta")
SETS = ("hoffmann", "besiroglu")  # published coefficients, in facts.yaml


@dataclass(frozen=True)
class Surface:
    """L(N, D) = e + a / N^alpha + b / D^beta, in nats a token; all five at least 0, the exponents above 0."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        if not (min(self.e, self.a, self.b) >= 0 and min(self.alpha, self.beta) > 0):
            raise ValueError(f"{self}: coefficients are at least 0, exponents above 0")

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the predicted loss in nats a token."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the parameters and tokens of the lowest loss with 6·N·D = flops (their eq. 4)."""
        weight = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        parameters = weight * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Return the tokens that a model of that size needs for a loss; infinity where no number would do."""
        left = loss - self.e - self.a / parameters**self.alpha
        return (self.b / left) ** (1 / self.beta) if left > 0 else math.inf

    def values(self) -> tuple[float, float, float, float, float]:
        """The five coefficients in the order of NAMES."""
        return self.e, self.a, self.b, self.alpha, self.beta


def published(name: str) -> Surface:
    """Return a published set of coefficients, one of SETS; their sources stand in facts.yaml.

    Raises:
        ValueError: if there is no such set.
    """
    if name not in SETS:
        raise ValueError(f"no published coefficients {name!r}; there are {', '.join(SETS)}")
    return Surface(*(float(fact(f"{name}.{part}").value) for part in ("e", "a", "b", "alpha", "beta")))
