"""FLOPs, hours, energy and money of a pre-training run: counted, not estimated, and beside the estimate 6ND. No torch.

A multiplication and an addition are two FLOPs. Forward, a token meets every weight of every matrix once: 2 a weight
(the embedding is looked up, not multiplied). Attention costs 4·h·e for each pair of a query and a key that it
looks at, in each layer: 2·h·e for the score, 2·h·e for the weighted sum. A row of T tokens has T² pairs, or
T(T+1)/2 of them that are not in a token's future ("causal", what a good kernel computes). Backward costs twice the
forward pass: one product for the gradient of the inputs, one for that of the weights. Not counted: norms, rotations,
softmax, the optimizer (all of order parameters or activations, without a factor of the width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.facts import fact

BACKWARD = 2  # times the forward pass
HOUR = 3600.0
TERA = 1e12


def forward_flops(architecture: Architecture, row: int, causal: bool = True) -> int:
    """Return the FLOPs of one forward pass over one row of `row` tokens; causal: only pairs that are not masked.

    Raises:
        ValueError: if `row` is below 1.
    """
    if row < 1:
        raise ValueError(f"a row of {row} tokens; it must have at least 1")
    return 2 * architecture.matrix_parameters() * row + attention_flops(architecture, row, causal)


def attention_flops(architecture: Architecture, row: int, causal: bool = True) -> int:
    """Return the part of `forward_flops` that scores and weighted sums take; it grows with the square of the row."""
    pairs = row * (row + 1) // 2 if causal else row * row
    return 4 * architecture.layers * architecture.heads * architecture.head_dim * pairs


def training_flops(architecture: Architecture, row: int, causal: bool = True) -> int:
    """Return the FLOPs of a forward and a backward pass over one row; nothing is recomputed."""
    return (1 + BACKWARD) * forward_flops(architecture, row, causal)


def run_flops(architecture: Architecture, tokens: float, row: int, causal: bool = True) -> float:
    """Return the FLOPs of training on `tokens` tokens in rows of `row`."""
    return training_flops(architecture, row, causal) * (tokens / row)


def run_tokens(architecture: Architecture, flops: float, row: int, causal: bool = True) -> float:
    """Return the tokens, in rows of `row`, that a training of `flops` FLOPs sees; the inverse of `run_flops`."""
    return flops / training_flops(architecture, row, causal) * row


def six_nd(parameters: float, tokens: float) -> float:
    """Return the usual estimate of a training's FLOPs, 6 for each parameter and token."""
    return 6.0 * parameters * tokens


def decode_flops(architecture: Architecture, context: int) -> int:
    """Return the FLOPs of one more token after `context - 1` others whose keys and values are cached."""
    if context < 1:
        raise ValueError(f"a context of {context} tokens; it must have at least 1")
    pairs = architecture.layers * architecture.heads * architecture.head_dim * context
    return 2 * architecture.matrix_parameters() + 4 * pairs


# -- machines


def mfu(tflops: float, peak_tflops: float) -> float:
    """Return the model FLOPs utilisation, a share: what a GPU achieves of its peak, both in TFLOPs a second.

    Raises:
        ValueError: if the achieved figure is not between 0 and the peak.
    """
    if not 0 <= tflops <= peak_tflops or peak_tflops <= 0:
        raise ValueError(f"{tflops} TFLOPs of a peak of {peak_tflops}; a GPU achieves between 0 and its peak")
    return tflops / peak_tflops


def gpu_hours(flops: float, tflops: float, effective: float = 1.0) -> float:
    """Return the GPU-hours that `flops` take at `tflops` TFLOPs a second, `effective` being the share of time spent so.

    Raises:
        ValueError: if the rate is not above 0, or the share not in (0, 1].
    """
    if tflops <= 0 or not 0 < effective <= 1:
        raise ValueError(f"{tflops} TFLOPs for {effective} of the time; give a rate above 0 and a share in (0, 1]")
    return flops / (tflops * TERA * HOUR * effective)


def achieved_tflops(flops: float, hours: float) -> float:
    """Return the TFLOPs a second that each GPU-hour achieved; the inverse of `gpu_hours`."""
    if hours <= 0:
        raise ValueError(f"{hours} GPU-hours; give more than 0")
    return flops / (hours * HOUR * TERA)


@dataclass(frozen=True)
class Machine:
    """What a run is computed on, and what it costs.

    gpus: how many. peak_tflops: of one GPU. mfu: share of the peak while it trains. effective: share of the time
    that it trains. watts: of one GPU at work. overhead: watts drawn by the whole site for each watt of a GPU (1: none
    counted). price: of one GPU-hour, in whatever money; it is yours to state.
    """

    gpus: int
    peak_tflops: float
    mfu: float
    effective: float
    watts: float
    price: float
    overhead: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gpus", "peak_tflops", "watts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"machine: {name} is {getattr(self, name)}; it must be above 0")
        for name in ("mfu", "effective"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"machine: {name} is {getattr(self, name)}; it is a share, above 0 and at most 1")
        if self.price < 0 or self.overhead < 1:
            raise ValueError(f"machine: price {self.price} and overhead {self.overhead}; at least 0 and at least 1")


@dataclass(frozen=True)
class Bill:
    """What a run takes: GPU-hours, days on all GPUs, energy in MWh, and money in the price's unit."""

    flops: float
    gpu_hours: float
    days: float
    mwh: float
    cost: float


def bill(flops: float, machine: Machine) -> Bill:
    """Return the bill for `flops` on that machine.

    Raises:
        ValueError: if `flops` is not a number of at least 0.
    """
    if not (flops >= 0 and math.isfinite(flops)):
        raise ValueError(f"{flops} FLOPs; give a number of at least 0")
    hours = gpu_hours(flops, machine.peak_tflops * machine.mfu, machine.effective)
    return bill_of_hours(hours, machine, flops)


def bill_of_hours(hours: float, machine: Machine, flops: float = math.nan) -> Bill:
    """Return the bill for GPU-hours that are known already (a model card's); `flops` is only carried along."""
    mwh = hours * machine.watts * machine.overhead / 1e6
    return Bill(flops, hours, hours / machine.gpus / 24, mwh, hours * machine.price)


def meta_machine(price: float) -> Machine:
    """Return the machine of §3.3 at its full size: 16K H100 as in row 2 of table 4, at a price of yours a GPU-hour."""
    row, peak = table4()[1], float(fact("h100.peak_tflops").value)
    effective = float(fact("training.effective_share").value) / 100
    return Machine(row.gpus, peak, mfu(row.tflops, peak), effective, float(fact("cluster.gpu_watts").value), price)


# -- table 4


@dataclass(frozen=True)
class Configuration:
    """A row of table 4. tp, cp, pp, dp: sizes of the four kinds of parallelism; row: tokens; batch: rows a DP group.

    tflops, mfu: as printed, of one GPU; mfu is a share.
    """

    gpus: int
    tp: int
    cp: int
    pp: int
    dp: int
    row: int
    batch: int
    tflops: float
    mfu: float

    @property
    def product(self) -> int:
        """The GPUs that the four sizes make."""
        return self.tp * self.cp * self.pp * self.dp

    @property
    def tokens(self) -> int:
        """The tokens of a batch."""
        return self.dp * self.batch * self.row

    def mfu_range(self, peak_tflops: float, rounded_to: float = 10.0) -> tuple[float, float]:
        """Return the lowest and highest MFU that fit the printed TFLOPs, were these rounded to `rounded_to`."""
        half = rounded_to / 2
        return (self.tflops - half) / peak_tflops, (self.tflops + half) / peak_tflops

    def seconds(self, architecture: Architecture, causal: bool = True) -> float:
        """Return the seconds that one step takes at the printed TFLOPs."""
        return run_flops(architecture, self.tokens, self.row, causal) / (self.gpus * self.tflops * TERA)


def table4() -> tuple[Configuration, ...]:
    """Return the three rows of table 4 as printed (the early copy's DP of 8 in row 3)."""
    names = ("gpus", "tp", "cp", "pp", "dp", "seq", "batch")
    out = []
    for n in (1, 2, 3):
        gpus, tp, cp, pp, dp, row, batch = (int(fact(f"table4.row{n}.{name}").value) for name in names)
        tflops, share = float(fact(f"table4.row{n}.tflops").value), float(fact(f"table4.row{n}.mfu").value) / 100
        out.append(Configuration(gpus, tp, cp, pp, dp, row, batch, tflops, share))
    return tuple(out)
