"""costs(): how long a recipe takes on a card, and what that costs; always a range, for none knows it better. No torch.

Training, in FLOPs: a forward pass (attention included, `scale.py`); with checkpointing another; a backward pass, which
costs two where all weights are trained and one with LoRA, whose frozen weights need no gradient; and the reference's
forward pass in DPO. A card achieves some share of its peak: SHARE, low and high, wide enough to hold the published
rows. A 16-bit answer of one token reads all weights and the cache once: with a small batch the card's memory decides,
with a large one its arithmetic, and the slower of the two counts. Rents are assumed, not measured (gpus.yaml).
"""

from __future__ import annotations

from dataclasses import dataclass

from llama3_lab.paper import activations, scale, weights
from llama3_lab.paper.catalogue import Gpu
from llama3_lab.paper.recipe import Recipe

SHARE = (0.25, 0.70)  # of the peak FLOPs; the published rows lie from 0.5 to 0.7, small batches and plain code below
READING = (0.3, 0.8)  # of the card's bandwidth, when writing token by token
ADAPTERS = 6  # FLOPs of an adapter weight and token, both passes


@dataclass(frozen=True)
class Costs:
    """What so many examples take, low and high. hours: GPU-hours; usd: at the assumed rents, (0, 0) where unknown."""

    examples: int
    flops: float
    hours: tuple[float, float]
    usd: tuple[float, float]


def costs(recipe: Recipe, gpu: Gpu, examples: int) -> Costs | None:
    """Return what `examples` rows take (pairs, where a recipe counts pairs); None for a card of unknown speed.

    Raises:
        ValueError: if `examples` is below 1.
    """
    if examples < 1:
        raise ValueError(f"examples is {examples}; give a whole number of at least 1")
    if not gpu.tflops:
        return None
    rows = examples * recipe.rows / recipe.micro_batch
    if recipe.trains:
        flops = row_flops(recipe) * rows
        hours = tuple(scale.gpu_hours(flops, gpu.tflops, share) for share in reversed(SHARE))
    else:
        flops = scale.forward_flops(recipe.model, recipe.seq) * rows
        hours = tuple(_writing_hours(recipe, gpu, rows, i) for i in (1, 0))
    low, high = hours
    return Costs(examples, flops, (low, high), (low * gpu.usd_hour[0], high * gpu.usd_hour[1]))


def row_flops(recipe: Recipe) -> float:
    """Return the FLOPs of one training row, recomputation included."""
    forward = scale.forward_flops(recipe.model, recipe.seq)
    passes = 1 + (2 if recipe.method == "full" else 1) + recipe.checkpointing
    passes += recipe.reference_kind in ("second model", "adapter off")
    return float(passes * forward + ADAPTERS * weights.adapter_weights(recipe) * recipe.seq)


def _writing_hours(recipe: Recipe, gpu: Gpu, rows: float, end: int) -> float:
    """Hours of writing all answers, the batch's rows at a time; end: 0 the slow end of the range, 1 the quick one."""
    written = recipe.seq - recipe.prompt
    arithmetic = scale.gpu_hours(scale.forward_flops(recipe.model, recipe.seq) * recipe.rows, gpu.tflops, SHARE[end])
    read = (weights.base_bytes(recipe) + activations.cache_bytes(recipe) / 2) * written  # the cache grows: half of it
    reading = read / (gpu.bandwidth * READING[end]) / scale.HOUR if gpu.bandwidth else 0.0
    return max(arithmetic, reading) * rows / recipe.rows
