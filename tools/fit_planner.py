"""Fit the planner's margin of reserved memory on published measurements, and show how far its peaks are from them.

    python tools/fit_planner.py published_peaks.csv

The file has one measured fine-tuning a row: model, method, sequence length, micro-batch, adapters, and the peak that
PyTorch allocated (`peak_gib`), what was allocated between steps (`post_alloc_gib`), and in `other` what nvidia-smi saw.
The peak has no constant that is fitted. What nvidia-smi sees above it is modelled as

    CUDA's context (assumed) + FRAGMENTS · activations + FRAGMENTS_LOGITS · logits

with both shares at least 0, by least squares. Rows whose peak is above 85 % of the card are left out: there PyTorch
gives cached blocks back before it fails, so they tell of the card, not of the recipe. Nothing is written; the shares
belong into llama3_lab/paper/memory.py, two digits each, and a test holds them to what this prints.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from llama3_lab.paper import memory
from llama3_lab.paper.catalogue import GIB, MIB, find_gpu, find_model
from llama3_lab.paper.memory import Plan, plan
from llama3_lab.paper.recipe import Logits, Method, Recipe, Stage, read_targets

METHODS: dict[str, Method] = {"full": "full", "lora": "lora", "qlora-nf4": "qlora"}
STAGES: dict[str, Stage] = {"SFT": "sft", "RM": "reward", "DPO": "dpo"}
CROWDED = 0.85  # of a card's memory


@dataclass(frozen=True)
class Measured:
    """A published row: what was run, its plan, and what was measured, in GiB. used: by nvidia-smi, nan if not given."""

    name: str
    plan: Plan
    peak: float
    static: float
    used: float

    @property
    def error(self) -> float:
        """The planned peak against the measured one, as a share: above 0 where the plan is too high."""
        return self.plan.peak / GIB / self.peak - 1


def read(path: Path) -> list[Measured]:
    """Return the rows of a file of published peaks, planned.

    Raises:
        ValueError: if a column is missing or a row cannot be planned; the line is named.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = []
    for number, row in enumerate(rows, 2):
        try:
            found.append(_measured(row))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return found


def _measured(row: dict[str, str]) -> Measured:
    recipe = recipe_of(row)
    used = re.search(r"nvidia-smi used ([\d.]+) MiB", row["other"])
    name = f"{row['model'].rpartition('/')[2]} {row['method']}, {recipe.logits} logits"
    static = float(row["post_alloc_gib"] or "nan")
    smi = float(used[1]) * MIB / GIB if used else float("nan")
    return Measured(name, plan(recipe, find_gpu(row["gpu"])), float(row["peak_gib"]), static, smi)


def recipe_of(row: dict[str, str]) -> Recipe:
    """Return what a row says was run. Logits are chunked where the loss is fused with the output layer (FLCE)."""
    model = find_model(row["model"])[1]
    logits: Logits = "chunked" if "FLCE" in row["fused_ce"] else "full"
    recipe = Recipe(model, STAGES[row["stage"]], METHODS[row["method"]], int(row["seq_len"]), int(row["micro_batch"]),
                    checkpointing=row["grad_ckpt"] == "1", logits=logits)  # fmt: skip
    if recipe.method == "full":
        return recipe
    return Recipe(**{**recipe.__dict__, "lora_r": int(float(row["lora_r"])),
                     "lora_targets": read_targets(row["lora_targets"])})  # fmt: skip


def roomy(rows: Sequence[Measured]) -> list[Measured]:
    """Return the rows that the margin is fitted on: nvidia-smi's figure is known, and the card was not nearly full."""
    return [r for r in rows if r.used == r.used and r.peak < CROWDED * r.plan.gpu.gib]


def shares(rows: Sequence[Measured]) -> tuple[float, float]:
    """Return FRAGMENTS and FRAGMENTS_LOGITS by least squares over the roomy rows, both at least 0."""
    fitted = roomy(rows)
    blocks = [[_most(r.plan, "activations"), _most(r.plan, "logits")] for r in fitted]
    above = [r.used - r.peak - memory.CONTEXT_GIB for r in fitted]
    found, _ = nnls(np.array(blocks), np.array(above))
    return float(found[0]), float(found[1])


def _most(planned: Plan, part: str) -> float:
    return planned.most.get(part, 0.0) / GIB


def main(argv: Sequence[str] | None = None) -> int:
    """Print every row's peak and what was reserved, then the fitted shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE.csv", help="published peaks, one measured run a row")
    rows = read(parser.parse_args(argv).file)
    print(f"{'':<40} {'peak GiB':>9} {'planned':>8} {'error':>7}   {'static':>7} {'planned':>8}   {'used':>6} planned")
    for r in rows:
        print(f"{r.name:<40} {r.peak:9.3f} {r.plan.peak / GIB:8.3f} {r.error:+7.2%}   {r.static:7.3f} "
              f"{r.plan.static / GIB:8.3f}   {r.used:6.2f} {r.plan.reserved / GIB:7.2f}")  # fmt: skip
    errors = [abs(r.error) for r in rows]
    print(f"peak, {len(rows)} rows: mean error {sum(errors) / len(errors):.2%}, worst {max(errors):.2%}")
    blocks, logits = shares(rows)
    print(f"margin, {len(roomy(rows))} rows: FRAGMENTS = {blocks:.2f} (in use: {memory.FRAGMENTS}), "
          f"FRAGMENTS_LOGITS = {logits:.2f} (in use: {memory.FRAGMENTS_LOGITS})")  # fmt: skip
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"fit_planner: error: {error}")
