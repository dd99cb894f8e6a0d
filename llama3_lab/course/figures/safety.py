"""Figures of the lesson on safety, each with its text twin: thresholds, the plane, the archive, wordings, quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama3_lab.course.marks import dots, log_ticks
from llama3_lab.course.views import COLORS, ReportFigure, brief, styled
from llama3_lab.pipeline.reports import rate
from llama3_lab.records import Rate, SafetyAnswer, SafetyKind, StudyScore
from llama3_lab.safety.redteam import Cell
from llama3_lab.safety.safety_metrics import ThresholdPoint, pareto_front

LOOKS: tuple[tuple[str, str, Any], ...] = (
    ("blue", "o", "-"), ("orange", "s", "--"), ("green", "^", "-."), ("purple", "D", ":"), ("ochre", "v", (0, (5, 1))),
    ("ink", "P", (0, (3, 1, 1, 1))), ("gray", "X", (0, (1, 1))))  # fmt: skip
SHARES = (("recall", "share of the unsafe that is flagged", "blue", "-"),
          ("precision", "share of the flagged that is unsafe", "green", "-."),
          ("false_positive_rate", "share of the safe that is flagged", "orange", "--"))  # fmt: skip
SHOWN = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)  # thresholds of the text twin
Curves = Mapping[str, Sequence[ThresholdPoint]]


@dataclass(frozen=True)
class Stack:
    """One set of layers in the plane. vr, frr: its violation and false refusal rates."""

    name: str
    vr: Rate
    frr: Rate


def point_at(curve: Sequence[ThresholdPoint], threshold: float) -> ThresholdPoint:
    """Return the point with the counts that hold at a threshold. curve: thresholds ascending, the last above all."""
    return next((p for p in curve if p.threshold >= threshold), curve[-1])


def by_wording(rows: Sequence[SafetyAnswer], kind: SafetyKind = "adversarial") -> dict[str, Rate]:
    """Return, by wording, the share of hazards helped with; of another kind, the share refused."""
    mine = [r for r in rows if r.kind == kind]
    return {f: rate([float(r.violated if kind == "adversarial" else r.refused) for r in mine if r.family == f])
            for f in dict.fromkeys(r.family for r in mine)}  # fmt: skip


@styled
def figure_thresholds(curves: Curves, chosen: float) -> ReportFigure:
    """Draw recall, precision and false-positive rate over the threshold, one panel a title; the chosen one upright."""
    figure = ReportFigure(figsize=(9.6, 3.5), layout="constrained")
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for ax, (title, curve) in zip(axes, curves.items(), strict=True):
        at = [0.0, *(min(p.threshold, 1.0) for p in curve)]
        for field, label, color, line in SHARES:
            values = [getattr(p, field) for p in curve]
            ax.step(at, [values[0], *values], where="pre", label=label, color=COLORS[color], linestyle=line)
        ax.axvline(chosen, color=COLORS["muted"], linewidth=1)
        ax.annotate(f"chosen: {chosen:.2f}", (chosen, 0.45), (4, 0), textcoords="offset points", color=COLORS["muted"])
        ax.set(title=title, xlabel="threshold", xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.twin = describe_thresholds(curves, chosen)
    return figure


def describe_thresholds(curves: Curves, chosen: float) -> str:
    """Return the facts of `figure_thresholds` as text, with the counts behind the shares."""
    lines = [f"At a threshold: hits (unsafe, flagged), misses, alarms (safe, flagged), passes. Chosen: {chosen:.3f}."]
    for title, curve in curves.items():
        lines.append(f"{title}:")
        for t in sorted({*SHOWN, chosen}):
            p = point_at(curve, t)
            lines.append(f"- {t:.3f}: {p.hits} hits, {p.misses} misses, {p.alarms} alarms, {p.passes} passes; recall "
                         f"{p.recall:.2f}, precision {p.precision:.2f}, false-positive rate "
                         f"{p.false_positive_rate:.2f}")  # fmt: skip
    return "\n".join(lines)


@styled
def figure_plane(panels: Mapping[str, Sequence[Stack]]) -> ReportFigure:
    """Draw violation rate against false refusal rate, a panel a title; filled and joined: the Pareto front."""
    figure = ReportFigure(figsize=(9.6, 4.0), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (title, stacks) in zip(axes, panels.items(), strict=True):
        front = _front(stacks)
        ax.plot([stacks[i].vr.value for i in front], [stacks[i].frr.value for i in front], color=COLORS["gray"],
                linewidth=1, zorder=0)  # fmt: skip
        for i, s in enumerate(stacks):
            color, marker, _ = LOOKS[i % len(LOOKS)]
            reach = [[[max(0.0, r.value - r.low)], [max(0.0, r.high - r.value)]] for r in (s.vr, s.frr)]
            ax.errorbar([s.vr.value], [s.frr.value], xerr=reach[0], yerr=reach[1], color=COLORS[color], marker=marker,
                        elinewidth=1.0, capsize=0, linestyle="none", markersize=8, label=s.name,
                        markerfacecolor=COLORS[color if i in front else "plate"])  # fmt: skip
        ax.set(title=title, xlabel="violation rate (VR)", xlim=(-0.04, 1.04))
    axes[0].set_ylabel("false refusal rate (FRR)")
    axes[0].set_ylim(bottom=-0.01)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.twin = describe_plane(panels)
    return figure


def describe_plane(panels: Mapping[str, Sequence[Stack]]) -> str:
    """Return the facts of `figure_plane` as text."""
    lines = ["Violation rate; false refusal rate; with 95 % intervals over requests:"]
    for title, stacks in panels.items():
        front = _front(stacks)
        lines.append(f"{title}:")
        for i, s in enumerate(stacks):
            where = "on the Pareto front" if i in front else "beaten by another"
            lines.append(f"- {s.name}: VR {brief(s.vr)}; FRR {brief(s.frr)}; {where}")
    return "\n".join(lines)


def _front(stacks: Sequence[Stack]) -> tuple[int, ...]:
    return pareto_front([(s.vr.value, s.frr.value) for s in stacks])


@styled
def figure_archive(cells: Sequence[Cell]) -> ReportFigure:
    """Draw the archive of attacks: a row for each category, a column for each wording, the share that got through."""
    codes, families = _axes(cells)
    found = {(c.code, c.family): c.success for c in cells}
    values = np.array([[found[k].value if (k := (c, f)) in found else np.nan for f in families] for c in codes])
    figure = ReportFigure(figsize=(1.6 + 1.45 * len(families), 1.0 + 0.38 * len(codes)), layout="constrained")
    ax = figure.subplots()
    ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, code in enumerate(codes):
        for column, family in enumerate(families):
            r = found.get((code, family))
            words = f"{round(r.value * r.n)} of {r.n}" if r else "–"
            dark = r is not None and r.value > 0.55
            ax.text(column, row, words, ha="center", va="center", color=COLORS["plate" if dark else "ink"])
    ax.set_xticks(range(len(families)), families)
    ax.set_yticks(range(len(codes)), codes)
    ax.set_title("attacks that got through")
    ax.grid(visible=False)
    figure.twin = describe_archive(cells)
    return figure


def describe_archive(cells: Sequence[Cell]) -> str:
    """Return the facts of `figure_archive` as text: a table."""
    codes, families = _axes(cells)
    found = {(c.code, c.family): f"{round(c.success.value * c.success.n)} of {c.success.n}" for c in cells}
    width = max(len(f) for f in families) + 2
    lines = ["Attacks that got through, by category and wording:", " " * 5 + "".join(f"{f:>{width}}" for f in families)]
    return "\n".join([*lines, *(f"{c:<5}" + "".join(f"{found.get((c, f), '–'):>{width}}" for f in families)
                                for c in codes)])  # fmt: skip


def _axes(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    codes = sorted({c.code for c in cells}, key=lambda code: (len(code), code))
    return codes, list(dict.fromkeys(c.family for c in cells))


@styled
def figure_wordings(rates: Mapping[str, Mapping[str, Rate]], held_out: str, what: str) -> ReportFigure:
    """Draw rates by wording: a mark for each label (before, after …), the held-out wording apart on the right."""
    families = _held_out_last(rates, held_out)
    figure = ReportFigure(figsize=(9.6, 3.3), layout="constrained")
    ax = figure.subplots()
    for i, ((label, by_family), (color, marker, _)) in enumerate(zip(rates.items(), LOOKS, strict=False)):
        at = np.arange(len(families)) + 0.14 * (i - (len(rates) - 1) / 2)
        dots(ax, at, [by_family[f] for f in families], label=label, color=COLORS[color], marker=marker,
             linestyle="none", markersize=6)  # fmt: skip
    ax.axvspan(len(families) - 1.5, len(families) - 0.5, color=COLORS["band"], zorder=0)
    ax.set_xticks(range(len(families)), [f"{f}\n(held out)" if f == held_out else f for f in families])
    ax.set(ylim=(-0.03, 1.03), xlim=(-0.5, len(families) - 0.5), ylabel=what)
    ax.grid(axis="x", visible=False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=len(rates))
    figure.twin = describe_wordings(rates, held_out, what)
    return figure


def describe_wordings(rates: Mapping[str, Mapping[str, Rate]], held_out: str, what: str) -> str:
    """Return the facts of `figure_wordings` as text."""
    lines = [f"{what[0].upper()}{what[1:]}, by wording, with 95 % intervals over requests:"]
    for family in _held_out_last(rates, held_out):
        cells = [f"{label} {brief(by_family[family])} n={by_family[family].n}" for label, by_family in rates.items()]
        lines.append(f"- {family}{' (held out)' if family == held_out else ''}: {'; '.join(cells)}")
    return "\n".join(lines)


def _held_out_last(rates: Mapping[str, Mapping[str, Rate]], held_out: str) -> list[str]:
    families = dict.fromkeys(f for by_family in rates.values() for f in by_family)
    return [*(f for f in families if f != held_out), held_out]


@styled
def figure_quality(found: Mapping[str, Mapping[int, Sequence[StudyScore]]]) -> ReportFigure:
    """Draw VR and FRR over the number of demonstrations: a line for each label, small marks for its seeds."""
    figure = ReportFigure(figsize=(9.6, 3.3), layout="constrained")
    axes = figure.subplots(1, 2)
    sizes = sorted({n for by_size in found.values() for n in by_size})
    for ax, (field, title) in zip(axes, (("vr", "violation rate"), ("frr", "false refusal rate")), strict=True):
        for (label, by_size), (color, marker, line) in zip(found.items(), LOOKS, strict=False):
            values = {n: [getattr(s.score, field).value for s in by_size[n]] for n in sorted(by_size) if by_size[n]}
            for n, seeds in values.items():
                ax.plot([n] * len(seeds), seeds, color=COLORS[color], marker=marker, linestyle="none", markersize=3.5,
                        alpha=0.6)  # fmt: skip
            ax.plot(list(values), [float(np.mean(v)) for v in values.values()], color=COLORS[color], marker=marker,
                    linestyle=line, markersize=7, label=label)  # fmt: skip
        log_ticks(ax, sizes)
        ax.set(title=title, xlabel="safety demonstrations")
        ax.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found))
    figure.twin = describe_quality(found)
    return figure


def describe_quality(found: Mapping[str, Mapping[int, Sequence[StudyScore]]]) -> str:
    """Return the facts of `figure_quality` as text."""
    lines = ["By number of safety demonstrations: the mean over training seeds, and each seed:"]
    for label, by_size in found.items():
        for n in sorted(n for n, seeds in by_size.items() if seeds):
            cells = []
            for field, name in (("vr", "VR"), ("frr", "FRR")):
                seeds = [getattr(s.score, field).value for s in by_size[n]]
                cells.append(f"{name} {np.mean(seeds):.2f} ({', '.join(f'{v:.2f}' for v in seeds)})")
            lines.append(f"- {n}, {label}: {'; '.join(cells)}")
    return "\n".join(lines)
