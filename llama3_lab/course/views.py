"""figure_*(), describe_*(), table_stages(): a run as pictures, and the same facts as text.

Every figure has a text twin with the same numbers, for screen readers, terminals and tests. Colour is
never alone: markers, line styles, filled against hollow, and words carry the same meaning. Figures are
made without pyplot, so no window opens and nothing stays in memory; a notebook shows what is returned.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llama3_lab.course.marks import dots, log_ticks
from llama3_lab.records import (
    BestOfK,
    Comparison,
    Curve,
    Evaluation,
    Rate,
    RoundReport,
    RunReport,
    SkillScore,
    in_order,
)

P = ParamSpec("P")
# Names for the page's stylesheet, which swaps them in the dark; on white each has contrast ≥ 4 : 1.
COLORS = {"ink": "#1b1f24", "muted": "#59636e", "rule": "#d9dee4", "band": "#f3f5f7", "plate": "#ffffff",
          "blue": "#0072b2", "orange": "#c2500c", "green": "#00805f", "purple": "#9a4c94", "ochre": "#80650a",
          "gray": "#6c757f"}
STYLE = {
    "font.family": "sans-serif", "font.size": 9.5, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.linewidth": 0.7, "lines.linewidth": 1.6, "lines.markersize": 5.5,
    "legend.frameon": False, "xtick.major.size": 0, "ytick.major.size": 0, "svg.fonttype": "none",
    "svg.hashsalt": "llama3-lab", "figure.facecolor": COLORS["plate"], "axes.facecolor": COLORS["plate"],
    "grid.color": COLORS["rule"], "axes.edgecolor": COLORS["muted"], "axes.labelcolor": COLORS["muted"],
    "text.color": COLORS["ink"], "xtick.color": COLORS["muted"], "ytick.color": COLORS["muted"],
}
METRICS = (("sampled", "blue", "o", "-"), ("greedy", "orange", "s", "--"))
JUDGES = {  # judge: colour, marker, line
    "checker": ("green", "^", "-"), "reward model": ("orange", "o", "-"),
    "reward model + log-probability": ("ochre", "s", "--"), "implicit reward": ("purple", "D", "-."),
    "log-probability": ("blue", "v", ":"), "majority vote": ("ink", "P", "--"), "random": ("gray", "", ":"),
}
ROUND_LINES: tuple[tuple[str, Any], ...] = (
    ("blue", "-"), ("orange", "--"), ("green", "-."), ("purple", ":"), ("ink", (0, (5, 1, 1, 1, 1, 1))))


class Twin(str):
    """The text twin of a figure; a cell that ends with it shows it line by line, as print() does."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


class ReportFigure(Figure):
    """A matplotlib figure that a notebook shows by itself, with or without pyplot. twin: the same facts as text."""

    twin: str = ""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=110)
        return out.getvalue()


def styled(draw: Callable[P, ReportFigure]) -> Callable[P, ReportFigure]:
    """Return `draw` under the one style, leaving the reader's own settings alone."""
    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> ReportFigure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)
    return inner


def describe(figure: ReportFigure) -> Twin:
    """Return a figure's text twin: the same facts, for those who cannot see it.

    Raises:
        ValueError: if it has none.
    """
    if not figure.twin:
        raise ValueError("this figure has no text twin; set figure.twin = describe_…(…)")
    return Twin(figure.twin)


def to_svg(figure: Figure) -> str:
    """Return the figure as SVG text, the same for the same figure every time."""
    out = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def stages(run: RunReport) -> list[Evaluation]:
    """Return the evaluations of a run in order: the start, then each round."""
    return [*run.start, *(e for r in run.rounds for e in r.evaluations)]


def is_control(stage: str) -> bool:
    """Return whether a stage's name says that it is a control."""
    return bool(re.search("random|control", stage.lower()))


def score(evaluation: Evaluation, skill: str = "all", level: int = 0) -> SkillScore | None:
    """Return the scores of one skill at one level (0: all levels), or None where it was not measured."""
    return next((s for s in evaluation.scores if (s.skill, s.level) == (skill, level)), None)


def skills_of(run: RunReport) -> list[str]:
    """Return the skills that a run has rates for, the checkable three together first."""
    seen = {s.skill for e in stages(run) for s in e.scores}
    return [s for s in ("all", *in_order(seen - {"all"})) if s in seen]


# --- the headline

@styled
def figure_chain(run: RunReport) -> ReportFigure:
    """Draw the pass rate on the checkable skills from the base to the last round, controls beside."""
    figure = ReportFigure(figsize=(9.6, 4.4), layout="constrained")
    ax = figure.subplots()
    chain = [(e, s) for e in stages(run) if (s := score(e)) and not is_control(e.stage)]
    spots = {e.stage: i for i, (e, _) in enumerate(chain)}
    _bands(ax, [e.round for e, _ in chain])
    for metric, color, marker, line in METRICS:
        rates = [getattr(s, metric) for _, s in chain]
        shift = -0.06 if metric == "sampled" else 0.06
        dots(ax, np.arange(len(rates)) + shift, rates, color=COLORS[color], marker=marker, linestyle=line,
              label=metric + (" at temperature 1" if metric == "sampled" else ""))
        controls = [(e, s) for e in stages(run) if (s := score(e)) and is_control(e.stage)]
        xs = [_control_spot(e.stage, spots) + 0.28 + shift for e, _ in controls]
        dots(ax, xs, [getattr(s, metric) for _, s in controls], color=COLORS["gray"], marker=marker,
              linestyle="none", markerfacecolor=COLORS["plate"], label=f"control (random answers), {metric}")
        if rates:
            for i in (0, len(rates) - 1):
                above = rates[i].value >= max(getattr(chain[i][1], m[0]).value for m in METRICS)
                ax.annotate(f"{rates[i].value:.2f}", (i + shift, rates[i].high if above else rates[i].low),
                            (0, 4 if above else -4), textcoords="offset points", ha="center",
                            va="bottom" if above else "top", color=COLORS[color])
    ax.set_xticks(range(len(chain)), [_short(e.stage) for e, _ in chain])
    ax.set(ylim=(0, 1.02), xlim=(-0.5, max(len(chain), 1) - 0.5), ylabel="share of answers that are right")
    ax.grid(axis="x", visible=False)
    ax.set_title("Right answers, checkable skills together, with 95 % intervals over prompts", pad=18)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def describe_chain(run: RunReport) -> str:
    """Return the facts of `figure_chain` as text."""
    lines = ["Right answers, checkable skills together, with 95 % intervals over prompts:"]
    for e in stages(run):
        if s := score(e):
            note = " (control: as many answers, chosen at random)" if is_control(e.stage) else ""
            lines.append(f"- {e.stage}{note}: sampled {s.sampled}; greedy {s.greedy}")
    return "\n".join(lines)


# --- pass rates by skill and stage

@styled
def figure_pass_rates(run: RunReport) -> ReportFigure:
    """Draw one panel per skill, one row per stage: greedy and sampled rates with intervals."""
    skills, rows = skills_of(run), stages(run)
    figure = ReportFigure(figsize=(9.6, 1.3 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots(1, max(len(skills), 1), sharey=True, squeeze=False)[0]
    for ax, skill in zip(axes, skills, strict=False):
        _bands(ax, [e.round for e in rows], across=True, named=False)
        for metric, color, marker, _ in METRICS:
            shift, fill = (0.14, "plate") if metric == "greedy" else (-0.14, color)
            spots = [i + shift for i, e in enumerate(rows) if score(e, skill)]
            rates = [getattr(s, metric) for e in rows if (s := score(e, skill))]
            dots(ax, spots, rates, across=True, color=COLORS[color], marker=marker, linestyle="none",
                  label=metric, markersize=4.5, markerfacecolor=COLORS[fill])
        ax.set(title=_title(skill), xlim=(-0.02, 1.02), xticks=(0, 0.5, 1), ylim=(len(rows) - 0.5, -0.5))
        ax.set_xticklabels(("0", ".5", "1"))
        names = [e.stage + (" (control)" if is_control(e.stage) else "") for e in rows]
        ax.set_yticks(range(len(rows)), names)
        ax.grid(axis="y", visible=False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def describe_pass_rates(run: RunReport) -> str:
    """Return the facts of `figure_pass_rates` as text."""
    lines = ["Share of right answers by skill and stage, with 95 % intervals over prompts:"]
    for skill in skills_of(run):
        lines.append(f"{_title(skill)}:")
        lines += [f"- {e.stage}: sampled {s.sampled}; greedy {s.greedy}"
                  for e in stages(run) if (s := score(e, skill))]
    return "\n".join(lines)


# --- the funnel of a round

ANSWERS = ("candidates", "finished", "decided", "passed")
PROMPTS = ("prompts", "solved", "selected")


def funnel_by_skill(report_round: RoundReport) -> dict[str, dict[str, int]]:
    """Return the counts of each skill, summed over its levels."""
    found = {row.skill: dict.fromkeys((*ANSWERS, *PROMPTS), 0) for row in report_round.funnel}
    for row in report_round.funnel:
        for count in found[row.skill]:
            found[row.skill][count] += getattr(row, count)
    return {s: found[s] for s in in_order(found)}


@styled
def figure_funnel(report_round: RoundReport) -> ReportFigure:
    """Draw what is left after each step, one column per skill: answers above, prompts below."""
    by_skill = funnel_by_skill(report_round)
    figure = ReportFigure(figsize=(9.6, 2.7), layout="constrained")
    grid = figure.subplots(2, max(len(by_skill), 1), sharey="row", squeeze=False, height_ratios=(4, 3))
    for row, (steps, color) in enumerate(((ANSWERS, "blue"), (PROMPTS, "green"))):
        for ax, (skill, counts) in zip(grid[row], by_skill.items(), strict=False):
            values, most = [counts[s] for s in steps], counts[steps[0]] or 1
            ax.barh(range(len(steps)), values, color=COLORS[color], height=0.74)
            for i, value in enumerate(values):
                share = f" ({value / most:.0%})" if i else ""
                ax.text(value + 0.03 * most, i, f"{value:,}{share}", va="center", fontsize=8.5)
            ax.set(xlim=(0, 1.75 * most), xticks=(), title="" if row else _title(skill))
            ax.set_yticks(range(len(steps)), steps)
            ax.set_ylim(len(steps) - 0.5, -0.5)
            ax.grid(visible=False)
            ax.spines["bottom"].set_visible(False)
    return figure


def describe_funnel(report_round: RoundReport) -> str:
    """Return the facts of `figure_funnel` as text."""
    lines = [f"Round {report_round.round}: from prompts to demonstrations, by skill:"]
    for skill, n in funnel_by_skill(report_round).items():
        answers = " → ".join(f"{n[s]:,} {s}" for s in ANSWERS)
        lines.append(f"- {skill}: {answers}; {' → '.join(f'{n[s]:,} {s}' for s in PROMPTS)}")
    return "\n".join(lines)


# --- choosing among K

@styled
def figure_best_of_k(run: RunReport) -> ReportFigure:
    """Draw, per skill, how right the answer is that each judge picks out of k."""
    skills = in_order(b.skill for b in run.best_of_k)
    figure = ReportFigure(figsize=(9.6, 3.7), layout="constrained")
    axes = figure.subplots(1, max(len(skills), 1), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for ax, skill in zip(axes, skills, strict=False):
        curves = [b for b in run.best_of_k if b.skill == skill]
        for i, b in enumerate(curves):
            color, marker, line = JUDGES.get(b.judge, ("muted", "x", "-"))
            spread = 2.0 ** (0.07 * (i - (len(curves) - 1) / 2))  # apart, so that intervals can be told apart
            handles[b.judge] = dots(ax, np.array(b.ks) * spread, b.rates, color=COLORS[color], marker=marker,
                                     linestyle=line, markersize=4.5)
        ks = sorted({k for b in curves for k in b.ks})
        log_ticks(ax, ks, base=2)
        ax.set(title=_title(skill), xlabel="k answers to choose from", ylim=(0, 1.02))
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("share of picks that are right")
    order = [j for j in JUDGES if j in handles] + [j for j in handles if j not in JUDGES]
    figure.legend([handles[j] for j in order], order, loc="outside lower center", ncols=4)
    return figure


def below_random(run: RunReport) -> dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return, by (skill, judge): the ks where a judge picks worse than random, and of these the sure ones.

    Sure: the whole interval of the judge lies below the rate of "random". Judges that never fall below
    are left out.
    """
    coins = {b.skill: dict(zip(b.ks, b.rates, strict=True)) for b in run.best_of_k if b.judge == "random"}
    found = {}
    for b in run.best_of_k:
        coin = coins.get(b.skill, {}) if b.judge != "random" else {}
        both = [(k, r) for k, r in zip(b.ks, b.rates, strict=True) if k in coin]
        below = tuple(k for k, r in both if r.value < coin[k].value - 1e-9)
        if below:
            found[b.skill, b.judge] = below, tuple(k for k, r in both if r.high < coin[k].value)
    return found


def notes_best_of_k(run: RunReport) -> list[str]:
    """Return one sentence per judge that picks worse than chance at some k, computed from the curves."""
    notes = []
    rates = {(b.skill, b.judge, k): r for b in run.best_of_k for k, r in zip(b.ks, b.rates, strict=True)}
    for (skill, judge), (below, sure) in below_random(run).items():
        k = (sure or below)[-1]
        weight = "its whole interval is below" if sure else "its interval still holds random's rate"
        notes.append(f"On {skill}, the {judge} picks worse than random at k = {', '.join(map(str, below))}: "
                     f"{brief(rates[skill, judge, k])} at k = {k}, random "
                     f"{rates[skill, 'random', k].value:.2f} ({weight}).")
    return notes


def describe_best_of_k(run: RunReport) -> str:
    """Return the facts of `figure_best_of_k` as text, and the judges that fall below random."""
    lines = ["Share of picks that are right, by judge and number of answers k, with 95 % intervals:"]
    lines += [f"- {b.skill}, {b.judge}: {_at_ks(b)}" for b in run.best_of_k]
    return "\n".join(lines + (notes_best_of_k(run) or ["No judge falls below random at any k."]))


# --- training curves

def curves_by_kind(run: RunReport) -> dict[tuple[str, str], list[Curve]]:
    """Return all training curves of a run by (stage without its round, metric), in order of appearance."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in dict.fromkeys((*run.curves, *(c for r in run.rounds for c in r.curves))):
        kind = re.sub(r"\b(round|run) ?\d+\b|-\d+$", "", curve.stage).strip(" -,")
        found.setdefault((kind or curve.stage, curve.metric), []).append(curve)
    return found


@styled
def figure_training_curves(run: RunReport) -> ReportFigure:
    """Draw each metric of each kind of training, one line style per round."""
    panels = curves_by_kind(run)
    columns = 3 if len(panels) <= 9 else 4
    rows = max(1, -(-len(panels) // columns))
    figure = ReportFigure(figsize=(9.6, 7 / columns * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, ((kind, metric), curves) in zip(axes, panels.items(), strict=False):
        rounds = list(dict.fromkeys(_round_of(c.stage) for c in curves))
        for curve in curves:  # runs of one round share its line; the twin tells them apart
            i = rounds.index(_round_of(curve.stage))
            color, line = ROUND_LINES[i % len(ROUND_LINES)]
            ax.plot(curve.steps, curve.values, color=COLORS[color], linestyle=line, linewidth=1.2,
                    label=rounds[i] or "_")
        if metric == "preference loss" or (metric == "loss" and "reward" in kind):
            ax.axhline(np.log(2), color=COLORS["gray"], linewidth=0.9, linestyle=(0, (1, 2)), label="ln 2")
        ax.set_title(f"{_title(kind)}: {metric}", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.margins(x=0.02)
    for ax in axes[len(panels):]:
        ax.set_visible(False)
    figure.supxlabel("optimizer step", fontsize=9, color=COLORS["muted"])
    drawn = {line.get_label(): line for ax in axes for line in ax.lines}
    names = sorted((n for n in drawn if n[0] != "_"), key=lambda name: (name.startswith("ln"), name))
    figure.legend([drawn[n] for n in names], names, loc="outside upper center", ncols=6, handlelength=3)
    return figure


def describe_training_curves(run: RunReport) -> str:
    """Return first, lowest, highest and last value of every training curve."""
    lines = ["Training curves (first → last value, range, optimizer steps):"]
    for curves in curves_by_kind(run).values():
        for c in curves:
            what = f"{c.values[0]:.3f} → {c.values[-1]:.3f}, {min(c.values):.3f} to {max(c.values):.3f}, " \
                   f"steps {c.steps[0]} to {c.steps[-1]}" if c.values else "no values"
            lines.append(f"- {c.stage}, {c.metric}: {what}")
    return "\n".join(lines)


# --- the terminal

def table_stages(run: RunReport) -> str:
    """Return the closing table: rates by stage and skill, comparisons, warnings; at most 100 columns."""
    rows = [(e, s) for e in stages(run) if (s := score(e))]
    head = ("stage", "greedy", "sampled", "pass@k", "k", "ended")
    body = [(e.stage, brief(s.greedy), brief(s.sampled), brief(s.at_k), str(e.samples),
             f"{s.ended.value:.0%}") for e, s in rows]
    n = rows[0][1].greedy.n if rows else 0
    parts = [f"Right answers, checkable skills together ({n} prompts; 95 % intervals over prompts)",
             aligned(head, body, 22), "Sampled at temperature 1, by skill"]
    skills = [s for s in skills_of(run) if s != "all"]
    by_skill = [(e.stage, *(brief(s.sampled) if (s := score(e, k)) else "–" for k in skills))
                for e in stages(run)]
    parts.append(aligned(("stage", *skills), by_skill, 22))
    if run.comparisons:
        titles = ("paired, on the same prompts", "metric, skill", "difference", "p_holm", "verdict")
        cells = [comparison_cells(c) for c in run.comparisons]
        parts.append(aligned(titles, cells, 100))
        parts += [HOLM_NOTE] if any(c[-1].endswith("*") for c in cells) else []
    warned = warnings(run)
    parts.append("\n".join(warned) if warned else "Health checks: all PASS.")
    return "\n".join(textwrap.fill(p, 100, subsequent_indent="  ") if "\n" not in p else p for p in parts)


HOLM_NOTE = "* the interval excludes zero, but p does not outlive Holm's correction: take it as a hint."


def brief(rate: Rate) -> str:
    """Return a rate with its interval, two digits each."""
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]" if rate.n else "–"


def comparison_cells(c: Comparison) -> tuple[str, str, str, str, str]:
    """Return name, metric and skill, difference with interval, corrected p and verdict as text."""
    star = "*" if c.verdict != "inconclusive" and c.p_holm >= 0.05 else ""
    p = "<0.001" if c.p_holm < 0.001 else f"{c.p_holm:.3f}"
    difference = f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]"
    return c.name, f"{c.metric} {c.skill}", difference, p, c.verdict + star


def warnings(run: RunReport) -> list[str]:
    """Return every health check that warned, once each, as one line."""
    checks = dict.fromkeys((*run.health, *(h for r in run.rounds for h in r.health)))
    return [f"WARN {h.stage}: {h.name}: {h.reason}" for h in checks if h.status == "WARN"]


# --- shared strokes

def aligned(head: Sequence[str], body: Sequence[Sequence[str]], first: int) -> str:
    """Align columns, two spaces apart, in 100; the first is at most `first` wide and wraps."""
    widths = [max(len(str(r[i])) for r in (head, *body)) for i in range(len(head))]
    widths[0] = max(12, min(first, widths[0], 100 - sum(widths[1:]) - 2 * (len(head) - 1)))
    lines = []
    for row in (head, *body):
        wrapped = textwrap.wrap(row[0], widths[0]) or [""]
        cells = [wrapped[0], *row[1:]]
        lines.append("  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip())
        lines += [f"  {more}" for more in wrapped[1:]]
        if row is head:
            lines.append("  ".join("─" * w for w in widths))
    return "\n".join(lines) + "\n"


def _bands(ax: Any, rounds: Sequence[int], across: bool = False, named: bool = True) -> None:
    """Shade every other round; `named` writes the round above its stages."""
    for number in sorted(set(rounds)):
        first, last = rounds.index(number) - 0.5, rounds.index(number) - 0.5 + rounds.count(number)
        if number % 2:
            (ax.axhspan if across else ax.axvspan)(first, last, color=COLORS["band"], zorder=0, linewidth=0)
        if named:
            name = f"round {number}" if number else "start"
            ax.text((first + last) / 2, 1.015, name, ha="center", va="bottom", fontsize=8.5,
                    transform=ax.get_xaxis_transform(), color=COLORS["muted"])


def _control_spot(stage: str, spots: dict[str, int]) -> float:
    """Find the stage that this control goes with: same words but for those about randomness."""
    words = set(re.findall(r"\w+", stage.lower()))

    def closeness(other: str) -> float:
        names = re.findall(r"\w+", other.lower())
        return len(words & set(names)) - 0.1 * len(names)

    return spots[max(spots, key=closeness)] if spots else 0


def _short(stage: str) -> str:
    name = re.sub(r"^round \d+\s*", "", stage)
    return re.sub(r"\b(sft|dpo)\b", lambda m: m[0].upper(), name).replace(" ", "\n", 1)


def _round_of(stage: str) -> str:
    return f"round {found[1]}" if (found := re.search(r"\bround ?(\d+)", stage)) else ""


def _title(name: str) -> str:
    if name == "all":
        return "all checkable"
    return re.sub(r"\b(sft|dpo)\b", lambda m: m[0].upper(), name)


def _at_ks(b: BestOfK) -> str:
    return "; ".join(f"k={k} {brief(r)}" for k, r in zip(b.ks, b.rates, strict=True))
