"""Figures of the lesson on the reward model, each with its text twin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llama3_lab.course.marks import dots, log_ticks
from llama3_lab.course.views import COLORS, JUDGES, ReportFigure, brief, styled
from llama3_lab.pipeline.demonstrations import by_prompt
from llama3_lab.pipeline.probes import LONGER_COSTS, Accuracy, CalibrationBin, Climb, Mean, qualities, sigmoid
from llama3_lab.records import STRENGTHS, Judged, Rate
from llama3_lab.world.annotators import NOISE, THRESHOLDS

LINES: tuple[tuple[str, str, Any], ...] = (
    ("blue", "o", "-"), ("orange", "s", "--"), ("green", "^", "-."), ("purple", "D", ":"))  # fmt: skip


@styled
def figure_raters(of: Sequence[Accuracy]) -> ReportFigure:
    """Draw how often a rater chooses the better answer: by the true gap (the law), and by the stated strength."""
    figure = ReportFigure(figsize=(9.6, 3.0), layout="constrained")
    law, stated = figure.subplots(1, 2, sharey=True)
    gaps = np.linspace(0, 4, 81)
    law.plot(gaps, [sigmoid(g / NOISE) for g in gaps], color=COLORS["blue"])
    for t in THRESHOLDS:
        law.axvline(t, color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)))
    law.set(title="The law: by the true gap", xlabel="true gap of quality, logits (dotted: the four levels)",
            ylabel="the better answer is chosen", ylim=(0.45, 1.02))  # fmt: skip
    rows = [a for a in of if a.strength != "any"]
    dots(stated, range(len(rows)), [a.rate for a in rows], color=COLORS["orange"], marker="s", linestyle="none")
    stated.set_xticks(range(len(rows)), [f"{a.strength.replace(' ', chr(10))}\n({a.couples} pairs)" for a in rows])
    stated.set(title="Our raters: by the strength they stated", xlim=(-0.5, len(rows) - 0.5))
    figure.twin = describe_raters(of)
    return figure


def describe_raters(of: Sequence[Accuracy]) -> str:
    """Return the facts of `figure_raters` as text."""
    law = "; ".join(f"{g:g} → {sigmoid(g / NOISE):.2f}" for g in (0.0, 0.5, *THRESHOLDS))
    lines = [f"A rater chooses the better answer, by the true gap in logits: {law}.",
             "Our raters, by the strength they stated (95 % intervals over prompts):"]  # fmt: skip
    return "\n".join([*lines, *(f"- {a.strength}: {brief(a.rate)}, {a.couples} pairs" for a in of)])


@styled
def figure_losses(lines: Mapping[str, Sequence[float]]) -> ReportFigure:
    """Draw losses step by step, one line each; dotted: log 2, the loss of a model that prefers nothing."""
    figure = ReportFigure(figsize=(7.2, 2.9), layout="constrained")
    ax = figure.subplots()
    for (name, values), (color, marker, line) in zip(lines.items(), LINES, strict=False):
        every = max(1, len(values) // 10)
        ax.plot(range(1, len(values) + 1), values, color=COLORS[color], marker=marker, linestyle=line, label=name,
                markevery=every)  # fmt: skip
    ax.axhline(math.log(2), color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)), label="log 2 = 0.693")
    ax.set(xlabel="optimizer step", ylabel="Bradley–Terry loss, nats", ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.twin = describe_losses(lines)
    return figure


def describe_losses(lines: Mapping[str, Sequence[float]]) -> str:
    """Return the facts of `figure_losses` as text."""
    rows = [f"- {name}: {v[0]:.3f} at step 1, {min(v):.3f} at the lowest, {v[-1]:.3f} at step {len(v)}"
            for name, v in lines.items()]  # fmt: skip
    return "\n".join(["Loss in nats (log 2 = 0.693 is the loss of a model that prefers nothing):", *rows])


@styled
def figure_accuracy(panels: Mapping[str, Sequence[Accuracy]]) -> ReportFigure:
    """Draw, one panel a skill, how often reward model and truth agree, by the size of the true gap."""
    figure = ReportFigure(figsize=(9.6, 3.1), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (skill, of) in zip(axes, panels.items(), strict=True):
        ax.axhline(0.5, color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)))
        spots = {name: i for i, name in enumerate(("any", *STRENGTHS))}
        for kind, marker, color in (("any", "D", "ink"), ("", "o", "blue")):
            here = [a for a in of if (a.strength == "any") == (kind == "any")]
            dots(ax, [spots[a.strength] for a in here], [a.rate for a in here], color=COLORS[color], marker=marker,
                  linestyle="none")  # fmt: skip
        ax.set(title=skill, ylim=(0, 1.02), xlim=(-0.6, len(spots) - 0.4))
        ax.set_xticks(range(len(spots)), ["all", *(s.split()[0] for s in STRENGTHS)], rotation=40, ha="right")
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("better answer has the higher reward")
    figure.twin = describe_accuracy(panels)
    return figure


def describe_accuracy(panels: Mapping[str, Sequence[Accuracy]]) -> str:
    """Return the facts of `figure_accuracy` as text."""
    lines = ["Share of couples whose better answer gets the higher reward (a coin: 0.50; 95 % intervals over prompts):"]
    for skill, of in panels.items():
        lines.append(f"- {skill}: " + "; ".join(
            f"{'all' if a.strength == 'any' else a.strength.removesuffix(' better')} {brief(a.rate)}" for a in of
        ))  # fmt: skip
    return "\n".join(lines)


@styled
def figure_calibration(panels: Mapping[str, Sequence[CalibrationBin]]) -> ReportFigure:
    """Draw what the reward model says of its own choice against the truth, and against what raters would say."""
    figure = ReportFigure(figsize=(9.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, bins) in zip(axes, panels.items(), strict=True):
        ax.plot([0.5, 1], [0.5, 1], color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)), label="as it says")
        at = np.array([b.predicted for b in bins])
        dots(ax, at - 0.004, [b.true for b in bins], color=COLORS["blue"], marker="o", linestyle="-", label="truth")
        dots(ax, at + 0.004, [b.raters for b in bins], color=COLORS["orange"], marker="s", linestyle="--",
              markerfacecolor=COLORS["plate"], label="raters would choose it")  # fmt: skip
        ax.set(title=title, xlabel="predicted: σ(difference of rewards)", xlim=(0.48, 1.02), ylim=(0.35, 1.02))
    axes[0].set_ylabel("its choice is the better one")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.twin = describe_calibration(panels)
    return figure


def describe_calibration(panels: Mapping[str, Sequence[CalibrationBin]]) -> str:
    """Return the facts of `figure_calibration` as text."""
    lines = ["How sure the reward model is of its choice, and how often that choice is the better one:"]
    for title, bins in panels.items():
        lines.append(f"{title}:")
        lines += [f"- says {b.predicted:.2f} ({b.couples} couples): truth {brief(b.true)}; raters would choose it "
                  f"{brief(b.raters)}" for b in bins]  # fmt: skip
    return "\n".join(lines)


@styled
def figure_longer(changes: Mapping[str, tuple[Mean, Rate]]) -> ReportFigure:
    """Draw what a sentence too many does to the reward, and how often the reward model likes the answer better."""
    figure = ReportFigure(figsize=(9.6, 1.2 + 0.38 * len(changes)), layout="constrained")
    reward, liked = figure.subplots(1, 2, sharey=True)
    spots = np.arange(len(changes))
    reward.axvline(0, color=COLORS["gray"], linewidth=0.9)
    dots(reward, spots, [c for c, _ in changes.values()], across=True, color=COLORS["orange"], marker="o",
          linestyle="none")  # fmt: skip
    dots(liked, spots, [share for _, share in changes.values()], across=True, color=COLORS["blue"], marker="s",
          linestyle="none")  # fmt: skip
    reward.set_yticks(spots, list(changes))
    reward.set(title="Change of the reward", xlabel=f"logits (true quality: −{LONGER_COSTS}; control: 0)",
               ylim=(len(changes) - 0.5, -0.5))  # fmt: skip
    liked.set(title="The longer one gets the higher reward", xlabel="share of answers (truth: 0)", xlim=(-0.02, 1.02))
    figure.twin = describe_longer(changes)
    return figure


def describe_longer(changes: Mapping[str, tuple[Mean, Rate]]) -> str:
    """Return the facts of `figure_longer` as text."""
    lines = [f"One sentence too many costs {LONGER_COSTS} of true quality. What the reward model makes of it:"]
    lines += [f"- {way}: reward {change}; higher than before in {brief(share)} of the answers"
              for way, (change, share) in changes.items()]  # fmt: skip
    return "\n".join(lines)


@styled
def figure_climb(climbs: Sequence[Climb]) -> ReportFigure:
    """Draw, one row a skill, what each judge picks out of k: its reward, its true quality, its length."""
    skills = list(dict.fromkeys(c.skill for c in climbs))
    figure = ReportFigure(figsize=(9.6, 2.7 * len(skills)), layout="constrained")
    grid = figure.subplots(len(skills), 3, squeeze=False)
    columns = (("reward, from the mean", "reward"), ("true quality", "quality"), ("length in tokens", "n_tokens"))
    for row, skill in zip(grid, skills, strict=True):
        for ax, (title, column) in zip(row, columns, strict=True):
            for c in [c for c in climbs if c.skill == skill]:
                color, marker, line = JUDGES.get(c.judge, ("green", "^", "-"))
                dots(ax, c.ks, getattr(c, column), color=COLORS[color], marker=marker or "x", linestyle=line,
                      label=c.judge, markersize=4.5)  # fmt: skip
            ks = sorted({k for c in climbs for k in c.ks})
            log_ticks(ax, ks, base=2)
            ax.set(title=f"{skill}: {title}", xlabel="k answers to choose from" if skill == skills[-1] else "")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.twin = describe_climb(climbs)
    return figure


def describe_climb(climbs: Sequence[Climb]) -> str:
    """Return the facts of `figure_climb` as text."""
    lines = ["The pick out of k answers, mean over prompts with 95 % interval:"]
    for c in climbs:
        lines.append(f"- {c.skill}, {c.judge}:")
        for what, column in (("reward", c.reward), ("quality", c.quality), ("tokens", c.n_tokens)):
            lines.append(f"    {what}: " + "; ".join(
                f"k={k} {m.value:.2f} ±{m.value - m.low:.2f}" for k, m in zip(c.ks, column, strict=True)
            ))  # fmt: skip
    return "\n".join(lines)


def most_misled(judged: Sequence[Judged], small: int) -> list[tuple[Judged, float]]:
    """Return one prompt's answers with their true qualities: where all of them mislead most, against the first few.

    That is the prompt whose favourite among all answers is worst against the favourite among the first `small`.
    """
    groups = [list(zip(g, qualities(g), strict=True)) for g in by_prompt(judged)]
    return min(groups, key=lambda g: _favourite(g)[1] - _favourite(g[:small])[1])


def describe_picks(climbs: Sequence[Climb], prompts: Sequence[Sequence[tuple[Judged, float]]], k: int) -> str:
    """Return what the reward model picks out of k: on average, and out of the first k answers of some prompts."""
    lines = [f"K = {k}, on average over the prompts:"]
    for c in climbs:
        i = c.ks.index(k)
        lines.append(f"  {c.skill:<13}{c.judge:<13} reward {c.reward[i].value:+.2f}  quality {c.quality[i].value:+.2f}"
                     f" ±{c.quality[i].value - c.quality[i].low:.2f}  {c.n_tokens[i].value:.1f} tokens")  # fmt: skip
    for answers in prompts:
        pick, best = _favourite(answers[:k]), max(answers[:k], key=lambda jq: jq[1])
        lines += ["", f"asked:  {_flat(pick[0].candidate.prompt.text)}", *_line("picked", *pick)]
        lines += _line("passed over", *best) if best[1] > pick[1] else ["no better one among them"]
    return "\n".join(lines)


def _favourite(answers: Sequence[tuple[Judged, float]]) -> tuple[Judged, float]:
    return max(answers, key=lambda jq: jq[0].reward)


def _line(what: str, j: Judged, quality: float) -> list[str]:
    figures = f"reward {j.reward:+.2f}, true quality {quality:.2f}, {j.candidate.n_tokens} tokens"
    return [f"{what}: {_flat(j.candidate.text)}", f"        {figures}"]


def _flat(text: str) -> str:
    return text.replace("\n", " / ")
