"""When is a small model, trained for longer than is optimal, the right choice? Training and serving, counted together.

Of all models that reach one loss, take the one whose training and serving together cost least:

    cost(N) = 6·N·D(N) + 2·N·S·w,   D(N): the tokens with which N parameters reach the loss

S tokens are served, prompts and answers alike, and each costs a forward pass. w is what a FLOP costs in serving, in
FLOPs of training: above 1 where serving uses its machines worse. Where the cost is lowest its slope is zero, which
gives S in closed form. With ρ = (α·A/N^α) / (β·B/D^β), how much faster the loss falls with a per cent of parameters
than with a per cent of tokens:

    S·w = 3·D·(ρ − 1)

ρ = 1 is compute-optimal: nobody need be served. ρ > 1: trained for longer, and right for S served tokens. ρ < 1: too
large for its tokens; no serving makes it right. Assumptions: dense model, no cost of long contexts, the form of the law
holds far outside its data, and the loss is all that counts. (The idea: Sardana et al. 2024, arXiv:2401.00448.)
"""

from __future__ import annotations

import math

from llama3_lab.paper.chinchilla import Surface

TRAIN, SERVE = 6.0, 2.0  # FLOPs for each parameter and token


def balance(surface: Surface, parameters: float, tokens: float) -> float:
    """Return ρ: 1 where parameters and tokens are in balance, above 1 where tokens are many for the parameters."""
    by_size = surface.alpha * surface.a / parameters**surface.alpha
    return by_size / (surface.beta * surface.b / tokens**surface.beta)


def right_served(surface: Surface, parameters: float, tokens: float, weight: float = 1.0) -> float:
    """Return how many served tokens make this size and training the cheapest of all that reach its loss.

    nan where there is no such number: the model is larger than is compute-optimal. weight: w above, more than 0.

    Raises:
        ValueError: if a number is not above 0.
    """
    _check(parameters=parameters, tokens=tokens, weight=weight)
    rho = balance(surface, parameters, tokens)
    return TRAIN / SERVE * tokens * (rho - 1) / weight if rho >= 1 else math.nan


def total_flops(surface: Surface, loss: float, parameters: float, served: float, weight: float = 1.0) -> float:
    """Return the cost of reaching `loss` with that size and serving that many tokens; infinite where it cannot."""
    return TRAIN * parameters * surface.tokens_for(loss, parameters) + SERVE * parameters * served * weight


def cheapest(surface: Surface, loss: float, served: float, weight: float = 1.0) -> tuple[float, float]:
    """Return the parameters and tokens that reach `loss` at least cost when `served` tokens are served.

    Raises:
        ValueError: if no model reaches the loss: it is at or below E.
    """
    from scipy.optimize import minimize_scalar

    _check(weight=weight)
    if not loss > surface.e or served < 0:
        raise ValueError(f"loss {loss:g} with {served:g} served tokens: it must be above E = {surface.e:g}, which no "
                         "model reaches, and tokens at least 0")  # fmt: skip
    least = math.log((surface.a / (loss - surface.e)) ** (1 / surface.alpha))  # with endless data

    def cost(log_n: float) -> float:
        return math.log(total_flops(surface, loss, math.exp(log_n), served, weight))

    found = minimize_scalar(cost, bounds=(least + 1e-9, least + 15), method="bounded", options={"xatol": 1e-10})
    parameters = math.exp(found.x)
    return parameters, surface.tokens_for(loss, parameters)


def break_even(surface: Surface, parameters: float, tokens: float, weight: float = 1.0) -> float:
    """Return how many served tokens make up for the dearer training, against the cheapest training to the same loss.

    From there on this model has cost less than the compute-optimal one of equal loss, though a size in between may
    have cost less still (`right_served` is where none has). nan where this model is not the smaller of the two.
    """
    _check(parameters=parameters, tokens=tokens, weight=weight)
    other, read = cheapest(surface, surface.loss(parameters, tokens), 0.0)
    dearer = TRAIN * (parameters * tokens - other * read)
    return dearer / (SERVE * weight * (other - parameters)) if other > parameters else math.nan


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; give a number above 0")
