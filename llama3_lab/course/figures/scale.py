"""Figures of the lesson on scale, each with its text twin: where parameters are, laws, isoFLOP curves, serving."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from llama3_lab.course.views import COLORS, ReportFigure, styled
from llama3_lab.paper import serving
from llama3_lab.paper.architecture import SIZES, Architecture, llama3
from llama3_lab.paper.facts import fact
from llama3_lab.paper.isoflop import Cell, Parabola
from llama3_lab.paper.power_law import PowerLaw
from llama3_lab.paper.scale import Bill, Machine, bill, six_nd
from llama3_lab.paper.surface import Surface

PARTS = (("embedding", "blue", ""), ("output", "purple", "///"), ("attention", "orange", "..."), ("ffn", "green", ""))
LOOKS = (("blue", "o", "-"), ("orange", "s", "--"), ("green", "^", "-."), ("purple", "D", ":"), ("ochre", "v", "-"))
T = 1e12


def trained_tokens(size: str) -> float:
    """Return the tokens that a Llama 3 model was trained on."""
    return float(fact(f"tokens.{size}").value)


@styled
def figure_parts(models: Mapping[str, Architecture]) -> ReportFigure:
    """Draw one bar a model: the share of its parameters in embedding, output, attention and FFN."""
    figure = ReportFigure(figsize=(9.6, 1.2 + 0.4 * len(models)), layout="constrained")
    ax = figure.subplots()
    left = np.zeros(len(models))
    for part, color, hatch in PARTS:
        shares = np.array([a.parts()[part] / a.parameters() for a in models.values()])
        ax.barh(range(len(models)), shares, left=left, height=0.66, color=COLORS[color], hatch=hatch, label=part,
                edgecolor=COLORS["plate"], linewidth=0.6)  # fmt: skip
        for i, share in enumerate(shares):
            if share >= 0.06:
                plate = {"facecolor": COLORS["plate"], "edgecolor": "none", "pad": 1.2}
                ax.text(left[i] + share / 2, i, f"{share:.0%}", ha="center", va="center", fontsize=8.5, bbox=plate)
        left = left + shares
    ax.set_yticks(range(len(models)), [f"{name} ({short(a.parameters())})" for name, a in models.items()])
    ax.set(xlim=(0, 1), ylim=(len(models) - 0.5, -0.5), xlabel="share of the parameters")
    ax.grid(axis="y", visible=False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=4)
    figure.twin = describe_parts(models)
    return figure


def describe_parts(models: Mapping[str, Architecture]) -> str:
    """Return the facts of `figure_parts` as text."""
    lines = ["Where the parameters are (norms are below 0.1 % everywhere but in the smallest):"]
    for name, a in models.items():
        shares = ", ".join(f"{part} {a.parts()[part] / a.parameters():.1%}" for part, _, _ in PARTS)
        lines.append(f"- {name}, {a.parameters():,}: {shares}")
    return "\n".join(lines)


@styled
def figure_laws(laws: Mapping[str, PowerLaw], budgets: Sequence[float], flops: float, printed: float) -> ReportFigure:
    """Draw tokens against FLOPs by several power laws, from the budgets they were fitted on to `flops`.

    printed: the tokens that the paper gives there.
    """
    figure = ReportFigure(figsize=(9.6, 3.4), layout="constrained")
    whole, end = figure.subplots(1, 2, width_ratios=(3, 2))
    x = np.geomspace(min(budgets), flops, 80)
    near = np.geomspace(flops / 4, flops * 2, 20)
    for (name, law), (color, _, line) in zip(laws.items(), LOOKS, strict=False):
        for ax, at in ((whole, x), (end, near)):
            ax.plot(at, [law.at(c) for c in at], color=COLORS[color], linestyle=line, label=name)
        end.plot(flops, law.at(flops), "o", color=COLORS[color])
    for ax in (whole, end):
        ax.plot(flops, printed, "*", color=COLORS["ink"], markersize=11, label="as the text says")
        ax.set(xscale="log", yscale="log", xlabel="FLOPs")
    whole.axvspan(min(budgets), max(budgets), color=COLORS["band"], zorder=0, label="budgets that were measured")
    whole.set(title="optimal training tokens")
    end.set(title="the end of it", xlim=(flops / 4, flops * 2))
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3)
    figure.twin = describe_laws(laws, budgets, flops, printed)
    return figure


def describe_laws(laws: Mapping[str, PowerLaw], budgets: Sequence[float], flops: float, printed: float) -> str:
    """Return the facts of `figure_laws` as text."""
    lines = [f"Optimal tokens at {flops:.2g} FLOPs, {flops / max(budgets):,.0f} times the largest budget measured:"]
    for name, law in laws.items():
        inside = law.at(max(budgets))
        lines.append(f"- {name} ({law.a:g}·C^{law.alpha:g}): {law.at(flops) / T:.2f}T tokens, "
                     f"{law.at(flops) / printed:.2f} of what the text says; {inside / 1e9:.0f}B at {max(budgets):.2g}")
    return "\n".join([*lines, f"- the text says {printed / T:.2f}T"])


@styled
def figure_isoflop(cells: Sequence[Cell], parabolas: Sequence[Parabola]) -> ReportFigure:
    """Draw held-out loss against size, a curve a budget; minima with their intervals where they are bracketed."""
    figure = ReportFigure(figsize=(9.6, 4.0), layout="constrained")
    ax = figure.subplots()
    for p, (color, marker, line) in zip(parabolas, LOOKS, strict=False):
        own = [c for c in cells if c.budget == p.budget]
        ax.plot([c.parameters for c in own], [c.loss for c in own], marker, color=COLORS[color], alpha=0.75)
        x = np.geomspace(p.smallest, p.largest, 60)
        if p.bend > 0:
            ax.plot(x, [p.loss(v) for v in x], color=COLORS[color], linestyle=line)
        ax.plot([], [], color=COLORS[color], linestyle=line, marker=marker, label=f"{p.budget:.2g} FLOPs")
        if p.bracketed:
            ax.plot([p.low, p.high], [p.bottom] * 2, color=COLORS["ink"], linewidth=2.4)
            ax.plot(p.at, p.bottom, "*", color=COLORS["ink"], markersize=11)
    ax.plot([], [], "*-", color=COLORS["ink"], label="minimum, 95 % interval")
    ax.set(xscale="log", xlabel="parameters", title="held-out loss, nats a token")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=3)
    figure.twin = describe_isoflop(parabolas, cells)
    return figure


def describe_isoflop(parabolas: Sequence[Parabola], cells: Sequence[Cell]) -> str:
    """Return the facts of `figure_isoflop` as text."""
    lines = ["isoFLOP curves (minimum of a parabola in log size; 95 % bootstrap interval):"]
    for p in parabolas:
        own = sorted((c for c in cells if c.budget == p.budget), key=lambda c: c.parameters)
        ends = f"loss {own[0].loss:.3f} at {own[0].parameters:,}, {own[-1].loss:.3f} at {own[-1].parameters:,}"
        where = (f"lowest at {p.at:,.0f} [{p.low:,.0f}, {p.high:,.0f}] with {p.bottom:.3f}" if p.bend > 0
                 else "no minimum")  # fmt: skip
        lines.append(f"- {p.budget:.2g} FLOPs, {p.n} cells: {ends}; {where}; {p.verdict()}")
    return "\n".join(lines)


@styled
def figure_ratios(name: str, ratio_at: Mapping[float, float]) -> ReportFigure:
    """Draw a law's optimal tokens per parameter by FLOPs, and the three Llamas at the FLOPs that they took (6ND).

    ratio_at: the law's ratio at each of some budgets.
    """
    figure = ReportFigure(figsize=(9.6, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.plot(list(ratio_at), list(ratio_at.values()), color=COLORS["blue"], label=f"optimum by {name}")
    for (size, flops, ratio), (color, marker, _) in zip(llamas(), LOOKS[1:], strict=False):
        ax.plot(flops, ratio, marker, color=COLORS[color], markersize=8, label=size.upper())
        ax.annotate(f"{size.upper()}: {ratio:,.0f}", (flops, ratio), (9, 0), textcoords="offset points", va="center")
    ax.set(xscale="log", yscale="log", xlabel="FLOPs of training", title="training tokens per parameter", ylim=(3, 6e3))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.twin = describe_ratios(name, ratio_at)
    return figure


def describe_ratios(name: str, ratio_at: Mapping[float, float]) -> str:
    """Return the facts of `figure_ratios` as text."""
    lines, budgets = [f"Training tokens per parameter, beside the optimum by {name}:"], np.log(list(ratio_at))
    for size, flops, ratio in llamas():
        best = math.exp(float(np.interp(math.log(flops), budgets, np.log(list(ratio_at.values())))))
        lines.append(f"- {size.upper()}, {flops:.1e} FLOPs: {ratio:,.0f} tokens a parameter; optimum {best:,.0f}; "
                     f"{ratio / best:,.1f} times the optimum")  # fmt: skip
    return "\n".join(lines)


def llamas() -> list[tuple[str, float, float]]:
    """Return the three models: size, training FLOPs by 6ND, tokens per parameter."""
    found = [(size, llama3(size).parameters(), trained_tokens(size)) for size in SIZES]
    return [(size, six_nd(n, d), d / n) for size, n, d in found]


@styled
def figure_serving(surface: Surface, size: str, served: Sequence[float]) -> ReportFigure:
    """Draw the cost of reaching a model's loss by the size that reaches it, for several amounts of served tokens."""
    figure = ReportFigure(figsize=(9.6, 3.6), layout="constrained")
    ax, n, d = figure.subplots(), llama3(size).parameters(), trained_tokens(size)
    loss, x = surface.loss(n, d), np.geomspace(n / 2.2, n * 12, 160)
    for s, (color, marker, line) in zip(served, LOOKS, strict=False):
        ax.plot(x, [serving.total_flops(surface, loss, v, s) for v in x], color=COLORS[color], linestyle=line,
                label=f"{s / T:,.0f}T served")  # fmt: skip
        best = serving.cheapest(surface, loss, s)[0]
        ax.plot(best, serving.total_flops(surface, loss, best, s), marker, color=COLORS[color], markersize=8)
    ax.axvline(n, color=COLORS["gray"], linestyle=(0, (1, 2)), label=size.upper())
    low = serving.total_flops(surface, loss, serving.cheapest(surface, loss, 0)[0], 0)
    ax.set(xscale="log", yscale="log", xlabel="parameters", title="FLOPs of training and serving, at equal loss",
           ylim=(low / 2, low * 200))  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=3)
    figure.twin = describe_serving(surface, size, served)
    return figure


def describe_serving(surface: Surface, size: str, served: Sequence[float]) -> str:
    """Return the facts of `figure_serving` as text."""
    n, d = llama3(size).parameters(), trained_tokens(size)
    loss = surface.loss(n, d)
    lines = [f"Cheapest way to the loss of {size.upper()} on {d / T:g}T tokens, training and serving together:"]
    for s in served:
        best, read = serving.cheapest(surface, loss, s)
        dearer = serving.total_flops(surface, loss, n, s) / serving.total_flops(surface, loss, best, s)
        lines.append(f"- {s / T:,.0f}T served: {short(best)} on {read / T:.1f}T tokens; {size.upper()} costs "
                     f"{dearer:.2f} times as much")  # fmt: skip
    return "\n".join(lines)


def describe_bills(machine: Machine, flops: Mapping[str, float]) -> str:
    """Return as text what runs cost on a machine: a line each."""
    lines = [f"{machine.gpus:,} GPUs at {machine.mfu:.0%} of {machine.peak_tflops:g} TFLOPs, "
             f"{machine.effective:.0%} of the time, {machine.price:g} a GPU-hour",
             f"{'':<6} {'FLOPs':>8} {'GPU-hours':>12} {'days':>7} {'MWh':>8} {'money':>14}"]  # fmt: skip
    for name, f in flops.items():
        b: Bill = bill(f, machine)
        lines.append(f"{name:<6} {f:>8.1e} {b.gpu_hours:>12,.0f} {b.days:>7.1f} {b.mwh:>8,.0f} {b.cost:>14,.0f}")
    return "\n".join(lines)


def describe_budget(flops: float, rules: Mapping[str, tuple[float, float]]) -> str:
    """Return as text what each rule would do with a budget. rules: name to (parameters, tokens)."""
    width = max(map(len, rules))
    lines = [f"{flops:.1e} FLOPs", f"{'':<{width}} {'parameters':>11} {'tokens':>8} {'tokens/parameter':>17}"]
    lines += [f"{name:<{width}} {short(n):>11} {short(d):>8} {d / n:>17,.1f}" for name, (n, d) in rules.items()]
    return "\n".join(lines)


def short(x: float) -> str:
    """Return a count in three digits: 8.03B, 15.6T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if x >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.0f}"
