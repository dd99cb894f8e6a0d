"""plan(): the peak of GPU memory of a recipe, by part; fit(): the largest batch and length that a card holds. No torch.

A step has phases, and each phase its own bytes. The peak is the largest phase, not the sum of all parts: when
the logits are large the gradients do not exist yet, and when the optimizer works the activations are gone.

    logits          everything that the layers kept, and the logits
    reference       (DPO) everything that the policy's pass kept, and a pass without gradients
    layer           everything kept, and one layer's working bytes: at the last layer, with which the backward pass
                    begins, and at the first, by when most gradients are there
    embedding       all gradients; tied weights get two for a moment
    optimizer step  all gradients, and what the step adds

Under all of them: weights, adapters, optimizer states (from the second step on), and cuBLAS's workspace: one for the
forward pass's thread and one for the backward pass's. `weights.py` and `activations.py` derive the parts.

What PyTorch reserves is more: blocks that are free but do not fit, and CUDA's own context. That margin is fitted on
published measurements (tools/fit_planner.py), and is not part of the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llama3_lab.paper import activations as act
from llama3_lab.paper import weights
from llama3_lab.paper.catalogue import GIB, Gpu, find_gpu
from llama3_lab.paper.recipe import Recipe

HANDLES = 2  # of cuBLAS: the forward pass's thread and the backward pass's
CONTEXT_GIB = 0.5  # CUDA's context and kernels; assumed, for the published rows cannot tell it from what follows
# Fitted by tools/fit_planner.py on the published rows that give both figures; see there.
FRAGMENTS = 0.16  # of kept and working bytes: free blocks of a size that nobody asks for
FRAGMENTS_LOGITS = 0.85  # of the logits: a few huge blocks, and none fits in the place of another
SLACK = 0.02  # of a card's memory that must stay free: below that, the allocator's last resort fails
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "reference", "kv cache", "workspace")


@dataclass(frozen=True)
class Plan:
    """What a recipe needs.

    parts: bytes at the peak, by part; they add up to the peak. phase: which phase that is; phases: every phase's
    bytes. most: each part's bytes in the phase that has most of it. static: weights, adapters, optimizer states, a
    second model and workspace, in bytes: what stays after a step. reserved: the peak with the margin. fits: whether the
    peak, CUDA's context and a little slack fit on the card.
    """

    recipe: Recipe
    gpu: Gpu
    phase: str
    parts: dict[str, float]
    phases: dict[str, float]
    most: dict[str, float]
    static: float
    reserved: float

    @property
    def peak(self) -> float:
        """Bytes that PyTorch has allocated at the worst moment."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether it runs on the card, if need be with a defragmented allocator."""
        return self.peak / GIB + CONTEXT_GIB <= self.gpu.gib * (1 - SLACK)

    @property
    def tight(self) -> bool:
        """Whether it fits, but what PyTorch would like to reserve does not."""
        return self.fits and self.reserved / GIB > self.gpu.gib


def plan(recipe: Recipe, gpu: Gpu | None = None) -> Plan:
    """Return the plan of a recipe on a card (default: one of 24 GB)."""
    card = gpu or find_gpu("24GB")
    still = _static(recipe, card)
    moving = _training(recipe) if recipe.trains else _sampling(recipe)
    phases = {name: {**still, **parts} for name, parts in moving.items()}
    sums = {name: sum(parts.values()) for name, parts in phases.items()}
    worst = max(sums, key=lambda name: sums[name])
    parts = {part: amount for part in PARTS if (amount := phases[worst].get(part, 0.0))}
    most = {part: max(p.get(part, 0.0) for p in phases.values()) for part in PARTS}
    return Plan(recipe, card, worst, parts, sums, most, sum(still.values()), sums[worst] + _margin(most))


def _margin(most: Mapping[str, float]) -> float:
    """Bytes that PyTorch reserves above the peak: a phase's blocks stay reserved, whether or not it was the worst."""
    blocks = most["activations"] + most["kv cache"]
    return CONTEXT_GIB * GIB + FRAGMENTS * blocks + FRAGMENTS_LOGITS * most["logits"]


def _static(recipe: Recipe, gpu: Gpu) -> dict[str, float]:
    training = recipe.trains
    second = recipe.reference_kind == "second model"
    return {
        "weights": weights.base_bytes(recipe),
        "adapters": weights.adapter_bytes(recipe) if training else 0.0,
        "optimizer": weights.state_bytes(recipe) if training else 0.0,
        "reference": weights.base_bytes(recipe) if second else 0.0,
        "workspace": gpu.workspace * (HANDLES if training else 1),
    }


def _training(recipe: Recipe) -> dict[str, dict[str, float]]:
    kept, beside = act.kept(recipe), act.around(recipe)
    still = weights.state_bytes(recipe)
    all_gradients = weights.gradient_bytes(recipe)
    copies, some = _autocast_copies(recipe)
    table = _table_gradient(recipe)
    first = kept / recipe.model.layers  # what is still kept when the first layer's turn comes, last of all
    logits = act.logits(recipe)
    early = table if recipe.logits == "chunked" else 0.0  # a chunked loss makes the output's gradient at once
    phases = {
        "logits": {"activations": kept + act.head(recipe) + beside + copies, "logits": logits, "gradients": early},
        "last norm": {"activations": kept + act.last_norm(recipe) + beside + some, "gradients": table},
        "last layer": {"activations": kept + act.working(recipe) + beside + some, "gradients": table},
        "first layer": {"activations": first + act.working(recipe) + beside + some, "gradients": _late(recipe)},
        "embedding": {"activations": recipe.stream_size * recipe.model.width * recipe.tokens + beside,
                      "gradients": all_gradients + (table if recipe.model.tied else 0.0)},
        "optimizer step": {"gradients": all_gradients, "optimizer": still + weights.step_bytes(recipe)},
    }  # fmt: skip
    if recipe.reference_kind in ("second model", "adapter off"):
        phases["reference"] = _reference(recipe, kept + act.head(recipe) + beside + copies)
    return phases


def _reference(recipe: Recipe, waiting: float) -> dict[str, float]:
    """The reference's pass, without gradients, while everything that the policy's pass kept waits."""
    held = act.KEPT_LOGPS * recipe.model.vocabulary * recipe.tokens if recipe.logits == "full" else 0.0
    transient = max(act.forward_only(recipe), act.head(recipe) + act.logits(recipe, backward=False))
    second = weights.base_bytes(recipe) if recipe.reference_kind == "second model" else 0.0
    return {"activations": waiting, "logits": held, "reference": transient + second}


def _sampling(recipe: Recipe) -> dict[str, dict[str, float]]:
    read = replace(recipe, seq=recipe.prompt or recipe.seq, prompt=0)
    cache, working = act.cache_bytes(recipe), act.forward_only(read)
    one = working / read.seq  # one position of every row
    return {
        "reading the prompt": {"kv cache": cache, "activations": working, "logits": act.logits(recipe)},
        "writing": {"kv cache": cache, "activations": one, "logits": act.logits(recipe)},
    }


def _autocast_copies(recipe: Recipe) -> tuple[float, float]:
    """16-bit copies of the fp32 weights that are trained, which autocast makes: at the loss, and in a layer's backward.

    Autocast holds them all until the forward pass ends, and with it a fused loss. After that only what the backward
    pass needs is left: with checkpointing the output layer's, and then one layer's at a time. Fused adapters have none.
    """
    if not recipe.autocast or weights.trained_size(recipe) < 4 or act.fused_lora(recipe):
        return 0.0, 0.0
    output = 2.0 * recipe.model.vocabulary * recipe.model.width if recipe.method == "full" else 0.0
    layers = weights.adapter_weights(recipe) if recipe.method != "full" else weights.quantized(recipe)
    everything = 2.0 * layers + output
    if not recipe.checkpointing:
        return everything, everything - output
    return (everything if recipe.fused else output), 2.0 * layers / recipe.model.layers


def _table_gradient(recipe: Recipe) -> float:
    """The gradient of the output layer (tied: of the one table), which the backward pass makes first."""
    if recipe.method != "full":
        return 0.0
    rows = 1 if recipe.stage == "reward" else recipe.model.vocabulary
    return float(rows * recipe.model.width * weights.trained_size(recipe))


def _late(recipe: Recipe) -> float:
    """Gradients when the first layer's turn comes: all but its own and the embedding's."""
    total = weights.gradient_bytes(recipe)
    if recipe.method != "full":
        return total * (1 - 1 / recipe.model.layers)
    parts = recipe.model.parts()
    own = (parts["attention"] + parts["ffn"]) / recipe.model.layers
    embedding = 0 if recipe.model.tied and recipe.stage != "reward" else parts["embedding"]
    return total - weights.trained_size(recipe) * (own + embedding)


def fit(recipe: Recipe, gpu: Gpu, longest: int = 131_072) -> tuple[Plan | None, Plan | None]:
    """Return the plan with the largest micro-batch at the recipe's length, and that with the longest rows at its batch.

    None where not even one row, or one token, fits. longest: where the search for a length stops, in tokens.
    """
    def at_batch(n: int) -> Plan:
        return plan(replace(recipe, micro_batch=n), gpu)

    def at_length(n: int) -> Plan:
        return plan(replace(recipe, seq=n), gpu)

    return _largest(at_batch, 1, 65_536), _largest(at_length, recipe.prompt + 1, longest)


def _largest(make: Callable[[int], Plan], low: int, high: int) -> Plan | None:
    """Return the plan of the largest number from low to high that fits; bytes grow with it, so halving finds it."""
    if not make(low).fits:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if make(middle).fits else (low, middle - 1)
    return make(low)
