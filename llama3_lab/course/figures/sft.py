"""Figures of the lesson on SFT, each with its text twin: curves, how answers end, format beside skill, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from llama3_lab.course.marks import dots, log_ticks
from llama3_lab.course.views import COLORS, ReportFigure, brief, styled
from llama3_lab.pipeline.health import start_and_end
from llama3_lab.pipeline.probes import Mean, mean
from llama3_lab.pipeline.reports import rate
from llama3_lab.records import CHECKABLE, Candidate, Curve, Demonstration, PromptScore, Rate

PANELS = (("loss", "loss, nats a token"), ("token accuracy", "share of tokens foreseen"))
ENDS = (("turn", "<|eot_id|>", "blue", ""), ("other", "<|end_of_text|> or the like", "ochre", "///"),
        ("cut", "never: cut off", "gray", "..."))  # fmt: skip
LOOKS = (("blue", "o", "-"), ("orange", "s", "--"), ("green", "^", "-."), ("purple", "D", ":"))


@dataclass(frozen=True)
class Ends:
    """How a model's answers ended, as counts: by <|eot_id|>, by another end token, or not before the cap."""

    name: str
    turn: int
    other: int
    cut: int

    @property
    def n(self) -> int:
        """All answers."""
        return self.turn + self.other + self.cut


@dataclass(frozen=True)
class Trial:
    """A small SFT run, measured. ended, right: rates; costs: nats that a fresh author's answer costs, one a prompt."""

    examples: int
    steps: int
    ended: Rate
    right: Rate
    costs: tuple[float, ...]

    @property
    def cost(self) -> Mean:
        """The mean of the costs."""
        return mean(self.costs)


def trial_of(
    policy: Any, scores: Sequence[PromptScore], fresh: Sequence[tuple[list[int], list[int]]], examples: int, steps: int
) -> Trial:
    """Return a finetuned policy's trial from its scores, and from what `fresh` answers cost it.

    scores: with two samples a prompt. fresh: token ids of prompts and of answers that it never trained on.
    """
    from llama3_lab.models import token_logprobs

    right = rate([s.sampled for s in scores if s.skill in CHECKABLE], 2)
    costs = tuple(-logp for logp in token_logprobs(policy, list(fresh)))
    return Trial(examples, steps, rate([s.ended for s in scores], 2), right, costs)


def token_table(tokenizer: Any, demonstration: Demonstration) -> str:
    """Return a training row as text, one token a line: id, token, and whether it is learned or only read."""
    from llama3_lab.pipeline.collating import IGNORED, demonstration_rows

    row = demonstration_rows(tokenizer, [demonstration], 512).columns
    return "\n".join(
        f"{i:>4} {tokenizer.decode([i])!r:<23} {'read' if label == IGNORED else 'learned'}"
        for i, label in zip(row["input_ids"][0], row["labels"][0], strict=True)
    )


def ends_of(name: str, drawn: Sequence[Candidate], cap: int) -> Ends:
    """Return how these answers ended; `cap` is the number of tokens at which sampling stopped."""
    turn = sum(c.finished for c in drawn)
    cut = sum(not c.finished and c.n_tokens >= cap for c in drawn)
    return Ends(name, turn, len(drawn) - turn - cut, cut)


def rates_of(drawn: Sequence[Candidate], k: int, cap: int) -> tuple[Rate, Rate, Rate]:
    """Return the rates of answers ended properly, right, and right whichever token ended them; checkable skills.

    drawn: k answers a prompt, prompt by prompt, as `sample` returns them.
    """
    from llama3_lab.pipeline.truth import are_right

    some = [c for c in drawn if c.prompt.skill in CHECKABLE]
    forgiven = are_right([replace(c, finished=c.finished or c.n_tokens < cap) for c in some])
    found = np.array([[c.finished for c in some], are_right(some), forgiven], dtype=float)
    ended, right, any_end = (rate(shares, k) for shares in found.reshape(3, -1, k).mean(2))
    return ended, right, any_end


@styled
def figure_curves(trainings: Mapping[str, Sequence[Curve]]) -> ReportFigure:
    """Draw loss and token accuracy of one or more SFT trainings, step by step."""
    figure = ReportFigure(figsize=(9.6, 2.9), layout="constrained")
    for ax, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for (name, curves), (color, _, line) in zip(trainings.items(), LOOKS, strict=False):
            curve = _curve(curves, metric)
            ax.plot(curve.steps, np.array(curve.values), color=COLORS[color], linestyle=line, label=name)
        lowest = min(line.get_ydata().min() for line in ax.lines)
        ax.set(title=label, xlabel="optimizer step")
        ax.set_ylim(*((0, None) if metric == "loss" else (max(0, lowest - 0.05), 1.01)))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.margins(x=0.02)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=3)
    figure.twin = describe_curves(trainings)
    return figure


def describe_curves(trainings: Mapping[str, Sequence[Curve]]) -> str:
    """Return the facts of `figure_curves` as text."""
    lines = ["SFT training curves (first step; mean of the first quarter → mean of the last quarter):"]
    for name, curves in trainings.items():
        for metric, label in PANELS:
            curve = _curve(curves, metric)
            start, end = start_and_end(curve.values)
            lines.append(f"- {name}, {label}: {curve.values[0]:.2f}; {start:.2f} → {end:.2f} "
                         f"in {curve.steps[-1]} steps")  # fmt: skip
    return "\n".join(lines)


@styled
def figure_ends(rows: Sequence[Ends]) -> ReportFigure:
    """Draw one bar a model: the share of its answers that end in each way."""
    figure = ReportFigure(figsize=(9.6, 1.3 + 0.36 * len(rows)), layout="constrained")
    ax = figure.subplots()
    left = np.zeros(len(rows))
    for part, label, color, hatch in ENDS:
        shares = np.array([getattr(r, part) / max(1, r.n) for r in rows])
        ax.barh(range(len(rows)), shares, left=left, height=0.66, color=COLORS[color], hatch=hatch, label=label,
                edgecolor=COLORS["plate"], linewidth=0.6)  # fmt: skip
        for i, share in enumerate(shares):
            if share >= 0.08:
                plate = {"facecolor": COLORS["plate"], "edgecolor": "none", "pad": 1.2}
                ax.text(left[i] + share / 2, i, f"{share:.0%}", ha="center", va="center", fontsize=8.5, bbox=plate)
        left = left + shares
    ax.set_yticks(range(len(rows)), [r.name for r in rows])
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="share of sampled answers")
    ax.grid(axis="y", visible=False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=3, title="the answer ends with")
    figure.twin = describe_ends(rows)
    return figure


def describe_ends(rows: Sequence[Ends]) -> str:
    """Return the facts of `figure_ends` as text."""
    lines = ["How sampled answers end:"]
    for r in rows:
        parts = "; ".join(f"{label} {getattr(r, part) / max(1, r.n):.0%}" for part, label, _, _ in ENDS)
        lines.append(f"- {r.name}: {parts} (n={r.n} answers)")
    return "\n".join(lines)


@styled
def figure_format_and_skill(rows: Mapping[str, tuple[Rate, Rate, Rate]]) -> ReportFigure:
    """Draw, for each model, the rates of answers that end properly, that are right, and right whatever the end."""
    figure = ReportFigure(figsize=(9.6, 1.1 + 0.38 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(_RATE_PANELS), sharey=True)
    for i, (ax, title) in enumerate(zip(axes, _RATE_PANELS, strict=True)):
        color, marker, _ = LOOKS[i]
        for y, rates in enumerate(rows.values()):
            ax.plot([rates[i].low, rates[i].high], [y, y], color=COLORS["ink"], linewidth=1.2)
            ax.plot(rates[i].value, y, marker, color=COLORS[color])
            ax.annotate(f"{rates[i].value:.2f}", (rates[i].value, y), (0, 6), textcoords="offset points", ha="center",
                        fontsize=8.5)  # fmt: skip
        ax.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.6), title=title, xlabel="share of sampled answers")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(rows)), list(rows))
    figure.twin = describe_format_and_skill(rows)
    return figure


def describe_format_and_skill(rows: Mapping[str, tuple[Rate, Rate, Rate]]) -> str:
    """Return the facts of `figure_format_and_skill` as text."""
    n, width = next(iter(rows.values()))[0].n, max(map(len, rows))
    lines = [f"Shares of sampled answers, 95 % intervals over {n} prompts of the checkable skills:",
             f"{'':<{width}}  " + "  ".join(f"{title:<21}" for title in _RATE_PANELS).rstrip()]  # fmt: skip
    for name, rates in rows.items():
        lines.append(f"{name:<{width}}  " + "  ".join(f"{brief(r):<21}" for r in rates).rstrip())
    return "\n".join(lines)


@styled
def figure_trials(trials: Sequence[Trial], start: Trial) -> ReportFigure:
    """Draw format, skill and the cost of a fresh author's answer by number of examples; `start`: before any step."""
    figure = ReportFigure(figsize=(9.6, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, (part, title) in zip(axes, _TRIAL_PANELS, strict=True):
        for (color, marker, line), steps in zip(LOOKS, _steps(trials), strict=False):
            some = [t for t in trials if t.steps == steps]
            dots(ax, [t.examples for t in some], [getattr(t, part) for t in some], color=COLORS[color], marker=marker,
                 linestyle=line, label=f"{steps} steps")  # fmt: skip
        ax.axhline(getattr(start, part).value, color=COLORS["gray"], linestyle=(0, (1, 2)), label="before any step")
        log_ticks(ax, sorted({t.examples for t in trials}))
        ax.set(title=title, xlabel="different examples", ylim=(0, None) if part == "cost" else (0, 1.03))
        ax.grid(axis="x", visible=False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3)
    figure.twin = describe_trials(trials, start)
    return figure


def describe_trials(trials: Sequence[Trial], start: Trial) -> str:
    """Return the facts of `figure_trials` as text: one line a training, the start first."""
    lines = [f"Small SFT runs (95 % intervals over {start.ended.n} prompts):",
             f"{'':<25}" + "  ".join(f"{title:<18}" for _, title in _TRIAL_PANELS).rstrip()]  # fmt: skip
    in_order = [t for steps in _steps(trials) for t in trials if t.steps == steps]
    for t in (start, *in_order):
        some = f"{t.examples} example{'' if t.examples == 1 else 's'}"
        name = f"{some}, {t.steps} steps" if t.steps else "before any step"
        cells = (brief(t.ended), brief(t.right), f"{t.cost.value:.2f} [{t.cost.low:.2f}, {t.cost.high:.2f}]")
        lines.append(f"{name:<25}" + "  ".join(f"{cell:<18}" for cell in cells).rstrip())
    return "\n".join(lines)


_RATE_PANELS = ("ended properly", "right", "right, any end counts")
_TRIAL_PANELS = (("ended", "ended properly"), ("right", "right"), ("cost", "nats, fresh answer"))


def _steps(trials: Sequence[Trial]) -> list[int]:
    """Return the numbers of steps, the largest first."""
    return sorted({t.steps for t in trials}, reverse=True)


def _curve(curves: Sequence[Curve], metric: str) -> Curve:
    return next(c for c in curves if c.metric == metric)
