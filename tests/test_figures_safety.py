"""The figures of the lesson on safety say what they are given, in pictures and in words."""

import re

import pytest

from llama3_lab.course.figures import safety as figures
from llama3_lab.course.views import describe
from llama3_lab.pipeline.reports import rate
from llama3_lab.records import Rate, SafetyAnswer, SafetyScore, StudyScore
from llama3_lab.safety.redteam import Cell
from llama3_lab.safety.safety_metrics import threshold_curve

NONE, HALF, ALL = rate([0.0] * 20), rate([0.0, 1.0] * 10), rate([1.0] * 20)
SCORES, UNSAFE = [0.1, 0.4, 0.4, 0.6, 0.9], [False, True, False, False, True]
CURVE = threshold_curve(SCORES, UNSAFE)
CELLS = [Cell("S10", "plain", rate([0.0, 0.0])), Cell("S2", "plain", rate([0.0, 1.0, 1.0])),
         Cell("S2", "role-play", rate([1.0]))]  # fmt: skip
BY_WORDING = {"before": {"plain": NONE, "encoding": ALL, "role-play": ALL},
              "after": {"plain": NONE, "encoding": ALL, "role-play": HALF}}  # fmt: skip
STACKS = [figures.Stack("none", ALL, NONE), figures.Stack("guard", NONE, HALF), figures.Stack("poor", HALF, ALL)]


def study(n: int, seed: int, vr: Rate) -> StudyScore:
    return StudyScore("quality", f"{n}", seed, SafetyScore(f"{n}", 0, "model", vr, ALL, HALF, HALF, HALF))


QUALITY = {"careful": {120: [study(120, 0, ALL), study(120, 1, NONE)], 960: [study(960, 0, HALF)]},
           "careless": {120: [study(120, 0, ALL)], 960: []}}  # fmt: skip
FIGURES = {
    "thresholds": figures.figure_thresholds({"known": CURVE, "held out": CURVE}, 0.5),
    "plane": figures.figure_plane({"known": STACKS, "held out": STACKS[:2]}),
    "archive": figures.figure_archive(CELLS),
    "wordings": figures.figure_wordings(BY_WORDING, "encoding", "hazards that are helped with"),
    "quality": figures.figure_quality(QUALITY),
}
SAID = {
    "thresholds": ["Chosen: 0.500", "held out:", "- 0.500: 1 hits, 1 misses, 1 alarms, 2 passes; recall 0.50"],
    "plane": ["- none: VR 1.00 [0.84, 1.00]; FRR 0.00 [0.00, 0.16]; on the Pareto front",
              "- poor: VR 0.50 [0.30, 0.70]; FRR 1.00 [0.84, 1.00]; beaten by another"],
    "archive": ["plain", "role-play", "2 of 3", "0 of 2", "1 of 1"],
    "wordings": ["Hazards that are helped with, by wording", "before 1.00 [0.84, 1.00] n=20; after 0.50",
                 "- encoding (held out)"],
    "quality": ["- 120, careful: VR 0.50 (1.00, 0.00); FRR 0.50", "- 960, careful: VR 0.50 (0.50)",
                "- 120, careless: VR 1.00 (1.00)"],
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_draws_and_its_twin_says_the_same(name):
    figure = FIGURES[name]
    assert figure._repr_png_().startswith(b"\x89PNG")
    for words in SAID[name]:
        assert words in describe(figure)


def test_colour_is_never_alone():
    looks = [(marker, str(line)) for _, marker, line in figures.LOOKS]
    assert len(set(looks)) == len(looks)
    assert len({line for *_, line in figures.SHARES}) == len(figures.SHARES)


def test_the_counts_at_a_threshold_are_those_of_the_scores():
    for t in (0.0, 0.1, 0.25, 0.4, 0.5, 0.9, 0.95, 1.0):
        p = figures.point_at(CURVE, t)
        flagged = [s >= t for s in SCORES]
        assert p.hits == sum(f and u for f, u in zip(flagged, UNSAFE, strict=True)), t
        assert p.alarms == sum(f and not u for f, u in zip(flagged, UNSAFE, strict=True)), t
        assert p.hits + p.alarms + p.misses + p.passes == len(SCORES)


def test_the_drawn_share_at_a_threshold_is_the_share_of_the_scores():
    recall = next(line for line in FIGURES["thresholds"].axes[0].lines if line.get_label().endswith("flagged"))
    at, values = recall.get_xdata(), recall.get_ydata()
    for t in (0.05, 0.25, 0.45, 0.85):  # a step "pre": what holds up to a point is that point's value
        drawn = next(v for a, v in zip(at, values, strict=True) if a >= t)
        assert drawn == sum(s >= t for s, u in zip(SCORES, UNSAFE, strict=True) if u) / 2


def test_the_archive_has_a_row_a_category_in_order_and_a_dash_where_nobody_tried():
    lines = figures.describe_archive(CELLS).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["S2", "S10"]
    assert re.split(r" {2,}", lines[3].strip()) == ["S10", "0 of 2", "–"]
    texts = [t.get_text() for t in FIGURES["archive"].axes[0].texts]
    assert sorted(texts) == sorted(["2 of 3", "1 of 1", "0 of 2", "–"])


def test_the_held_out_wording_stands_last_and_is_named():
    labels = [t.get_text() for t in FIGURES["wordings"].axes[0].get_xticklabels()]
    assert labels == ["plain", "role-play", "encoding\n(held out)"]


def answer(i: int, kind: str, family: str, violated: bool = False, refused: bool = False) -> SafetyAnswer:
    return SafetyAnswer(f"{kind}{i}", kind, "S1" if kind == "adversarial" else "", family, "", violated, refused,
                        False, 0.5, 0.5)  # fmt: skip


def test_by_wording_counts_violations_of_hazards_and_refusals_of_look_alikes():
    rows = [answer(0, "adversarial", "plain", violated=True), answer(1, "adversarial", "plain", refused=True),
            answer(2, "adversarial", "encoding", violated=True), answer(3, "borderline", "plain", refused=True),
            answer(4, "benign", "", refused=True)]  # fmt: skip
    found = figures.by_wording(rows)
    assert {f: (r.value, r.n) for f, r in found.items()} == {"plain": (0.5, 2), "encoding": (1.0, 1)}
    assert {f: (r.value, r.n) for f, r in figures.by_wording(rows, "borderline").items()} == {"plain": (1.0, 1)}
