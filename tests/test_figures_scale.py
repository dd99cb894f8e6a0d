"""Figures of the lesson on scale: a figure and its text twin tell the same facts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llama3_lab.course import views
from llama3_lab.course.figures import scale as figures
from llama3_lab.paper import isoflop, power_law, scale, serving
from llama3_lab.paper.architecture import SIZES, Architecture, llama3
from llama3_lab.paper.facts import fact
from llama3_lab.paper.surface import published

MODELS = {"tiny": Architecture(2, 32, 96, 2, 1, 16, 640, tied=True), **{s: llama3(s) for s in SIZES}}
LAWS = {where: power_law.paper_law(where) for where in power_law.LAWS}
BUDGETS, FLOPS = fact("isoflop.budgets").value, fact("flops.405b").value
RATIOS = {10.0**p: 20.0 for p in range(18, 28)}


def cells(budget: float, at: float) -> list[isoflop.Cell]:
    rng = np.random.default_rng(int(budget / 1e10))
    return [isoflop.Cell("grid", budget, 32, 2, 2, int(n), int(budget), int(budget / 6 / n), 0, 0.01,
                         0.8 + 0.05 * math.log(n / at) ** 2 + 0.002 * rng.standard_normal(), 0.2, 9.0)
            for n in (1e4, 2e4, 4e4, 8e4, 1.6e5)]  # fmt: skip


CELLS = [*cells(1e11, 3e4), *cells(1e12, 5e5)]
PARABOLAS = [isoflop.fit_parabola(b, [c.parameters for c in CELLS if c.budget == b],
                                  [c.loss for c in CELLS if c.budget == b])[0] for b in (1e11, 1e12)]  # fmt: skip
SURFACE = published("besiroglu")
FIGURES = {
    "parts": lambda: figures.figure_parts(MODELS),
    "laws": lambda: figures.figure_laws(LAWS, BUDGETS, FLOPS, fact("law.forecast.tokens").value),
    "isoflop": lambda: figures.figure_isoflop(CELLS, PARABOLAS),
    "ratios": lambda: figures.figure_ratios("twenty", RATIOS),
    "serving": lambda: figures.figure_serving(SURFACE, "8b", (0.0, 1e13, 1e14)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_has_its_twin(name):
    figure = FIGURES[name]()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert len(views.describe(figure).splitlines()) >= 3


def test_bars_and_twin_have_the_shares_of_the_parts():
    figure = FIGURES["parts"]()
    widths = np.array([[bar.get_width() for bar in box] for box in figure.axes[0].containers])
    assert widths.shape == (4, 4) and (widths.sum(0) > 0.97).all() and (widths.sum(0) <= 1).all()
    share = llama3("8b").parts()["ffn"] / llama3("8b").parameters()
    assert widths[3, 1] == pytest.approx(share) and f"ffn {share:.1%}" in figure.twin
    assert "8b, 8,030,261,248" in figure.twin


def test_lines_of_the_laws_end_where_the_twin_says():
    figure = FIGURES["laws"]()
    ends = [line.get_ydata()[-1] for line in figure.axes[0].lines[:2]]
    for law, end in zip(LAWS.values(), ends, strict=True):
        assert end == pytest.approx(law.at(FLOPS))
        assert f"{law.at(FLOPS) / 1e12:.2f}T tokens" in figure.twin
    assert len({line.get_linestyle() for line in figure.axes[0].lines[:2]}) == 2, "colour alone"


def test_a_minimum_is_marked_only_where_it_is_bracketed():
    assert [p.bracketed for p in PARABOLAS] == [True, False]
    figure = FIGURES["isoflop"]()
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*" and len(line.get_xdata()) == 1]
    assert [float(s.get_xdata()[0]) for s in stars] == [PARABOLAS[0].at]
    first, second = figure.twin.splitlines()[1:]
    assert first.endswith("; bracketed") and second.endswith("larger sizes are missing")


def test_the_llamas_stand_at_their_own_ratio():
    figure = FIGURES["ratios"]()
    for (size, flops, ratio), line in zip(figures.llamas(), figure.axes[0].lines[1:], strict=True):
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (flops, ratio)
        assert f"- {size.upper()}, {flops:.1e} FLOPs: {ratio:,.0f} tokens a parameter; optimum 20;" in figure.twin
    assert [round(r) for _, _, r in figures.llamas()] == [1868, 213, 38]


def test_curves_of_serving_are_lowest_where_they_are_marked():
    figure = FIGURES["serving"]()
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    marks = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    for line, mark in zip(lines, marks, strict=True):
        assert mark.get_ydata()[0] <= np.min(line.get_ydata()) * (1 + 1e-6)
    best = serving.cheapest(SURFACE, SURFACE.loss(llama3("8b").parameters(), 15e12), 1e13)[0]
    assert f"- 10T served: {figures.short(best)} on" in figure.twin


def test_bills_and_budgets_are_told_line_by_line():
    text = figures.describe_bills(scale.meta_machine(2.0), {"405B": FLOPS})
    bill = scale.bill(FLOPS, scale.meta_machine(2.0))
    assert f"{bill.gpu_hours:,.0f}" in text and f"{bill.cost:,.0f}" in text
    text = figures.describe_budget(1e20, {"a rule": (1e9, 2e10)})
    assert text.splitlines()[-1].split() == ["a", "rule", "1B", "20B", "20.0"]


@pytest.mark.parametrize(("x", "text"), [(8030261248, "8.03B"), (15.6e12, "15.6T"), (16464, "16.5K"), (12, "12"),
                                         (402e9, "402B")])  # fmt: skip
def test_counts_are_told_in_three_digits(x, text):
    assert figures.short(x) == text
