"""Figures of the lesson on SFT: a figure and its text twin tell the same facts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llama3_lab.course import views
from llama3_lab.course.figures import sft
from llama3_lab.models import load_policy
from llama3_lab.profiles import Model
from llama3_lab.records import Candidate, Check, Curve, Demonstration, Prompt, Rate

BASE = Path(__file__).parents[1] / "data" / "tiny_base"
PROMPT = Prompt("p", "arithmetic", "Ann has 2 pens.", "validation", 1, Check("number", "2"))


def candidate(n_tokens: int, finished: bool) -> Candidate:
    return Candidate(PROMPT, "Answer: 2", "first", 1.0, 0, n_tokens, finished, -1.0)


def rate(value: float) -> Rate:
    return Rate(value, 90, max(0.0, value - 0.08), min(1.0, value + 0.08), 2)


def trial(examples: int, steps: int, ended: float, cost: float) -> sft.Trial:
    return sft.Trial(examples, steps, rate(ended), rate(0.4), (cost - 0.1, cost, cost + 0.1))


CURVES = [Curve("first", "loss", (1, 2, 3, 4), (1.5, 0.9, 0.4, 0.2)),
          Curve("first", "token accuracy", (1, 2, 3, 4), (0.6, 0.7, 0.8, 0.95))]  # fmt: skip
ENDS = [sft.Ends("base in the chat format", 0, 80, 20), sft.Ends("first policy", 98, 1, 1)]
ROWS = {"base, chat format": (rate(0.0), rate(0.0), rate(0.29)), "first policy": (rate(0.99), rate(0.41), rate(0.42))}
TRIALS = [trial(n, s, e, c) for n, s, e, c in ((10, 20, 0.96, 4.0), (1000, 20, 0.95, 2.5), (10, 5, 0.5, 3.9))]
START = trial(0, 0, 0.31, 5.0)
FIGURES = {
    "curves": lambda: sft.figure_curves({"first": CURVES, "trap": CURVES}),
    "ends": lambda: sft.figure_ends(ENDS),
    "format and skill": lambda: sft.figure_format_and_skill(ROWS),
    "trials": lambda: sft.figure_trials(TRIALS, START),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_has_its_twin(name):
    figure = FIGURES[name]()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert len(views.describe(figure).splitlines()) >= 3


def drawn(figure) -> str:
    """All words that the figure shows."""
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def test_how_an_answer_ended_is_told_from_its_last_token_and_the_cap():
    found = sft.ends_of("x", [candidate(9, True), candidate(96, True), candidate(9, False), candidate(96, False)], 96)
    assert (found.turn, found.other, found.cut, found.n) == (2, 1, 1, 4)


def test_the_bars_have_the_shares_of_the_twin():
    figure = sft.figure_ends(ENDS)
    bars = [[b.get_width() for b in box] for box in figure.axes[0].containers]
    assert [sum(column) for column in zip(*bars, strict=True)] == pytest.approx([1, 1])
    assert bars[0] == [0, 0.98] and bars[1][0] == 0.8
    assert "base in the chat format: <|eot_id|> 0%; <|end_of_text|> or the like 80%; never: cut off 20%" in figure.twin
    assert {"80%", "20%", "98%", "first policy"} <= set(drawn(figure).splitlines())
    assert len({b[0].get_hatch() for b in figure.axes[0].containers}) == 3, "colour alone"


def test_points_of_the_trials_stand_at_their_rates_and_both_lines_differ_by_more_than_colour():
    figure = sft.figure_trials(TRIALS, START)
    lines = [c.lines[0] for c in figure.axes[0].containers]
    assert [list(line.get_xdata()) for line in lines] == [[10, 1000], [10]]
    assert list(lines[0].get_ydata()) == [0.96, 0.95]
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2
    head, start, *rest = [re.split(r"  +", line.strip()) for line in figure.twin.splitlines()[1:]]
    assert head == ["ended properly", "right", "nats, fresh answer"]
    assert start[:3] == ["before any step", "0.31 [0.23, 0.39]", "0.40 [0.32, 0.48]"]
    assert [line[:2] for line in rest] == [
        ["10 examples, 20 steps", "0.96 [0.88, 1.00]"], ["1000 examples, 20 steps", "0.95 [0.87, 1.00]"],
        ["10 examples, 5 steps", "0.50 [0.42, 0.58]"]]  # fmt: skip
    assert rest[1][3].startswith("2.50 [2.25, ")
    assert re.search("different examples", drawn(figure))


def test_format_and_skill_are_told_apart():
    figure = sft.figure_format_and_skill(ROWS)
    _, head, base, first = figure.twin.splitlines()
    assert "over 90 prompts" in figure.twin and head.split("  ")[-1] == "right, any end counts"
    assert re.split(r"  +", base) == ["base, chat format", *["0.00 [0.00, 0.08]"] * 2, "0.29 [0.21, 0.37]"]
    assert re.split(r"  +", first)[1] == "0.99 [0.91, 1.00]"
    assert {"ended properly", "right", "right, any end counts", "0.29", "0.99"} <= set(drawn(figure).splitlines())


def test_an_answer_with_another_end_is_right_only_where_ends_are_forgiven():
    said = [candidate(9, True), candidate(9, False), candidate(96, False), candidate(96, False)]
    ended, right, forgiven = sft.rates_of([replace(c, text="2+0=2\nAnswer: 2") for c in said], 2, 96)
    assert (ended.value, right.value, forgiven.value) == (0.25, 0.25, 0.5)
    assert ended.n == 2 and ended.samples == 2


def test_a_row_is_shown_token_by_token():
    tokenizer = load_policy(BASE, Model(threads=1)).tokenizer
    lines = sft.token_table(tokenizer, Demonstration(PROMPT, "Answer: 2", "written")).splitlines()
    assert lines[0].split()[1:] == ["'<|begin_of_text|>'", "read"]
    assert lines[-1].split()[1:] == ["'<|eot_id|>'", "learned"]
    assert [line.endswith("learned") for line in lines].count(True) == 5


def test_curves_are_summed_up_by_their_ends():
    twin = sft.figure_curves({"first": CURVES}).twin
    assert "first, loss, nats a token: 1.50; 1.50 → 0.20 in 4 steps" in twin
    assert "first, share of tokens foreseen: 0.60; 0.60 → 0.95 in 4 steps" in twin
