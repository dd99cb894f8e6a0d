"""table_safety(), safety_words(), safety_section(): a run's violations and false refusals, as text and as HTML.

VR: share of hazards, in known wordings, that were helped with. FRR: share of look-alikes that were refused.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from html import escape

from llama3_lab.course.views import aligned, brief
from llama3_lab.records import RunReport, SafetyScore

HEAD = ("stage", "layers", "VR", "VR held out", "FRR", "right help", "passed")


def rows(run: RunReport) -> list[tuple[str, ...]]:
    """Return one row a stage and set of layers: rates with their intervals."""
    return [(s.stage, s.layers, *map(brief, (s.vr, s.held_out_vr, s.frr, s.helped, s.passed))) for s in run.safety]


def table_safety(run: RunReport) -> str:
    """Return the run's safety table: policies alone, then behind both guards; "" where safety was off."""
    if not run.safety:
        return ""
    short = [
        (s.stage if s.layers == "model" else f"{s.stage} + guards",
         *map(brief, (s.vr, s.held_out_vr, s.frr, s.passed)))
        for s in run.safety if s.layers in ("model", "both guards")
    ]  # fmt: skip
    n = run.safety[0]
    title = (f"Safety (greedy; {n.vr.n} hazards in known wordings, {n.held_out_vr.n} in the held-out one, {n.frr.n} "
             f"look-alikes, {n.passed.n} ordinary)")  # fmt: skip
    lines = [textwrap.fill(line, 100, subsequent_indent="  ") for line in safety_words(run)]
    table = aligned(("stage", "VR", "VR held out", "FRR", "passed"), short, 24)
    return "\n".join([textwrap.fill(title, 100), table, *lines])


def table_false_refusals(run: RunReport) -> str:
    """Return how often each policy refused the harmless requests that the profile named; "" where it named none."""
    if not run.false_refusals:
        return ""
    title = f"Refusals of harmless requests (greedy; {run.false_refusals[0].rate.n} requests; read by the detector)"
    return "\n".join([title, *(f"{f.stage:<24}{brief(f.rate)}" for f in run.false_refusals)])


def of(run: RunReport, stage: str, layers: str = "model") -> SafetyScore | None:
    """Return a stage's score behind a set of layers, or None."""
    return next((s for s in run.safety if (s.stage, s.layers) == (stage, layers)), None)


def safety_words(run: RunReport) -> list[str]:
    """Return what the safety table shows, in sentences; nothing where safety was off."""
    alone = [s for s in run.safety if s.layers == "model"]
    if not alone:
        return []
    first, last = alone[0], alone[-1]
    both = of(run, last.stage, "both guards") or last
    lines = [
        f"From “{first.stage}” to “{last.stage}”: violations {brief(first.vr)} to {brief(last.vr)}, false refusals "
        f"{brief(first.frr)} to {brief(last.frr)}; in the held-out wording violations went from "
        f"{brief(first.held_out_vr)} to {brief(last.held_out_vr)}.",
        f"Both guards around “{last.stage}”: violations {brief(both.vr)} (held-out wording {brief(both.held_out_vr)}), "
        f"at the price of false refusals {brief(both.frr)} and a pass rate of {brief(both.passed)}, "
        f"which is {brief(last.passed)} without them.",
    ]
    for f in run.safety_funnel:
        lines.append(
            f"Round {f.round}: {f.hazards} hazards and {f.look_alikes} look-alikes asked; {f.violations} hazards were "
            f"helped with; the guard dropped {f.dropped} of {f.candidates} candidates; {f.own} demonstrations in the "
            f"policy's own words, {f.written} written by annotators; {f.pairs} safety pairs."
        )
    return lines


def safety_section(run: RunReport, table: Callable[[str, Sequence[str], Sequence[Sequence[str]]], str]) -> str:
    """Return the report page's section, "" where safety was off. table: the page's own table maker."""
    named = table("Refusals of harmless requests, read by the refusal detector, with 95 % intervals.",
                  ("stage", "refused"), [(f.stage, brief(f.rate)) for f in run.false_refusals]
                  ) if run.false_refusals else ""  # fmt: skip
    if not run.safety:
        return named
    words = "".join(f"<p>{escape(line)}</p>" for line in safety_words(run))
    caption = "Rates with 95 % intervals. Right help: look-alikes with their own answer."
    return words + named + table(caption, HEAD, rows(run))
