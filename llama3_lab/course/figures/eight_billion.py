"""Figures of the lesson on 8B, each with its text twin: stages on a card, published peaks; and what fits, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llama3_lab import placement
from llama3_lab.course.figures.memory import bars
from llama3_lab.course.views import COLORS, ReportFigure, styled
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.catalogue import GIB, Gpu, find_gpu
from llama3_lab.paper.costs import costs
from llama3_lab.paper.gpu_runs import Published
from llama3_lab.paper.memory import CONTEXT_GIB, Plan, plan
from llama3_lab.placement import Method, Placement, StagePlace, needed_gib
from llama3_lab.profiles import Profile

# What is drawn together: parts of a plan, and the colour and hatch of their bar.
GROUPS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "weights": (("weights", "reference"), "blue", ""),
    "adapters & states": (("adapters", "gradients", "optimizer", "whole modules"), "purple", ".."),
    "activations": (("activations",), "green", "\\\\"),
    "logits": (("logits",), "gray", "++"),
    "kv cache": (("kv cache",), "ochre", "xx"),
    "CUDA": (("workspace",), "orange", "//"),  # and its context
}
METHODS: Mapping[str, Method] = {"LoRA": "lora", "QLoRA": "qlora"}
ROWS = 1000  # that a published speed is compared over; any number gives the same


def grouped(planned: Plan) -> dict[str, float]:
    """Return GiB by group; they add up to what must be on the card, CUDA's context included."""
    out = {name: sum(planned.parts.get(part, 0.0) for part in parts) / GIB for name, (parts, _, _) in GROUPS.items()}
    out["CUDA"] += CONTEXT_GIB
    return out


@styled
def figure_stages(placements: Mapping[str, Placement]) -> ReportFigure:
    """Draw a panel for each placement: what each stage needs at its peak, by part, and the card's memory as a line."""
    heights = [len(p.stages) for p in placements.values()]
    figure = ReportFigure(figsize=(9.6, 1.4 + 0.46 * sum(heights) + 0.35 * len(heights)), layout="constrained")
    axes = figure.subplots(len(placements), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (title, placed) in zip(axes, placements.items(), strict=True):
        _stages(ax, placed.stages)
        ax.axvline(placed.gpu.gib, color=COLORS["ink"], linewidth=1.2, linestyle=(0, (1, 2)), zorder=1.5)
        ax.set_title(f"{title} (dotted: its {placed.gpu.gib:.1f} GiB)", loc="left")
    longest = max(max(needed_gib(s.plan) for s in p.stages) for p in placements.values())
    axes[0].set_xlim(0, 1.3 * longest)
    axes[-1].set_xlabel("GiB on the card at the peak")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    figure.twin = describe_stages(placements)
    return figure


def _stages(ax: Any, stages: Sequence[StagePlace]) -> None:
    left = np.zeros(len(stages))
    for name, (_, color, hatch) in GROUPS.items():
        sizes = np.array([grouped(s.plan)[name] for s in stages])
        ax.barh(range(len(stages)), sizes, left=left, height=0.66, color=COLORS[color], hatch=hatch, label=name,
                edgecolor=COLORS["plate"], linewidth=0.6)  # fmt: skip
        left = left + sizes
    for i, s in enumerate(stages):
        ax.text(left[i], i, f" {left[i]:.1f}, {_what(s)}", va="center", fontsize=8.5,
                bbox={"facecolor": COLORS["plate"], "edgecolor": "none", "pad": 1.0})  # fmt: skip
    ax.set_yticks(range(len(stages)), [s.stage for s in stages])
    ax.set_ylim(len(stages) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _what(s: StagePlace) -> str:
    unit = placement.UNITS[s.stage] + ("s" if s.micro_batch > 1 else "")
    return f"{s.micro_batch} {unit} of {s.seq:,}"


def describe_stages(placements: Mapping[str, Placement]) -> str:
    """Return the facts of `figure_stages` as text."""
    lines = []
    for title, placed in placements.items():
        lines.append(f"{title}, {placed.gpu.gib:.1f} GiB; GiB at the peak (and when), by part:")
        for s in placed.stages:
            parts = ", ".join(f"{name} {size:.2f}" for name, size in grouped(s.plan).items() if size > 0)
            lines.append(f"- {s.stage}, {_what(s)}: {needed_gib(s.plan):.1f} ({s.plan.phase}); {parts}")
    return "\n".join(lines)


# -- published peaks


@styled
def figure_published(rows: Sequence[Published]) -> ReportFigure:
    """Draw measured peaks that others have published, and the planner's beside each. Rows without conditions: not."""
    known = planned_of(rows)
    figure = ReportFigure(figsize=(9.6, 1.3 + 0.32 * len(known)), layout="constrained")
    ax = figure.subplots()
    at = range(len(known))
    ax.barh(at, [p.gib for p, _ in known], height=0.62, color=COLORS["blue"], alpha=0.45, label="measured by others")
    ax.plot([size for _, size in known], at, color=COLORS["orange"], marker="D", linestyle="none", label="planned")
    for i, (p, size) in enumerate(known):
        ax.text(max(p.gib, size), i, f"   {error(p, size)}", va="center", fontsize=8.5)
    ax.set_yticks(at, [p.what for p, _ in known])
    ax.set(ylim=(len(known) - 0.5, -0.5), xlim=(0, 1.12 * max(p.gib for p, _ in known)),
           xlabel="GiB allocated at the peak")  # fmt: skip
    ax.grid(axis="y", visible=False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.twin = describe_published(rows)
    return figure


def planned_of(rows: Sequence[Published]) -> list[tuple[Published, float]]:
    """Return the rows whose conditions are known, each with the planned peak in GiB."""
    return [(p, plan(p.recipe, find_gpu(p.gpu)).peak / GIB) for p in rows if p.recipe]


def describe_published(rows: Sequence[Published]) -> str:
    """Return the facts of `figure_published` as text, and speeds: published, and the planner's range."""
    lines = ["GiB at the peak, measured by others and planned; tokens a second, the same:"]
    known = {p: size for p, size in planned_of(rows)}
    for i, p in enumerate(rows):
        if i == 0 or (p.source, p.gpu) != (rows[i - 1].source, rows[i - 1].gpu):
            lines.append(f"{p.source}, {p.gpu}")
        text = f"- {p.what}: {p.gib:g}, " + (f"planned {known[p]:.1f}, {error(p, known[p])}" if p in known else
                                             "not planned")  # fmt: skip
        if p.tokens_per_second[0] and (expected := speeds(p)):
            low, high = p.tokens_per_second
            text += f"; {low:,.0f} to {high:,.0f} tokens/s, planned {expected[0]:,.0f} to {expected[1]:,.0f}"
        lines.append(text)
    return "\n".join(lines)


def error(p: Published, size: float) -> str:
    """Return how far a planned peak, in GiB, is above (+) or below (-) the published one, in per cent."""
    percent = round(100 * (size / p.gib - 1), 1)
    return f"{percent:+.1f}%" if percent else "0.0%"


def speeds(p: Published) -> tuple[float, float] | None:
    """Return the tokens a second that the planner expects, low and high; None where it cannot say."""
    found = costs(p.recipe, find_gpu(p.gpu), ROWS) if p.recipe else None
    if found is None or p.recipe is None:
        return None
    low, high = (ROWS * p.recipe.seq / (hours * 3600) for hours in reversed(found.hours))
    return low, high


# -- what fits: of the widget


def fits(profile: Profile, model: Architecture, gpu: Gpu, seq: int, rows: int, rank: int) -> str:
    """Return whether SFT with so many rows of so many tokens at a time fits, with LoRA and with QLoRA; bars by part.

    The rest of the step's batch waits its turn, as in the profile. Nothing is trained.
    """
    own = replace(profile, sft=replace(profile.sft, lora=replace(profile.sft.lora, r=rank)))
    batch = max(rows, own.sft.fit.per_device_train_batch_size)
    plans = {name: placement.stage_plan(own, placement.recipe_for(own, "sft", model, method, rows, seq), gpu, batch)
             for name, method in METHODS.items()}  # fmt: skip
    what = f"{rows} row{'s' * (rows > 1)} of {seq:,} tokens, adapters of rank {rank}"
    head = [f"{gpu.name}: {gpu.gib:.1f} GiB; SFT, {what}"]
    for name, p in plans.items():
        verdict = "fits, but tightly" if p.tight else "fits" if p.fits else "does not fit"
        head.append(f"{name:<6}needs {needed_gib(p):5.1f} GiB, CUDA's context included: {verdict}")
    return "\n".join([*head, "", bars(plans)])
