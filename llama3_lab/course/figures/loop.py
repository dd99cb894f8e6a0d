"""Figures of 08_the_loop: the chain of stages as far as it has got, one stage against another, safety by round."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np

from llama3_lab.course import views
from llama3_lab.course.marks import dots
from llama3_lab.course.safety_views import table_safety
from llama3_lab.course.views import ReportFigure
from llama3_lab.pipeline.reports import compare
from llama3_lab.records import CHECKABLE, Evaluation, PromptScore, RoundReport, RunReport


def figure_rounds(start: Sequence[Evaluation], rounds: Sequence[RoundReport]) -> ReportFigure:
    """Draw right answers on the checkable skills from the base to the last of `rounds`, controls beside."""
    figure = views.figure_chain(_unfinished(start, rounds))
    figure.twin = describe_rounds(start, rounds)
    return figure


def describe_rounds(start: Sequence[Evaluation], rounds: Sequence[RoundReport]) -> str:
    """Return the facts of `figure_rounds` as text."""
    return views.describe_chain(_unfinished(start, rounds))


def figure_funnel(report: RoundReport) -> ReportFigure:
    """Draw a round's funnel, its text twin attached."""
    figure = views.figure_funnel(report)
    figure.twin = views.describe_funnel(report)
    return figure


RATES = (  # name, field of SafetyScore, colour, marker, line
    ("violations", "vr", "orange", "o", "-"), ("violations, held-out wording", "held_out_vr", "purple", "D", "--"),
    ("false refusals", "frr", "blue", "s", "-."), ("ordinary requests passed", "passed", "green", "^", ":"),
)  # fmt: skip


@views.styled
def figure_safety(run: RunReport, layers: str = "model") -> ReportFigure:
    """Draw violations, false refusals and passes over the policies of a run, alone or behind a set of guards.

    Raises:
        ValueError: if the run had safety off.
    """
    rows = [s for s in run.safety if s.layers == layers]
    if not rows:
        raise ValueError(f"{run.name}: no safety figures for {layers!r}; was the run made with safety off?")
    figure = ReportFigure(figsize=(7.6, 3.4), layout="constrained")
    ax = figure.subplots()
    at = np.arange(len(rows))
    for i, (label, field, color, marker, line) in enumerate(RATES):
        dots(ax, at + 0.06 * (i - 1.5), [getattr(s, field) for s in rows], color=views.COLORS[color], marker=marker,
             linestyle=line, label=label)  # fmt: skip
    ax.set_xticks(at, [s.stage.replace(" policy", "\npolicy").replace(" sft", "\nsft") for s in rows])
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("share of requests")
    ax.set_title("Policies alone" if layers == "model" else f"Behind the {layers}")
    figure.legend(loc="outside lower center", ncols=2)
    figure.twin = table_safety(run)
    return figure


def describe_step(name: str, rows: Sequence[PromptScore], before: str, rows_before: Sequence[PromptScore]) -> str:
    """Return, skill by skill, what a stage changed against the one before, on the same prompts, with intervals."""
    lines = [f"{name}, against {before} (sampled answers, same prompts, 95 % intervals)"]
    for skill in ("all", *CHECKABLE, "conversation"):
        metric = "quality" if skill == "conversation" else "sampled"
        c = compare(skill, rows, rows_before, metric, skill)  # type: ignore[arg-type]
        what = "all checkable" if skill == "all" else skill
        unit = " (quality)" if metric == "quality" else ""
        lines.append(f"  {what + unit:<23} {c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]  n={c.n}  {c.verdict}")
    return "\n".join(lines)


def _unfinished(start: Sequence[Evaluation], rounds: Sequence[RoundReport]) -> RunReport:
    """Return what the chain's figure reads of a report, for a run that has no report yet."""
    return cast(RunReport, SimpleNamespace(start=tuple(start), rounds=tuple(rounds)))
