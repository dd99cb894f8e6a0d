"""The figures of the lesson on the reward model: each has its facts as text, and draws what it is given."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llama3_lab.course.figures import reward_model as figures
from llama3_lab.course.views import describe
from llama3_lab.pipeline import probes
from llama3_lab.pipeline.probes import Accuracy, CalibrationBin, Mean
from llama3_lab.records import STRENGTHS, Candidate, Check, Judged, Prompt, Rate, Verdict

KS = (1, 2, 4)


def rate(value: float, n: int = 40) -> Rate:
    return Rate(value, n, max(0.0, value - 0.1), min(1.0, value + 0.1))


def accuracies(skill: str) -> list[Accuracy]:
    return [Accuracy(skill, s, 10 * i + 7, rate(0.5 + i / 10)) for i, s in enumerate(("any", *STRENGTHS))]


def bins(shift: float) -> list[CalibrationBin]:
    return [CalibrationBin(e, e + 0.1, 33, e + 0.05, rate(e - shift), rate(e - shift - 0.02)) for e in (0.5, 0.7, 0.9)]


def judged(skill: str, prompt: int = 0) -> list[Judged]:
    """Four answers; the reward model likes the wrong ones, and the last one best."""
    asked = Prompt(f"{skill}-{prompt}", skill, f"What is {prompt}?", "validation", 1, Check("number", "1"))
    rows = []
    for i, passed in enumerate((False, True, True, False)):
        candidate = Candidate(asked, f"line {i}\nend", "first", 1.0, i, 10 + i, True, -1.0)
        rows.append(Judged(candidate, Verdict("pass" if passed else "fail", "exact_number", ""), float(i)))
    return rows


def climbs() -> list[probes.Climb]:
    out = []
    for skill in ("conversation", "arithmetic"):
        rows = judged(skill) + judged(skill, 1)
        for name, values in (("reward model", [j.reward for j in rows]), ("truth", probes.qualities(rows)),
                             ("random", [0.0] * len(rows))):  # fmt: skip
            out.append(probes.climb(name, rows, values, KS))
    return out


LOSSES = {"stuck": [math.log(2)] * 12, "mended": [0.7, 0.5, 0.2]}
CHANGES = {"one more: filler": (Mean(-0.5, 60, -0.6, -0.4), rate(0.2)), "control": (Mean(0.0, 9, -0.1, 0.1), rate(0.5))}
CASES: list[tuple[Any, Any, Any]] = [
    (figures.figure_raters, figures.describe_raters, accuracies("any")),
    (figures.figure_losses, figures.describe_losses, LOSSES),
    (figures.figure_accuracy, figures.describe_accuracy, {"conversation": accuracies("c"), "orderings": []}),
    (figures.figure_calibration, figures.describe_calibration, {"without margin": bins(0), "with margin": bins(0.1)}),
    (figures.figure_longer, figures.describe_longer, CHANGES),
    (figures.figure_climb, figures.describe_climb, climbs()),
]  # fmt: skip


@pytest.mark.parametrize(("draw", "tell", "data"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_figure_draws_and_carries_its_twin(draw, tell, data):
    figure = draw(data)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert describe(figure) == tell(data)
    assert len(tell(data).splitlines()) > 1


def test_the_twins_hold_every_number_with_its_interval():
    assert "better: 0.80 [0.70, 0.90], 37 pairs" in figures.describe_raters(accuracies("any"))
    assert "1.5 → 0.92" in figures.describe_raters([])  # σ(1.5 / 0.6)
    assert "stuck: 0.693 at step 1, 0.693 at the lowest, 0.693 at step 12" in figures.describe_losses(LOSSES)
    assert "slightly 0.70 [0.60, 0.80]" in figures.describe_accuracy({"conversation": accuracies("c")})
    told = figures.describe_calibration({"with margin": bins(0.1)})
    assert "says 0.75 (33 couples): truth 0.60 [0.50, 0.70]; raters would choose it 0.58 [0.48, 0.68]" in told
    told = figures.describe_longer(CHANGES)
    assert "costs 0.75" in told and "reward -0.50 [-0.60, -0.40] n=60; higher than before in 0.20 [0.10, 0.30]" in told


def test_the_climbs_twin_goes_by_judge_and_k():
    told = figures.describe_climb(climbs()).splitlines()
    at = told.index("- arithmetic, reward model:")
    assert told[at + 1].startswith("    reward: k=1 0.00 ±0.00; k=2 0.83")  # 14/6 − 1.5
    assert told[at + 3].endswith("k=4 13.00 ±0.00")


def test_picks_show_what_was_passed_over():
    spoiled = figures.most_misled(judged("conversation") + judged("arithmetic"), small=3)
    assert [j.reward for j, _ in spoiled] == [0, 1, 2, 3]
    answers = list(zip(judged("arithmetic"), (0.0, 4.0, 4.0, 0.0), strict=True))
    told = figures.describe_picks(climbs(), [answers], 4)
    assert told.startswith("K = 4, on average")
    assert "picked: line 3 / end\n        reward +3.00, true quality 0.00, 13 tokens" in told
    assert "passed over: line 1 / end\n        reward +1.00, true quality 4.00, 11 tokens" in told
    first = figures.describe_picks(climbs(), [[(judged("arithmetic")[1], 4.0)] * 2], 1)
    assert first.endswith("no better one among them")
