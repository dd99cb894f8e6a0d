"""Figures and tables of 11_the_report_audited: the ledger as a page, verdicts, slips, guards and a duel."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from llama3_lab.course.views import COLORS, ReportFigure, styled
from llama3_lab.course.widgets import Page
from llama3_lab.paper.claims import SECTIONS, VERDICTS, Claim, of_verdict
from llama3_lab.paper.evidence import Evidence
from llama3_lab.paper.facts import plain
from llama3_lab.paper.inconsistencies import Inconsistency

Found = Mapping[str, Sequence[Evidence]]  # by claim id
WIDE, NARROW = 100, 76  # columns of a text; a page, or a window of 800 pixels, cuts longer lines within a word
ORDERS = ("by number", "by section", "by verdict", "by evidence")
SIGNS = {"supports": "+", "contradicts": "−", "inconclusive": "?", "cannot be tested here": "·"}
STYLE = """<style>
.llama3-lab-ledger {line-height: 1.4; max-width: 62em}
.llama3-lab-ledger details {border-top: 1px solid var(--jp-border-color2, #ccc)}
.llama3-lab-ledger summary {display: grid; grid-template-columns: 1em 2.6em 9.5em 2em 1fr; column-gap: .5em;
  padding: .3em .2em; cursor: pointer}
.llama3-lab-ledger summary::before {content: "▸"}
.llama3-lab-ledger details[open] > summary::before {content: "▾"}
.llama3-lab-ledger h4 {margin: 1.2em 0 .3em}
.llama3-lab-ledger dl {display: grid; grid-template-columns: 8em minmax(0, 1fr); gap: .2em .8em;
  margin: .2em 0 1em; padding-left: 1.5em; width: auto; box-sizing: border-box}
.llama3-lab-ledger dt, .llama3-lab-ledger dd {margin: 0; width: auto; float: none; overflow-wrap: anywhere}
</style>"""


def worded(verdict: str) -> str:
    """Return a verdict as one says it."""
    return verdict.replace("_", " ")


def ordered(claims: Sequence[Claim], found: Found, order: str) -> list[tuple[str, list[Claim]]]:
    """Return the claims in one of ORDERS, in groups with a heading each; "by number" is one group without.

    "by evidence" goes by what contradicts, supports, is inconclusive, or only shows; first what contradicts.

    Raises:
        ValueError: if there is no such order.
    """
    strongest = ("contradicts", "supports", "inconclusive", "cannot be tested here")
    keys: dict[str, Callable[[Claim], str]] = {
        "by number": lambda c: "", "by section": lambda c: c.report, "by verdict": lambda c: worded(c.verdict),
        "by evidence": lambda c: next((s for s in strongest if s in {e.says for e in found.get(c.id, ())}),
                                      "nothing computed"),
    }  # fmt: skip
    if order not in keys:
        raise ValueError(f"unknown order {order!r}; there is {', '.join(ORDERS)}")
    headings = {"by section": SECTIONS, "by verdict": tuple(map(worded, VERDICTS)), "by evidence": strongest}
    groups: dict[str, list[Claim]] = {heading: [] for heading in headings.get(order, ())}
    for c in claims:
        groups.setdefault(keys[order](c), []).append(c)
    return [(heading, of) for heading, of in groups.items() if of]


def page_claims(claims: Sequence[Claim], found: Found, own: Found | None, verdict: str = "",
                order: str = "by number") -> Page:  # fmt: skip
    """Return the ledger as a page: a row a claim, which opens to its source and all its evidence.

    found: all evidence, that of a recorded run included; own: what the reader's newest run says to the same claims, or
    None where there is no such run. verdict: show only claims that have it. Rows open by a click, or by Tab and Enter.
    """
    shown = of_verdict(claims, [verdict] if verdict else [])
    head = f"{len(shown)} of {len(claims)} claims, {worded(verdict) or 'all verdicts'}, {order}"
    key = "computed here: " + ", ".join(f"{sign} {says}" for says, sign in SIGNS.items())
    groups = ordered(shown, found, order)
    lines, parts = [head, key], [f'{STYLE}<div class="llama3-lab-ledger"><p>{head}<br>{key}</p>']
    for heading, of in groups:
        lines += ["", heading] if heading else [""]
        parts += [f"<h4>{escape(heading)} ({len(of)})</h4>"] if heading else []
        for c in of:
            lines.append(f"{c.id}  {worded(c.verdict):<19}  {_signs(c, found):<3} {c.claim}")
            parts.append(_row(c, found, own))
    return Page("\n".join(lines), "\n".join([*parts, "</div>"]), table_claims(claims, found))


def _signs(claim: Claim, found: Found) -> str:
    return "".join(SIGNS[e.says] for e in found.get(claim.id, ()))


def _row(claim: Claim, found: Found, own: Found | None) -> str:
    """Return one claim as a line of HTML that opens."""
    cells = (claim.id, worded(claim.verdict), _signs(claim, found), claim.claim)
    told = "".join(f"<dt>{what}</dt><dd>{escape(text)}</dd>" for what, text in _opened(claim, found, own))
    summary = "".join(f"<span>{escape(cell)}</span>" for cell in cells)
    return f"<details><summary>{summary}</summary><dl>{told}</dl></details>"


def _opened(claim: Claim, found: Found, own: Found | None) -> list[tuple[str, str]]:
    """Return what a claim opens to, as name and text: report, source, what stands there, and all evidence."""
    told = [("the report", f"under “{claim.report}”"), ("source", claim.where), ("there", claim.figure)]
    of = found.get(claim.id, ())
    told += [("computed", f"{e.says}. About {e.about}. {e.text}") for e in of]
    if any("our small world" in e.about for e in of):
        mine = own.get(claim.id, ()) if own is not None else ()
        told += [("your own run", f"{e.says}. About {e.about}. {e.text}") for e in mine]
        if own is None:
            told.append(("your own run", "none found; notebooks 03 to 08 make one, and so does “make run”"))
    return told if of else [*told, ("computed", "nothing; this one is decided by reading, or not at all")]


def table_claims(claims: Sequence[Claim], found: Found) -> str:
    """Return the ledger as a table in Markdown, in which evidence opens from its row without a kernel, too."""
    rows = [f"| {c.id} | {_cell(c.claim)} | **{worded(c.verdict)}** | {_cell(c.where)}: {_cell(c.figure)} | "
            f"{' '.join(map(_opening, found.get(c.id, ()))) or '–'} |" for c in claims]  # fmt: skip
    head = ["| | the report says | verdict | what stands there | computed here |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _opening(e: Evidence) -> str:
    about = e.about.split(" (")[0].removesuffix(" with made-up numbers")
    return f"<details><summary>{e.says} ({about})</summary>{_cell(e.text)}</details>"


def _cell(text: str) -> str:
    for letter in "|~*_$<":  # which mean something in Markdown
        text = text.replace(letter, f"\\{letter}" if letter != "<" else "&lt;")
    return text


def beside(name: str, recorded: Evidence, own: Evidence | None) -> str:
    """Return what a recorded run and the reader's own say to one question, one below the other."""
    texts = [("recorded", f"{recorded.says}. {recorded.text}"),
             ("yours", f"{own.says}. {own.text}" if own else "no run found")]  # fmt: skip
    return "\n".join([name.replace("_", " "), *(textwrap.fill(
        f"{who + ':':<10}{text}", WIDE, initial_indent="  ", subsequent_indent=" " * 12) for who, text in texts)])


def told(found: Evidence) -> str:
    """Return what evidence says and why, in lines that no page cuts."""
    return textwrap.fill(f"{found.says} | {found.text}", NARROW, subsequent_indent="  ")


# -- pictures


@styled
def figure_verdicts(claims: Sequence[Claim]) -> ReportFigure:
    """Draw how many claims of each section of the report have each verdict: a grid of counts."""
    sections = [s for s in SECTIONS if any(c.report == s for c in claims)]
    counts = Counter((c.report, c.verdict) for c in claims)
    figure = ReportFigure(figsize=(9.6, 1.4 + 0.36 * len(sections)), layout="constrained")
    ax = figure.subplots()
    for y, section in enumerate(sections):
        for x, verdict in enumerate(VERDICTS):
            if n := counts[section, verdict]:
                color = COLORS["orange" if verdict in ("wrong", "not_found") else "blue"]
                ax.scatter(x, y, s=130 + 75 * n, color=color, marker="s" if color == COLORS["orange"] else "o")
                ax.text(x, y, str(n), color=COLORS["plate"], ha="center", va="center", fontweight="bold")
    ax.set_xticks(range(len(VERDICTS)), [worded(v).replace(" ", "\n") for v in VERDICTS])
    ax.set_yticks(range(len(sections)), sections)
    ax.set(xlim=(-0.6, len(VERDICTS) - 0.4), ylim=(len(sections) - 0.4, -0.6))
    ax.xaxis.tick_top()
    for side in ("bottom", "left"):
        ax.spines[side].set_visible(False)
    figure.twin = describe_verdicts(claims)
    return figure


def describe_verdicts(claims: Sequence[Claim]) -> str:
    """Return the facts of `figure_verdicts` as text."""
    lines = ["Claims by section of the report and verdict (squares in the figure: wrong, not found):"]
    for section in SECTIONS:
        of = Counter(c.verdict for c in claims if c.report == section)
        lines.append(f"- {section}: " + ", ".join(f"{of[v]} {worded(v)}" for v in VERDICTS if of[v]))
    return "\n".join(lines)


@styled
def figure_inconsistencies(rows: Sequence[Inconsistency]) -> ReportFigure:
    """Draw printed over computed for each slip, on a scale of powers of ten; 1 is agreement."""
    figure = ReportFigure(figsize=(9.6, 0.9 + 0.33 * len(rows)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(1, color=COLORS["gray"], linewidth=0.9)
    for y, row in enumerate(rows):
        large = not 0.95 < row.ratio < 1.05
        ax.plot([1, row.ratio], [y, y], color=COLORS["orange" if large else "blue"], linewidth=1.2)
        ax.plot(row.ratio, y, color=COLORS["orange" if large else "blue"], marker="D" if large else "o")
        ax.annotate(f"{row.ratio:.3g}", (row.ratio, y), (8 if row.ratio >= 1 else -8, 0), textcoords="offset points",
                    va="center", ha="left" if row.ratio >= 1 else "right", fontsize=8.5)  # fmt: skip
    ax.set_xscale("log")
    ax.set_yticks(range(len(rows)), [f"{r.where}: {r.what.split(', ')[0]}" for r in rows], fontsize=8.5)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(3e-5, 20), xlabel="printed ÷ computed (diamonds: more than 5 % apart)")
    figure.twin = describe_inconsistencies(rows)
    return figure


def describe_inconsistencies(rows: Sequence[Inconsistency]) -> str:
    """Return the facts of `figure_inconsistencies` as text, with what each one means."""
    lines = ["What is printed, against what follows from other printed figures:"]
    for r in rows:
        told = (f"- {r.where}, {r.what}: {_amount(r.printed, r.unit)} printed, {_amount(r.computed, r.unit)} computed, "
                f"ratio {r.ratio:.3g}; {r.note}")  # fmt: skip
        lines.append(textwrap.fill(told, WIDE, subsequent_indent="  "))
    return "\n".join(lines)


def _amount(value: float, unit: str) -> str:
    return f"{plain(float(f'{value:.4g}'))} {unit}"


@dataclass(frozen=True)
class Pair:
    """A language of table 25: change of violations in % with the input guard, the output guard, both, and if
    they missed independently."""

    language: str
    input: float
    output: float
    both: float
    independent: float


@styled
def figure_guards(pairs: Sequence[Pair]) -> ReportFigure:
    """Draw table 25's changes of violations: each guard alone, both together, and both if they missed independently."""
    figure = ReportFigure(figsize=(9.6, 1.2 + 0.32 * len(pairs)), layout="constrained")
    ax = figure.subplots()
    spots = np.arange(len(pairs))
    for name, color, marker, filled in (("input", "blue", "<", True), ("output", "green", ">", True),
                                        ("both", "orange", "D", True), ("independent", "ink", "o", False)):  # fmt: skip
        label = {"input": "input guard", "output": "output guard", "both": "both, as printed",
                 "independent": "both, if they missed independently"}[name]  # fmt: skip
        ax.plot([getattr(p, name) for p in pairs], spots, color=COLORS[color], marker=marker, linestyle="none",
                label=label, markerfacecolor=COLORS[color if filled else "plate"], markersize=7)  # fmt: skip
    for y, p in enumerate(pairs):
        ax.plot([p.independent, p.both], [y, y], color=COLORS["gray"], linewidth=1.0, zorder=0)
    ax.set_yticks(spots, [p.language for p in pairs])
    ax.set(xlim=(-101, -25), ylim=(len(pairs) - 0.5, -0.5), xlabel="change of violations, % (further left is better)")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.twin = describe_guards(pairs)
    return figure


def describe_guards(pairs: Sequence[Pair]) -> str:
    """Return the facts of `figure_guards` as text."""
    lines = ["Change of violations in %, by language:"]
    lines += [f"- {p.language}: input guard {p.input:+g}, output guard {p.output:+g}, both {p.both:+g}; if they missed "
              f"independently {p.independent:+.0f}" for p in pairs]  # fmt: skip
    return "\n".join(lines)


Duel = Sequence[tuple[float, float, float]]  # mean, low, high


@styled
def figure_duel(noises: Sequence[float], duels: Mapping[str, Duel]) -> ReportFigure:
    """Draw by how much ten times the data is more right than the small filtered set, by its share of wrong labels."""
    figure = ReportFigure(figsize=(7.6, 3.3), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color=COLORS["gray"], linewidth=0.9)
    looks = ("blue", "o", "-"), ("orange", "s", "--")
    for (name, found), (color, marker, line) in zip(duels.items(), looks, strict=False):
        mean, low, high = (100 * np.array([f[i] for f in found]) for i in range(3))
        ax.fill_between(noises, low, high, color=COLORS[color], alpha=0.18, linewidth=0)
        ax.plot(noises, mean, color=COLORS[color], marker=marker, linestyle=line, label=name)
    ax.set(xlabel="share of wrong labels in the larger set", ylabel="larger set is more right by, points",
           title="Ten times the data against a small filtered set (simulated)")  # fmt: skip
    ax.legend(loc="lower left")
    figure.twin = describe_duel(noises, duels)
    return figure


def describe_duel(noises: Sequence[float], duels: Mapping[str, Duel]) -> str:
    """Return the facts of `figure_duel` as text."""
    lines = ["Points by which ten times the data is more right than the small filtered set (95 % intervals; "
             "simulated):"]
    for name, found in duels.items():
        lines.append(f"{name}:")
        lines += [f"- {noise:.0%} of labels wrong: {100 * m:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                  for noise, (m, low, high) in zip(noises, found, strict=True)]  # fmt: skip
    return "\n".join(lines)
