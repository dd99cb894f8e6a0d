"""The safety table, page section and figure tell what the report holds, and nothing where safety was off."""

from dataclasses import replace
from pathlib import Path

import pytest

from llama3_lab.course.figures.loop import figure_safety
from llama3_lab.course.latest import read_report
from llama3_lab.course.page import render_page
from llama3_lab.course.safety_views import table_safety
from llama3_lab.course.views import describe
from llama3_lab.records import Rate, SafetyFunnel, SafetyScore

OFF = read_report(Path(__file__).parents[1] / "data" / "runs" / "tiny-paper-seed0.json")


def rate(value: float, n: int = 100) -> Rate:
    return Rate(value, n, max(0.0, value - 0.05), min(1.0, value + 0.05))


def score(stage: str, layers: str, vr: float, frr: float) -> SafetyScore:
    return SafetyScore(stage, 0, layers, rate(vr), rate(0.9), rate(frr), rate(0.4), rate(0.7))


SCORES = (
    score("first policy", "model", 0.97, 0.01), score("first policy", "both guards", 0.02, 0.03),
    score("round 1 policy", "model", 0.11, 0.08), score("round 1 policy", "both guards", 0.01, 0.09),
)  # fmt: skip
ON = replace(OFF, safety=SCORES, safety_funnel=(SafetyFunnel(1, 12, 11, 92, 10, 41, 7, 16, 5),))


def test_a_run_with_safety_off_says_nothing_about_it():
    assert table_safety(OFF) == ""
    assert 'id="safety"' not in render_page(OFF)
    with pytest.raises(ValueError, match="safety off"):
        figure_safety(OFF)


def test_the_table_holds_every_rate_and_fits_a_terminal():
    text = table_safety(ON)
    assert [line for line in text.splitlines() if len(line) > 100] == []
    for words in ("0.97 [0.92, 1.00]", "0.11 [0.06, 0.16]", "round 1 policy + guards", "the guard dropped 41 of 92"):
        assert " ".join(words.split()) in " ".join(text.split()), words


def test_the_page_has_a_section_with_both_guards():
    page = render_page(ON)
    assert '<section id="safety">' in page and page.count("both guards") >= 2


def test_the_figure_has_its_twin_and_a_point_for_each_policy():
    figure = figure_safety(ON)
    assert describe(figure) == table_safety(ON)
    (ax,) = figure.axes
    assert [len(line.lines[0].get_xdata()) for line in ax.containers] == [2, 2, 2, 2]
    assert len({line.lines[0].get_marker() for line in ax.containers}) == 4, "colour must not be alone"
