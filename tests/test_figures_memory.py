"""Figures of the lesson on LoRA and memory: a figure, its text twin and the planner tell the same facts."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from llama3_lab.course import views
from llama3_lab.course.exercises import memory
from llama3_lab.course.figures import memory as figures
from llama3_lab.paper.architecture import llama3
from llama3_lab.paper.catalogue import GIB, find_gpu
from llama3_lab.paper.memory import PARTS, plan
from llama3_lab.paper.recipe import ATTENTION, Recipe
from llama3_lab.paper.weights import adapter_weights

EIGHT = Recipe(llama3("8b"))
METHODS = {"all": "full", "LoRA": "lora", "QLoRA": "qlora"}
PLANS = {name: plan(replace(EIGHT, method=m, logits="full")) for name, m in METHODS.items()}
RANKS = {"all seven": [replace(EIGHT, lora_r=r) for r in (1, 16, 256)],
         "attention": [replace(EIGHT, lora_r=r, lora_targets=ATTENTION) for r in (1, 16, 256)]}  # fmt: skip
LEVELS = {"one": list(np.linspace(-1, 1, 16)), "other": list(np.linspace(-1, 1, 16) ** 3)}
ERRORS = {"one, blocks": 0.1, "other, whole": 0.25}
FIGURES = {
    "plans": lambda: figures.figure_plans(PLANS),
    "ranks": lambda: figures.figure_ranks(RANKS),
    "levels": lambda: figures.figure_levels(np.linspace(-1, 1, 200), LEVELS, ERRORS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_has_its_twin(name):
    figure = FIGURES[name]()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert len(views.describe(figure).splitlines()) >= 3


def test_bars_add_up_to_the_peaks_and_differ_in_more_than_colour():
    figure = FIGURES["plans"]()
    boxes = figure.axes[0].containers
    widths = np.array([[bar.get_width() for bar in box] for box in boxes]).sum(0)
    for width, p in zip(widths, PLANS.values(), strict=True):
        assert width == pytest.approx(p.peak / GIB, abs=2 * figures.SMALL * PLANS["all"].peak / GIB)
    looks = {(box[0].get_facecolor(), box[0].get_hatch()) for box in boxes}
    assert len({hatch for _, hatch in looks}) == len(boxes)
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert [t.rpartition(", ")[2] for t in texts] == ["fits" if p.fits else "too much" for p in PLANS.values()]


def test_every_part_that_a_plan_may_have_has_a_look():
    assert set(PARTS) - set(figures.LOOKS) == {"kv cache", "workspace"}, "a new part needs a colour and a sign"
    assert set(figures.SIGNS) == set(figures.LOOKS)
    assert len(set(figures.SIGNS.values())) == len(figures.SIGNS)


def test_the_twin_of_plans_has_the_parts_and_the_moment():
    lines = figures.describe_plans(PLANS).splitlines()[1:]
    for line, p in zip(lines, PLANS.values(), strict=True):
        assert f"{p.peak / GIB:.2f}" in line and line.endswith(f"worst moment: {p.phase}")
        assert f"weights {p.parts['weights'] / GIB:.2f}" in line
        assert ("does not fit" in line) is not p.fits


def test_bars_in_text_are_as_long_as_the_bytes():
    first, second, third, _, key = figures.bars(PLANS).splitlines()
    drawn = [re.sub(r"[^█agoL▒r]", "", line.split("GiB", 1)[1].split("  ", 2)[2]) for line in (first, second, third)]
    for marks, p in zip(drawn, PLANS.values(), strict=True):
        assert len(marks) == pytest.approx(figures.BAR * p.peak / PLANS["all"].peak, abs=3)
    assert "█ weights" in key and "L logits" in key and "r reference" not in key


def test_cards_say_what_fits():
    gpus = [find_gpu(n) for n in ("T4", "24GB", "H100")]
    rows = figures.cards(EIGHT.model, gpus, METHODS, EIGHT).splitlines()
    assert rows[0].split() == ["GiB", *METHODS]
    for row, gpu in zip(rows[1:], gpus, strict=True):
        assert row.startswith(gpu.name)
        fits = [plan(replace(EIGHT, method=m), gpu).fits for m in METHODS.values()]
        assert re.findall(r"\b(fits|no)\b", row) == ["fits" if f else "no" for f in fits]
    assert len({len(row) for row in rows}) == 1, "columns should line up"


def test_lines_of_ranks_are_the_counts_and_peaks():
    figure = FIGURES["ranks"]()
    count, peak = figure.axes
    for line, other, recipes in zip(count.lines, peak.lines, RANKS.values(), strict=False):
        assert list(line.get_ydata()) == pytest.approx([adapter_weights(r) / 1e6 for r in recipes])
        assert list(other.get_ydata()) == pytest.approx([plan(r).peak / GIB for r in recipes])
    assert len({line.get_linestyle() for line in count.lines}) == len(RANKS), "colour alone"
    assert f"16: {adapter_weights(EIGHT) / 1e6:.1f}M" in figure.twin


def test_levels_and_errors_are_told():
    figure = FIGURES["levels"]()
    assert [bar.get_width() for bar in figure.axes[1].patches] == list(ERRORS.values())
    assert "- one, blocks: 10.0%" in figure.twin and figure.twin.count("-1.00 ") == 2


def test_the_museum_of_the_exercises_is_as_it_says():
    right = plan(EIGHT)
    wrong = memory.estimate(EIGHT)
    assert set(wrong) == set(memory.ESTIMATE)
    assert wrong["A"] == right.parts["weights"] and wrong["B"] == right.parts["adapters"]
    assert wrong["D"] > 50 * right.parts["optimizer"] and not plan(memory.start()).fits
