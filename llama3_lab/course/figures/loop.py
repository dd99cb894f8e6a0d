"""Figures of 08_the_loop: the chain of stages as far as it has got, and one stage against the one before."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from llama3_lab.course import views
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
