"""Figures of the lesson on LoRA and memory, each with its text twin: plans as bars, ranks, levels of four bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from llama3_lab.course.marks import log_ticks
from llama3_lab.course.views import COLORS, ReportFigure, styled
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.catalogue import GIB, Gpu
from llama3_lab.paper.memory import Plan, plan
from llama3_lab.paper.recipe import Recipe
from llama3_lab.paper.weights import trained

LOOKS = {"weights": ("blue", ""), "adapters": ("ochre", "xx"), "gradients": ("orange", "//"),
         "optimizer": ("purple", ".."), "activations": ("green", "\\\\"), "logits": ("gray", "++"),
         "reference": ("ochre", "oo")}  # fmt: skip
LINES = (("blue", "o", "-"), ("orange", "s", "--"), ("green", "^", "-."))
SMALL = 0.004  # of the longest bar: a part below that is not drawn, but told
BAR = 40  # columns of the longest bar in text
SIGNS = {"weights": "█", "adapters": "a", "gradients": "g", "optimizer": "o", "activations": "▒", "logits": "L",
         "reference": "r"}  # fmt: skip


@styled
def figure_plans(plans: Mapping[str, Plan]) -> ReportFigure:
    """Draw one bar a plan: bytes at its peak, by part; dotted: the memory of the first plan's card."""
    figure = ReportFigure(figsize=(9.6, 1.3 + 0.42 * len(plans)), layout="constrained")
    ax = figure.subplots()
    longest = max(p.peak for p in plans.values()) / GIB
    left = np.zeros(len(plans))
    for part, (color, hatch) in LOOKS.items():
        sizes = np.array([p.parts.get(part, 0.0) / GIB for p in plans.values()])
        if (sizes > SMALL * longest).any():
            ax.barh(range(len(plans)), sizes, left=left, height=0.66, color=COLORS[color], hatch=hatch, label=part,
                    edgecolor=COLORS["plate"], linewidth=0.6)  # fmt: skip
        left = left + sizes
    for i, p in enumerate(plans.values()):
        ax.text(p.peak / GIB + 0.01 * longest, i, f"{p.peak / GIB:.1f}, {'fits' if p.fits else 'too much'}",
                va="center", fontsize=8.5, bbox={"facecolor": COLORS["plate"], "edgecolor": "none", "pad": 1.2})
    card = next(iter(plans.values())).gpu
    ax.axvline(card.gib, color=COLORS["ink"], linewidth=1.0, linestyle=(0, (1, 2)))
    ax.set_yticks(range(len(plans)), list(plans))
    ax.set(xlim=(0, 1.16 * longest), ylim=(len(plans) - 0.5, -0.5), xlabel=f"GiB at the peak (dotted: {card.name})")
    ax.grid(axis="y", visible=False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=7)
    figure.twin = describe_plans(plans)
    return figure


def describe_plans(plans: Mapping[str, Plan]) -> str:
    """Return the facts of `figure_plans` as text."""
    card = next(iter(plans.values())).gpu
    lines = [f"GiB at the peak, by part ({card.name} has {card.gib:.2f}):"]
    for name, p in plans.items():
        parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in p.parts.items() if part in LOOKS)
        lines.append(f"- {name}: {p.peak / GIB:.2f}, {'fits' if p.fits else 'does not fit'}; {parts}; worst moment: "
                     f"{p.phase}")  # fmt: skip
    return "\n".join(lines)


def bars(plans: Mapping[str, Plan]) -> str:
    """Return plans as text: one bar each, a letter for each part, all at one scale; and the key."""
    longest, width = max(p.peak for p in plans.values()), max(map(len, plans))
    lines = []
    for name, p in plans.items():
        drawn = "".join(SIGNS[part] * round(BAR * size / longest) for part, size in p.parts.items() if part in SIGNS)
        lines.append(f"{name:<{width}} {p.peak / GIB:7.2f} GiB  {'fits' if p.fits else 'no  '}  {drawn}")
    key = "  ".join(f"{sign} {part}" for part, sign in SIGNS.items() if any(part in p.parts for p in plans.values()))
    return "\n".join([*lines, "", key])


def cards(model: Architecture, gpus: Sequence[Gpu], methods: Mapping[str, str], recipe: Recipe) -> str:
    """Return which methods fit on which cards, as text: peak in GiB, and whether it fits. methods: name → method."""
    head = f"{'':<12}{'GiB':>7}  " + "".join(f"{name:>17}" for name in methods)
    lines = [head]
    for gpu in gpus:
        cells = []
        for method in methods.values():
            p = plan(_with(recipe, model, method), gpu)
            cells.append(f"{p.peak / GIB:11.1f} {'fits' if p.fits else 'no':>5}")
        lines.append(f"{gpu.name:<12}{gpu.gib:7.1f}  " + "".join(cells))
    return "\n".join(lines)


def _with(recipe: Recipe, model: Architecture, method: str) -> Recipe:
    return replace(recipe, model=model, method=method)  # type: ignore[arg-type]


@styled
def figure_ranks(recipes: Mapping[str, Sequence[Recipe]]) -> ReportFigure:
    """Draw trained weights, and GiB at the peak, by rank; one line for each choice of targets."""
    figure = ReportFigure(figsize=(9.6, 3.0), layout="constrained")
    count, peak = figure.subplots(1, 2)
    for (name, each), (color, marker, line) in zip(recipes.items(), LINES, strict=False):
        ranks = [r.lora_r for r in each]
        look = {"color": COLORS[color], "marker": marker, "linestyle": line, "label": name}
        count.plot(ranks, [trained(r) / 1e6 for r in each], **look)
        peak.plot(ranks, [plan(r).peak / GIB for r in each], **look)
    weights = next(iter(recipes.values()))[0].model.parameters() * 2 / GIB
    peak.axhline(weights, color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)), label="the frozen weights")
    for ax in (count, peak):
        log_ticks(ax, ranks, base=2)
        ax.set_xlabel("rank")
    count.set(title="Trained weights, millions", yscale="log")
    peak.set(title="Peak, GiB", ylim=(0, None))
    figure.legend(*peak.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.twin = describe_ranks(recipes)
    return figure


def describe_ranks(recipes: Mapping[str, Sequence[Recipe]]) -> str:
    """Return the facts of `figure_ranks` as text."""
    lines = ["Trained weights, and GiB at the peak, by rank:"]
    for name, each in recipes.items():
        told = "; ".join(f"{r.lora_r}: {trained(r) / 1e6:.1f}M, {plan(r).peak / GIB:.2f} GiB" for r in each)
        lines.append(f"- {name}: {told}")
    return "\n".join(lines)


@styled
def figure_levels(
    values: np.ndarray, levels: Mapping[str, Sequence[float]], errors: Mapping[str, float]
) -> ReportFigure:
    """Draw a matrix's weights, each over the largest of its block, and the sixteen levels of two codes under them.

    values: from −1 to 1. levels: the codes. errors: relative error of each way to quantise, all matrices.
    """
    figure = ReportFigure(figsize=(9.6, 3.2), layout="constrained")
    spread, wrong = figure.subplots(1, 2, width_ratios=(3, 2))
    spread.hist(values, bins=80, color=COLORS["blue"], alpha=0.55)
    top = float(spread.get_ylim()[1])
    for i, ((name, code), (color, marker, _)) in enumerate(zip(levels.items(), LINES[1:], strict=False)):
        spread.plot(code, [-(0.09 + 0.11 * i) * top] * len(code), color=COLORS[color], marker=marker, linestyle="none",
                    label=f"{name}: {len(code)} levels")  # fmt: skip
    spread.set(title="Weights over their block's largest, and the levels", yticks=[], ylim=(-0.3 * top, None))
    spread.legend(loc="upper right", fontsize=8)
    wrong.barh(range(len(errors)), list(errors.values()), height=0.6, color=COLORS["orange"])
    for i, e in enumerate(errors.values()):
        wrong.text(e, i, f" {e:.0%}", va="center", fontsize=8.5)
    wrong.set_yticks(range(len(errors)), list(errors))
    wrong.set(title="Relative error of a matrix", ylim=(len(errors) - 0.5, -0.5), xlim=(0, 1.2 * max(errors.values())))
    wrong.grid(axis="y", visible=False)
    figure.twin = describe_levels(levels, errors)
    return figure


def describe_levels(levels: Mapping[str, Sequence[float]], errors: Mapping[str, float]) -> str:
    """Return the facts of `figure_levels` as text."""
    lines = ["Sixteen levels lie where weights are many, or evenly:"]
    lines += [f"- {name}: " + " ".join(f"{x:.2f}" for x in code) for name, code in levels.items()]
    lines += ["Relative error of a matrix, mean over all:", *(f"- {way}: {e:.1%}" for way, e in errors.items())]
    return "\n".join(lines)
