"""Figures of the lesson on DPO, each with its text twin: the brake, a training's curves, changes with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from llama3_lab.course.marks import dots, log_ticks
from llama3_lab.course.views import COLORS, ReportFigure, styled
from llama3_lab.pipeline.probes import Mean
from llama3_lab.records import Curve

Changes = Mapping[str, Mapping[str, Mean]]  # column → row → change with interval
COLUMNS_OF_CURVES = ("preference loss", "implicit reward margin", "chosen logp", "rejected logp")


@dataclass(frozen=True)
class Brake:
    """The best policy for a reward at each β, per prompt and then averaged: what it gains, and what it spends.

    betas: descending, so that the brake is let go from left to right. reward, quality: gain over the reference, in
    logits of the reward model and of the truth. kl: distance from the reference, in nats.
    """

    skill: str
    betas: tuple[float, ...]
    reward: tuple[Mean, ...]
    quality: tuple[Mean, ...]
    kl: tuple[Mean, ...]


def signed(mean: Mean) -> str:
    """Return a mean with its sign and interval, two digits each."""
    return f"{mean.value:+.2f} [{mean.low:+.2f}, {mean.high:+.2f}]"


@styled
def figure_brake(brakes: Sequence[Brake]) -> ReportFigure:
    """Draw, for each skill, the gain in reward and in true quality as β falls, and below the nats it costs."""
    figure = ReportFigure(figsize=(9.6, 4.6), layout="constrained")
    axes = figure.subplots(2, len(brakes), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1.4))
    for (above, below), brake in zip(axes.T, brakes, strict=True):
        for name, color, marker, line in (("reward", "orange", "s", "--"), ("quality", "blue", "o", "-")):
            label = "the reward model's opinion" if name == "reward" else "the truth"
            dots(above, brake.betas, getattr(brake, name), color=COLORS[color], marker=marker, linestyle=line,
                 label=label, markersize=4.5)  # fmt: skip
        above.axhline(0, color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)))
        dots(below, brake.betas, brake.kl, color=COLORS["green"], marker="^", linestyle="-.", label="nats spent",
             markersize=4.5)  # fmt: skip
        above.set_title(brake.skill)
        log_ticks(below, brake.betas)
        below.set(xlabel="β: the brake is let go from left to right")
        below.set_xlim(brake.betas[0] * 1.3, brake.betas[-1] / 1.3)
    axes[0][0].set_ylabel("gain over the reference, logits")
    axes[1][0].set(ylabel="KL, nats", ylim=(0, None))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.twin = describe_brake(brakes)
    return figure


def describe_brake(brakes: Sequence[Brake]) -> str:
    """Return the facts of `figure_brake` as text."""
    lines = ["The best policy for the reward model at each β, against the reference (95 % intervals over prompts):"]
    for brake in brakes:
        lines.append(f"{brake.skill}, {brake.kl[0].n} prompts:")
        for i, beta in enumerate(brake.betas):
            lines.append(f"- β {beta:<4g} reward {signed(brake.reward[i])}; true quality {signed(brake.quality[i])}; "
                         f"KL {brake.kl[i].value:.2f} nats")  # fmt: skip
    return "\n".join(lines)


@styled
def figure_training(runs: Mapping[str, Sequence[Curve]]) -> ReportFigure:
    """Draw four curves of one or more DPO trainings: loss, margin, and both log-probabilities."""
    figure = ReportFigure(figsize=(9.6, 2.9), layout="constrained")
    axes = figure.subplots(1, len(COLUMNS_OF_CURVES))
    for ax, metric in zip(axes, COLUMNS_OF_CURVES, strict=True):
        for i, (name, curves) in enumerate(runs.items()):
            color, line = (("blue", "-"), ("orange", "--"), ("green", "-."), ("purple", ":"))[i % 4]
            curve = next(c for c in curves if c.metric == metric)
            ax.plot(curve.steps, curve.values, color=COLORS[color], linestyle=line, label=name)
        if metric == "preference loss":
            ax.axhline(math.log(2), color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)), label="log 2")
        ax.set(title=metric, xlabel="step")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for ax in axes[2:]:  # so that the two can be compared by eye
        ax.set_ylim(min(a.get_ylim()[0] for a in axes[2:]), max(a.get_ylim()[1] for a in axes[2:]))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=3)
    figure.twin = describe_training(runs)
    return figure


def describe_training(runs: Mapping[str, Sequence[Curve]]) -> str:
    """Return the facts of `figure_training` as text: the first step, and means of the first and last quarter."""
    lines = ["DPO training curves (first step; mean of the first quarter → mean of the last quarter):"]
    for name, curves in runs.items():
        lines.append(f"{name}:")
        for metric in COLUMNS_OF_CURVES:
            values = next(c for c in curves if c.metric == metric).values
            quarter = max(1, len(values) // 4)
            start, end = np.mean(values[:quarter]), np.mean(values[-quarter:])
            lines.append(f"- {metric}: {values[0]:.3f}; {start:.3f} → {end:.3f}")
    return "\n".join(lines)


@styled
def figure_changes(changes: Changes, title: str) -> ReportFigure:
    """Draw one panel for each column, one row for each run: changes with intervals, and a line at no change."""
    rows = list(dict.fromkeys(name for column in changes.values() for name in column))
    figure = ReportFigure(figsize=(9.6, 1.5 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(changes), sharey=True, squeeze=False)[0]
    for ax, (column, found) in zip(axes, changes.items(), strict=True):
        ax.axvline(0, color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)))
        for i, name in enumerate(rows):
            if (mean := found.get(name)) is None:
                continue
            sure = mean.low > 0 or mean.high < 0
            ax.plot([mean.low, mean.high], [i, i], color=COLORS["ink"], linewidth=1.2)
            ax.plot(mean.value, i, "o" if sure else "s", color=COLORS["blue" if sure else "gray"],
                    markerfacecolor=COLORS["blue" if sure else "plate"])  # fmt: skip
        ax.set(ylim=(len(rows) - 0.5, -0.5))
        ax.set_title(column, fontsize=9)
        ax.set_yticks(range(len(rows)), rows)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.grid(axis="y", visible=False)
    figure.supxlabel("filled circle: the interval excludes zero; hollow square: inconclusive", fontsize=8.5,
                     color=COLORS["muted"])  # fmt: skip
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.twin = describe_changes(changes, title)
    return figure


def describe_changes(changes: Changes, title: str) -> str:
    """Return the facts of `figure_changes` as text."""
    lines = [f"{title} (95 % intervals over prompts):"]
    for column, found in changes.items():
        lines.append(f"{column}:")
        for name, m in found.items():
            word = "" if m.low > 0 or m.high < 0 else "  inconclusive"
            lines.append(f"- {name:<14} {m.value:+.3f} [{m.low:+.3f}, {m.high:+.3f}] n={m.n}{word}")
    return "\n".join(lines)
