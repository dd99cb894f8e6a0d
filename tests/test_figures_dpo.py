"""The figures of the lesson on DPO say what they are given, in pictures and in words."""

import math

import pytest

from llama3_lab.course.figures import dpo as figures
from llama3_lab.course.views import describe
from llama3_lab.pipeline.probes import Mean
from llama3_lab.records import Curve

UP, DOWN, OPEN = Mean(0.5, 60, 0.25, 0.75), Mean(-0.4, 60, -0.6, -0.2), Mean(0.1, 60, -0.1, 0.3)
BETAS = (1.0, 0.1)


def brake(skill: str) -> figures.Brake:
    return figures.Brake(skill, BETAS, (OPEN, UP), (OPEN, DOWN), (Mean(0.2, 60, 0.1, 0.3), Mean(1.5, 60, 1.2, 1.8)))


def curves(shift: float = 0.0) -> list[Curve]:
    values = {"preference loss": (math.log(2), 0.5), "implicit reward margin": (0.0, 1.0), "chosen logp": (-9.0, -8.0),
              "rejected logp": (-9.0, -12.0), "accuracy": (0.5, 0.6)}  # fmt: skip
    return [Curve("06-a", name, (1, 2), tuple(v + shift for v in of)) for name, of in values.items()]


FIGURES = {
    "brake": figures.figure_brake([brake("conversation"), brake("orderings")]),
    "training": figures.figure_training({"a": curves(), "b": curves(0.1)}),
    "changes": figures.figure_changes({"chosen": {"plain": DOWN, "with NLL": OPEN}, "early": {"plain": UP}},
                                      "What it did"),
}  # fmt: skip
SAID = {
    "brake": ["conversation, 60 prompts", "orderings", "KL 1.50 nats",
              "β 0.1  reward +0.50 [+0.25, +0.75]; true quality -0.40 [-0.60, -0.20]"],
    "training": ["a:", "b:", "preference loss: 0.693; 0.693 → 0.500", "rejected logp: -9.000; -9.000 → -12.000"],
    "changes": ["What it did", "chosen:", "plain          -0.400 [-0.600, -0.200] n=60\n",
                "[-0.100, +0.300] n=60  inconclusive"],
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_draws_and_its_twin_says_the_same(name):
    assert FIGURES[name]._repr_png_().startswith(b"\x89PNG")
    for words in SAID[name]:
        assert words in describe(FIGURES[name])


def test_the_brake_is_let_go_from_left_to_right():
    left, right = FIGURES["brake"].axes[2].get_xlim()
    assert left > BETAS[0] > BETAS[1] > right


def test_a_training_starts_beside_the_line_at_log_two():
    loss = FIGURES["training"].axes[0]
    assert any(line.get_ydata()[0] == pytest.approx(math.log(2)) for line in loss.lines if line.get_label() == "log 2")
    assert FIGURES["training"].axes[2].get_ylim() == FIGURES["training"].axes[3].get_ylim()


def test_a_sure_change_and_an_open_one_differ_in_shape_not_in_colour_alone():
    dots = {line.get_marker() for line in FIGURES["changes"].axes[0].lines}
    assert {"o", "s"} <= dots
    assert len(FIGURES["changes"].axes[1].lines) == 3, "a row without a value in this column draws nothing"
