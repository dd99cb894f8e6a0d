"""Widgets show results that are there: each position once, as text and picture, with words for who sees neither."""

import subprocess
import sys

import pytest

from llama3_lab.course import views
from llama3_lab.course.views import ReportFigure
from llama3_lab.course.widgets import ask, browse_answers, explore
from llama3_lab.records import SampleAnswer


def figure(twin: str = "One point at 3 < 4.") -> ReportFigure:
    made = ReportFigure(figsize=(1, 1))
    made.subplots().plot([0], [3], "o")
    made.twin = twin
    return made


def test_moving_the_slider_changes_the_text_and_asks_once_for_each_position():
    asked = []
    box = explore("K", [1, 4, 16], lambda k: asked.append(k) or f"best of {k}")
    assert "best of 1" in box.text.value
    for at in (1, 2, 1, 0):
        box.control.index = at
    assert "best of 1<" in box.text.value
    assert asked == [1, 4, 16]


def test_options_may_have_labels_and_values_of_any_kind():
    box = explore("mask", [("none", {}), ("both", {"a": 1})], lambda v: str(len(v)))
    box.control.index = 1
    assert ">1</pre>" in box.text.value
    assert box.control.label == "both"


def test_equal_values_are_positions_of_their_own():
    box = explore("run", [("a", 1.0), ("b", 1.0)], lambda v: f"value {v}")
    box.control.index = 1
    assert box.control.label == "b"


def test_a_figure_is_an_image_whose_alternative_text_is_its_twin():
    box = explore("K", [1, 2], lambda k: (f"K is {k} & more", figure()))
    assert '<img alt="One point at 3 &lt; 4." src="data:image/png;base64,' in box.text.value
    assert "K is 1 &amp; more" in box.text.value
    only = explore("K", [1, 2], lambda k: figure())
    assert "<pre" not in only.text.value


def test_a_figure_without_twin_is_refused():
    with pytest.raises(ValueError, match="no text twin"):
        explore("K", [1, 2], lambda k: figure(twin=""))


def test_one_option_is_no_choice():
    with pytest.raises(ValueError, match="K: 1 options; a slider needs two or more"):
        explore("K", [1], str)


def test_without_a_kernel_the_cell_says_what_the_widget_shows_first():
    bundle = explore("K", [1, 2], lambda k: (f"K is {k}", figure()))._repr_mimebundle_()
    assert bundle["text/plain"] == (
        "[slider “K”: 1, 2; moves where there is a kernel. It begins with:]\nK is 1\nOne point at 3 < 4."
    )
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_answers_are_browsed():
    answers = [SampleAnswer("p", "arithmetic", 1, f"{i}+1?", "<3", "wrong", "Answer: 4", "right") for i in range(3)]
    box = browse_answers(answers)
    assert "0+1?" in box.text.value
    box.control.index = 2
    assert "2+1?" in box.text.value
    assert "&lt;3" in box.text.value
    with pytest.raises(ValueError, match="no answers to browse"):
        browse_answers([])


def test_a_text_box_shows_what_is_said_of_its_text_and_asks_once_for_each():
    asked = []
    box = ask("request", lambda text: asked.append(text) or f"<{text}> is fine", "one")
    assert "&lt;one&gt; is fine" in box.text.value
    for text in ("two", " two ", "one"):
        box.control.value = text
    assert "&lt;one&gt; is fine" in box.text.value
    assert asked == ["one", "two"]


def test_what_a_text_box_shows_is_announced_and_waits_for_enter():
    box = ask("request", lambda text: (text, figure()), "one")
    assert 'role="status" aria-live="polite"' in box.text.value
    assert '<img alt="One point at 3 &lt; 4."' in box.text.value
    assert box.control.continuous_update is False
    assert box.control.description == "request"


def test_a_text_that_cannot_be_used_costs_one_line_and_the_box_goes_on():
    def show(text):
        if not text:
            raise ValueError("the request is empty; write a question")
        return text.upper()

    box = ask("request", show, "one")
    box.control.value = ""
    assert "the request is empty; write a question" in box.text.value
    box.control.value = "two"
    assert "TWO" in box.text.value
    with pytest.raises(ValueError, match="request: give a first text"):
        ask("request", show, " ")


def test_without_a_kernel_a_text_box_says_what_it_shows_first():
    bundle = ask("request", lambda text: f"you wrote {text}", "one")._repr_mimebundle_()
    assert bundle["text/plain"] == (
        "[text box “request”; answers where there is a kernel. It begins with:]\nyou wrote one"
    )
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_a_figure_says_its_twin():
    text = views.describe(figure("Two lines.\nAnd more."))
    assert text == "Two lines.\nAnd more."
    from IPython.lib.pretty import pretty

    assert pretty(text) == "Two lines.\nAnd more."
    with pytest.raises(ValueError, match="no text twin"):
        views.describe(ReportFigure())


def test_widgets_need_no_torch():
    code = "import sys, llama3_lab.course.widgets, llama3_lab.course.predictions; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
