"""Figures of the lesson on rejection sampling, each with its text twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llama3_lab.course.marks import dots, log_ticks
from llama3_lab.course.views import COLORS, ReportFigure, brief, styled
from llama3_lab.pipeline.reports import rate
from llama3_lab.records import CHECKABLE, BestOfK, Comparison, Judged, Prompt, PromptScore, Rate

# Kept: rule → skill → (share of prompts with a kept answer, share of the kept answers that are right).
Kept = Mapping[str, Mapping[str, tuple[Rate, Rate]]]
KEPT = "share of prompts that keep an answer"
LOOKS: tuple[tuple[str, str, Any], ...] = (
    ("blue", "o", "-"), ("orange", "s", "--"), ("green", "^", "-."), ("purple", "D", ":"), ("ochre", "v", (0, (5, 1))),
    ("ink", "P", (0, (3, 1, 1, 1))))  # fmt: skip


def covered(prompts: Sequence[Prompt], kept: Sequence[Judged]) -> list[PromptScore]:
    """Return one row a prompt, for a paired test: at_k is 1 where the prompt keeps an answer; the rest is 0."""
    there = {j.candidate.prompt.id for j in kept}
    return [PromptScore(p.id, p.skill, p.level, 0.0, 0.0, float(p.id in there), 0.0, 0.0, 0.0) for p in prompts]


def by_level(prompts: Sequence[Prompt], kept: Sequence[Judged]) -> list[Rate]:
    """Return the share of the checkable prompts of level 1, 2, 3 that keep an answer."""
    rows = [r for r in covered(prompts, kept) if r.skill in CHECKABLE]
    return [rate([r.at_k for r in rows if r.level == level]) for level in (1, 2, 3)]


@styled
def figure_rules(kept: Kept) -> ReportFigure:
    """Draw, by skill, what each rule keeps (hollow) and how much of that is right (filled)."""
    skills, rules = list(dict.fromkeys(s for by_skill in kept.values() for s in by_skill)), list(kept)
    figure = ReportFigure(figsize=(9.6, 1.25 + 0.32 * len(rules)), layout="constrained")
    axes = figure.subplots(1, len(skills), sharey=True, squeeze=False)[0]
    for ax, skill in zip(axes, skills, strict=True):
        for which, (name, color, marker, shift) in enumerate(
            (("prompts that keep an answer", "blue", "s", -0.16), ("kept answers that are right", "orange", "o", 0.16))
        ):
            rates = [kept[rule][skill][which] for rule in rules]
            at = np.arange(len(rules)) + shift
            dots(ax, at, rates, across=True, label=name, color=COLORS[color],
                  marker=marker, linestyle="none", markersize=5,
                  markerfacecolor=COLORS["plate" if which == 0 else color])  # fmt: skip
        ax.set(title=skill, xlim=(-0.03, 1.03), ylim=(len(rules) - 0.5, -0.5), xticks=(0, 0.5, 1))
        ax.set_xticklabels(("0", ".5", "1"))
        ax.set_yticks(range(len(rules)), rules)
        ax.grid(axis="y", visible=False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.twin = describe_rules(kept)
    return figure


def describe_rules(kept: Kept) -> str:
    """Return the facts of `figure_rules` as text."""
    lines = ["By rule and skill: share of prompts that keep an answer; share of the kept answers that are right:"]
    for rule, by_skill in kept.items():
        cells = [f"{skill} {brief(there)}; {brief(right)}" for skill, (there, right) in by_skill.items()]
        lines += [f"- {rule}:", *(f"    {cell}" for cell in cells)]
    return "\n".join(lines)


@styled
def figure_pass_at_k(panels: Mapping[str, Sequence[BestOfK]]) -> ReportFigure:
    """Draw pass@K with intervals: one panel per title, one line per curve, named by its `skill`."""
    figure = ReportFigure(figsize=(9.6, 3.5), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for i, (curve, (color, marker, line)) in enumerate(zip(curves, LOOKS, strict=False)):
            spread = 2.0 ** (0.06 * (i - (len(curves) - 1) / 2))  # apart, so that intervals can be told apart
            dots(ax, np.array(curve.ks) * spread, curve.rates, label=curve.skill,
                  color=COLORS[color], marker=marker, linestyle=line, markersize=4.5)  # fmt: skip
        ks = sorted({k for c in curves for k in c.ks})
        log_ticks(ax, ks, base=2)
        ax.set(title=title, xlabel="K answers a prompt", ylim=(0, 1.02))
        ax.legend(loc="lower right", handlelength=3)
    axes[0].set_ylabel("share of prompts with a right answer")
    figure.twin = describe_pass_at_k(panels)
    return figure


def describe_pass_at_k(panels: Mapping[str, Sequence[BestOfK]]) -> str:
    """Return the facts of `figure_pass_at_k` as text."""
    lines = ["Share of prompts with a right answer among K (pass@K), with 95 % intervals over prompts:"]
    for title, curves in panels.items():
        lines.append(f"{title}:")
        for c in curves:
            rates = "; ".join(f"K={k} {brief(r)}" for k, r in zip(c.ks, c.rates, strict=True))
            lines.append(f"- {c.skill} (n={c.rates[0].n}): {rates}")
    return "\n".join(lines)


@styled
def figure_levels(shares: Mapping[str, Sequence[Rate]], what: str = KEPT) -> ReportFigure:
    """Draw one line per label over the levels: shares[label][i] is the rate at level i + 1."""
    figure = ReportFigure(figsize=(6.4, 3.1), layout="constrained")
    ax = figure.subplots()
    for i, ((label, rates), (color, marker, line)) in enumerate(zip(shares.items(), LOOKS, strict=False)):
        at = np.arange(1, len(rates) + 1) + 0.05 * (i - (len(shares) - 1) / 2)
        dots(ax, at, rates, label=label, color=COLORS[color], marker=marker,
              linestyle=line)  # fmt: skip
    levels = max(len(rates) for rates in shares.values())
    ax.set_xticks(range(1, levels + 1), [f"level {n}" for n in range(1, levels + 1)])
    ax.set(ylim=(0, 1.02), ylabel=what)
    ax.grid(axis="x", visible=False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", handlelength=3)
    figure.twin = describe_levels(shares, what)
    return figure


def describe_levels(shares: Mapping[str, Sequence[Rate]], what: str = KEPT) -> str:
    """Return the facts of `figure_levels` as text."""
    lines = [f"{what[0].upper()}{what[1:]}, by level, with 95 % intervals:"]
    for label, rates in shares.items():
        lines.append(f"- {label}: " + "; ".join(f"level {i} {brief(r)}" for i, r in enumerate(rates, 1)))
    return "\n".join(lines)


@styled
def figure_temperature(found: Mapping[float, tuple[Rate, Rate, float]]) -> ReportFigure:
    """Draw, over the temperature: pass@1 and pass@K (left), different answers a prompt (right)."""
    figure = ReportFigure(figsize=(9.6, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    at = list(found)
    one, many = [row[0] for row in found.values()], [row[1] for row in found.values()]
    for rates, k, (color, marker, line) in ((one, 1, LOOKS[0]), (many, many[0].samples, LOOKS[1])):
        dots(left, at, rates, label=f"pass@{k}", color=COLORS[color], marker=marker,
              linestyle=line)  # fmt: skip
    left.set(ylim=(0, 1.02), xlabel="temperature", ylabel="share of prompts", xticks=at)
    left.legend(loc="center left")
    right.plot(at, [row[2] for row in found.values()], color=COLORS["green"], marker="^", linestyle="-.")
    right.set(xlabel="temperature", ylabel="different answers a prompt", xticks=at)
    right.set_ylim(bottom=0)
    figure.twin = describe_temperature(found)
    return figure


def describe_temperature(found: Mapping[float, tuple[Rate, Rate, float]]) -> str:
    """Return the facts of `figure_temperature` as text."""
    lines = ["By temperature, with 95 % intervals over prompts:"]
    for t, (one, many, different) in found.items():
        lines.append(f"- {t:g}: pass@1 {brief(one)}; pass@{many.samples} {brief(many)}; "
                     f"{different:.1f} different answers a prompt (n={one.n})")  # fmt: skip
    return "\n".join(lines)


@styled
def figure_differences(comparisons: Sequence[Comparison]) -> ReportFigure:
    """Draw paired differences with their intervals, one row each; hollow where the interval holds zero."""
    figure = ReportFigure(figsize=(9.6, 0.9 + 0.3 * len(comparisons)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color=COLORS["muted"], linewidth=1)
    for i, c in enumerate(comparisons):
        color = {"better": "blue", "worse": "orange"}.get(c.verdict, "gray")
        marker = {"better": ">", "worse": "<"}.get(c.verdict, "o")
        ax.plot([c.low, c.high], [i, i], color=COLORS[color], linewidth=1.2)
        ax.plot(c.difference, i, marker=marker, color=COLORS[color],
                markerfacecolor=COLORS["plate" if c.verdict == "inconclusive" else color])  # fmt: skip
    ax.set_yticks(range(len(comparisons)), [f"{c.name} ({c.skill})" for c in comparisons])
    ax.set(ylim=(len(comparisons) - 0.5, -0.5), xlabel="paired difference, 95 % interval")
    ax.grid(axis="y", visible=False)
    figure.twin = describe_differences(comparisons)
    return figure


def describe_differences(comparisons: Sequence[Comparison]) -> str:
    """Return the facts of `figure_differences` as text."""
    lines = ["Paired differences on the same prompts, with 95 % intervals:"]
    for c in comparisons:
        lines.append(f"- {c.name} ({c.metric}, {c.skill}): {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] "
                     f"n={c.n}, {c.verdict}")  # fmt: skip
    return "\n".join(lines)
