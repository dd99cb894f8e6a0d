"""advice(): which settings to change first when a recipe does not fit on a card. No torch.

The order is that of the price: first what costs nothing, then time, then precision, then what changes the training
itself. A change is kept if it lowers the peak by 1 % or more; after each one the search begins anew with the cheapest,
until the recipe fits. In the end, whatever turned out not to be needed is dropped, the dearest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama3_lab.paper.catalogue import Gpu
from llama3_lab.paper.memory import Plan, plan
from llama3_lab.paper.recipe import Recipe

WORTH = 0.01  # of the peak: a change that saves less is not worth a line
SHORTEST = 128  # tokens a row that are still worth training on
Try = tuple[str, Any]  # a setting of the recipe, and a value for it


@dataclass(frozen=True)
class Change:
    """A setting to change. setting: as the command line has it; price: what it costs; plan: with all up to this one."""

    setting: str
    price: str
    plan: Plan


def advice(recipe: Recipe, gpu: Gpu) -> list[Change]:
    """Return the changes that make the recipe fit, cheapest first; empty where it fits already.

    Where nothing helps enough, the last change's plan still does not fit.
    """
    made: dict[str, Any] = {}
    while not plan(replace(recipe, **made), gpu).fits and (found := _next(replace(recipe, **made), gpu)):
        made[found[0]] = found[1]
    if plan(replace(recipe, **made), gpu).fits:
        for name in sorted(made, key=_rank, reverse=True):
            fewer = {n: v for n, v in made.items() if n != name}
            made = fewer if plan(replace(recipe, **fewer), gpu).fits else made
    changes, sofar = [], {}
    for name in sorted(made, key=_rank):
        sofar[name] = made[name]
        setting, price = _words(name, made[name])
        changes.append(Change(setting, price, plan(replace(recipe, **sofar), gpu)))
    return changes


def _next(recipe: Recipe, gpu: Gpu) -> Try | None:
    now = plan(recipe, gpu).peak
    for propose in STEPS.values():
        for name, value in propose(recipe):
            if plan(replace(recipe, **{name: value}), gpu).peak <= (1 - WORTH) * now:
                return name, value
    return None


def _halves(name: str, value: int, least: int) -> list[Try]:
    return [(name, half) for i in range(1, 32) if (half := value >> i) >= least]


def _rank(name: str) -> int:
    return list(STEPS).index(name)


def _words(name: str, value: Any) -> tuple[str, str]:
    """Return how the command line says it, and what it costs."""
    price = PRICES.get(f"{name} {value}", PRICES.get(name, ""))
    return f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"), price


STEPS: dict[str, Callable[[Recipe], Sequence[Try]]] = {
    "logits": lambda r: [("logits", "chunked")] if r.trains else [],
    "reference": lambda r: [("reference", "precomputed")] if r.stage == "dpo" else [],
    "micro_batch": lambda r: _halves("micro_batch", r.micro_batch, 1),
    "checkpointing": lambda r: [("checkpointing", True)] if r.trains else [],
    "optimizer": lambda r: [("optimizer", "adamw_8bit")] if r.trains and r.optimizer != "sgd" else [],
    "method": lambda r: _methods(r),
    "seq": lambda r: _halves("seq", r.seq, max(SHORTEST, 2 * r.prompt)),
}
PRICES = {
    "logits": "nothing: the same loss, a few rows of logits at a time",
    "reference": "one pass over the data beforehand",
    "micro_batch": "some speed; accumulate gradients over more steps and the batch stays",
    "checkpointing": "a forward pass more in each step: about a third of the time",
    "optimizer": "states in 8 bits: hardly seen in the result",
    "method lora": "another training: small matrices learn, beside frozen ones",
    "method qlora": "a base in 4 bits: slower, and a little worse",
    "seq": "longer rows are cut, or left out",
}


def _methods(recipe: Recipe) -> list[Try]:
    if recipe.method == "full":
        return [("method", "lora")] if recipe.trains and recipe.reference != "second model" else []
    return [("method", "qlora")] if recipe.method == "lora" and recipe.dtype == "bf16" else []
