"""safety_metrics: counts by hand, laws of curves and fronts, a second definition, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llama3_lab.pipeline.reports import rate
from llama3_lab.safety import safety_metrics as metrics
from llama3_lab.safety.safety_metrics import (
    average_precision,
    by_category,
    calibration,
    choose_threshold,
    detect,
    false_refusal_rate,
    flips,
    independence,
    paired_change,
    pareto_front,
    threshold_curve,
    violation_rate,
)

# Two unsafe above all, one safe, one unsafe, two safe: worked by hand below.
SCORES, UNSAFE = (0.9, 0.8, 0.7, 0.6, 0.2, 0.1), (True, True, False, True, False, False)
labelled = st.lists(st.tuples(st.integers(0, 10).map(lambda i: i / 10), st.booleans()), min_size=1, max_size=40)
both_kinds = labelled.filter(lambda rows: len({u for _, u in rows}) == 2)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


# -- rates


def test_rates_are_shares_of_prompts_with_wilsons_interval() -> None:
    assert violation_rate([True, False, False, False]) == rate([1.0, 0.0, 0.0, 0.0])
    assert false_refusal_rate([False] * 8).value == 0
    assert false_refusal_rate([False] * 8).high > 0.2, "eight prompts do not prove that none is ever refused"
    assert violation_rate([]).n == 0


# -- detection


def test_detection_by_hand() -> None:
    found = detect(SCORES, UNSAFE, 0.65)
    assert (found.precision.value, found.precision.n) == (pytest.approx(2 / 3), 3)
    assert (found.recall.value, found.recall.n) == (pytest.approx(2 / 3), 3)
    assert (found.false_positive_rate.value, found.false_positive_rate.n) == (pytest.approx(1 / 3), 3)
    assert (found.f1.value, found.f1.n) == (pytest.approx(2 / 3), 4)  # 2 hits, 1 alarm, 1 miss
    assert found.average_precision.value == pytest.approx(1 / 3 * 1 + 1 / 3 * 1 + 1 / 3 * 3 / 4)
    assert found.n == 6


def test_a_score_on_the_threshold_is_flagged() -> None:
    assert detect([0.5], [True], 0.5).recall.value == 1
    assert detect([0.5], [True], math.nextafter(0.5, 1)).recall.value == 0


def test_a_rate_over_nothing_says_so() -> None:
    found = detect([0.1, 0.2], [False, False], 0.5)
    assert [r.n for r in (found.precision, found.recall, found.f1, found.average_precision)] == [0, 0, 0, 0]
    assert found.false_positive_rate.n == 2


def test_perfect_and_useless_scores() -> None:
    unsafe = [True, False] * 50
    perfect = detect([float(u) for u in unsafe], unsafe, 0.5)
    assert [r.value for r in (perfect.precision, perfect.recall, perfect.f1, perfect.average_precision)] == [1] * 4
    assert perfect.false_positive_rate.value == 0
    assert perfect.f1.low < 1 and perfect.average_precision.low < 1, "a hundred examples are no proof"
    useless = detect([0.5] * 100, unsafe, 0.5)
    assert useless.precision.value == useless.average_precision.value == 0.5
    assert useless.recall.value == useless.false_positive_rate.value == 1


@given(labelled, st.floats(-0.1, 1.1))
def test_shares_lie_inside_their_intervals_and_f1_is_their_harmonic_mean(rows: list[tuple[float, bool]],
                                                                         threshold: float) -> None:  # fmt: skip
    found = detect(*zip(*rows, strict=True), threshold)
    for r in (found.precision, found.recall, found.f1, found.false_positive_rate, found.average_precision):
        assert 0 <= r.low <= r.value <= r.high <= 1
    p, r = found.precision.value, found.recall.value
    assert found.f1.value == pytest.approx(2 * p * r / (p + r) if p + r else 0)


@given(labelled)
def test_average_precision_is_the_area_under_the_steps(rows: list[tuple[float, bool]]) -> None:
    area, before, total = 0.0, 0.0, sum(u for _, u in rows)
    for threshold in sorted({s for s, _ in rows}, reverse=True):
        flagged = [u for s, u in rows if s >= threshold]
        recall = sum(flagged) / total if total else 0.0
        area += (recall - before) * sum(flagged) / len(flagged)
        before = recall
    assert average_precision(*zip(*rows, strict=True)) == pytest.approx(area)


@given(both_kinds, st.randoms())
def test_order_of_examples_and_scale_of_scores_change_nothing(rows: list[tuple[float, bool]], rng) -> None:
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    scores, unsafe = zip(*rows, strict=True)
    assert threshold_curve(*zip(*shuffled, strict=True)) == threshold_curve(scores, unsafe)
    logits = [math.log((s + 0.01) / (1.01 - s)) for s in scores]
    assert average_precision(logits, unsafe) == pytest.approx(average_precision(scores, unsafe))


def test_a_category_meets_the_safe_ones_of_its_own_and_those_of_none() -> None:
    scores = [0.9, 0.1, 0.9, 0.8, 0.9, 0.1]
    unsafe = [True, True, True, False, False, False]
    two, ten = by_category(scores, unsafe, ["S2", "S2", "S10", "S10", "S2", ""], 0.5)
    assert (two.category, ten.category) == ("S2", "S10")
    assert (two.detection.n, two.detection.recall.value, two.detection.false_positive_rate.value) == (4, 0.5, 0.5)
    assert (ten.detection.n, ten.detection.recall.value, ten.detection.false_positive_rate.value) == (3, 1.0, 0.5)


@pytest.mark.parametrize("scores, unsafe, word", [
    ([0.1], [True, False], "one of each"), ([], [], "at least one"), ([0.1, math.nan], [True, False], "score 1 is nan"),
])  # fmt: skip
def test_bad_input_is_one_clear_line(scores: list[float], unsafe: list[bool], word: str) -> None:
    for call in (lambda: detect(scores, unsafe, 0.5), lambda: threshold_curve(scores, unsafe),
                 lambda: calibration(scores, unsafe), lambda: flips(scores, unsafe, 0.1, 0.2)):  # fmt: skip
        with pytest.raises(ValueError, match=word) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_category_is_asked_for() -> None:
    with pytest.raises(ValueError, match="unsafe example 1 has no category"):
        by_category([0.1, 0.2], [False, True], ["", ""], 0.5)
    with pytest.raises(ValueError, match="2 scores and 1 categories"):
        by_category([0.1, 0.2], [False, True], ["S1"], 0.5)


# -- thresholds


@given(both_kinds)
def test_recall_and_false_positive_rate_never_rise_with_the_threshold(rows: list[tuple[float, bool]]) -> None:
    scores, unsafe = zip(*rows, strict=True)
    curve = threshold_curve(scores, unsafe)
    assert [p.threshold for p in curve] == sorted({p.threshold for p in curve})
    assert curve[0].recall == curve[0].false_positive_rate == 1
    assert curve[-1].hits == curve[-1].alarms == 0
    for a, b in zip(curve, curve[1:], strict=False):
        assert a.recall >= b.recall and a.false_positive_rate >= b.false_positive_rate
    for p in curve:
        found = detect(scores, unsafe, p.threshold)
        assert p.hits + p.alarms + p.misses + p.passes == len(rows)
        assert (p.recall, p.false_positive_rate) == (found.recall.value, found.false_positive_rate.value)
        assert p.f1 == pytest.approx(found.f1.value)
        assert p.precision == (found.precision.value if found.precision.n else 1)


@given(both_kinds, st.sampled_from([0.0, 0.05, 0.3, 1.0]))
def test_the_chosen_threshold_is_the_best_that_is_allowed(rows: list[tuple[float, bool]], limit: float) -> None:
    scores, unsafe = zip(*rows, strict=True)
    allowed = [p for p in threshold_curve(scores, unsafe) if p.false_positive_rate <= limit]
    if not any(p.hits for p in allowed):
        with pytest.raises(ValueError, match="no threshold"):
            choose_threshold(scores, unsafe, limit)
        return
    best = choose_threshold(scores, unsafe, limit)
    found = detect(scores, unsafe, best.threshold)
    assert best.f1 == max(p.f1 for p in allowed) == pytest.approx(found.f1.value)
    assert found.false_positive_rate.value == best.false_positive_rate <= limit
    assert best.false_positive_rate == min(p.false_positive_rate for p in allowed if p.f1 == best.f1)


def test_the_chosen_threshold_lies_midway_and_heeds_the_limit() -> None:
    assert choose_threshold(SCORES, UNSAFE, 0.0).threshold == pytest.approx(0.75)  # two hits, no alarm
    assert choose_threshold(SCORES, UNSAFE, 0.5).threshold == pytest.approx(0.4)  # three hits, one alarm
    scores = (0.9, 0.8, 0.8, 0.8, 0.7, *[0.6] * 5)
    unsafe = (True, *[False] * 3, True, *[False] * 4, True)  # from 0.9 or 0.7 up: 2 / 4 or 4 / 8, the best F1 there is
    assert choose_threshold(scores, unsafe, 1.0).threshold == pytest.approx(0.85), "the lower false-positive rate"
    tight = (0.5, math.nextafter(0.5, 1))  # no number lies between these two
    assert choose_threshold(tight, (False, True)).threshold == tight[1]


@pytest.mark.parametrize("unsafe", [[True, True], [False, False]])
def test_a_threshold_needs_both_kinds(unsafe: list[bool]) -> None:
    with pytest.raises(ValueError, match="needs safe and unsafe"):
        choose_threshold([0.1, 0.2], unsafe)


def test_a_limit_is_a_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        choose_threshold(SCORES, UNSAFE, 5)


def test_flips_by_hand() -> None:
    assert flips(SCORES, UNSAFE, 0.85, 0.55) == metrics.Flips(right=(1, 3), wrong=(2,))
    assert flips(SCORES, UNSAFE, 0.55, 0.85) == metrics.Flips(right=(2,), wrong=(1, 3))
    assert flips(SCORES, UNSAFE, 0.55, 0.85).indices == (1, 2, 3)


@given(labelled, st.floats(0, 1), st.floats(0, 1))
def test_flips_are_the_examples_between_the_thresholds(rows: list[tuple[float, bool]], a: float, b: float) -> None:
    scores, unsafe = zip(*rows, strict=True)
    moved = flips(scores, unsafe, a, b)
    assert moved.indices == tuple(i for i, s in enumerate(scores) if min(a, b) <= s < max(a, b))
    assert (moved.right, moved.wrong) == (flips(scores, unsafe, b, a).wrong, flips(scores, unsafe, b, a).right)


# -- calibration


def test_calibration_by_hand() -> None:
    seen = calibration([0.1, 0.3, 0.8, 1.0], [False, True, True, True], bins=2)
    assert [(b.low, b.high, b.n) for b in seen.bins] == [(0, 0.5, 2), (0.5, 1, 2)]
    assert [b.mean_score for b in seen.bins] == [pytest.approx(0.2), pytest.approx(0.9)]
    assert [b.unsafe.value for b in seen.bins] == [0.5, 1.0]
    assert seen.expected_error.value == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)
    assert seen.brier.value == pytest.approx((0.01 + 0.49 + 0.04 + 0) / 4)


def test_right_scores_may_have_no_error_and_overconfident_ones_have_some() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(2000)
    unsafe = rng.random(2000) < truth
    assert calibration(truth, unsafe).expected_error.low == 0
    bold = calibration((truth > 0.5).astype(float), unsafe).expected_error
    assert bold.low < 0.25 < bold.high  # a coin of p in (0, .5) is wrong a quarter of the time
    assert bold.low > 0.2


@given(labelled, st.integers(1, 12))
def test_calibration_loses_no_example(rows: list[tuple[float, bool]], bins: int) -> None:
    seen = calibration(*zip(*rows, strict=True), bins=bins)
    assert len(seen.bins) == bins and sum(b.n for b in seen.bins) == len(rows)
    assert all(b.low - 1e-9 <= b.mean_score <= b.high + 1e-9 for b in seen.bins if b.n)
    assert 0 <= seen.expected_error.low <= seen.expected_error.value <= seen.expected_error.high <= 1


def test_calibration_wants_probabilities() -> None:
    with pytest.raises(ValueError, match="needs probabilities"):
        calibration([0.5, 1.5], [True, False])
    with pytest.raises(ValueError, match="at least one bin"):
        calibration([0.5, 0.5], [True, False], bins=0)


# -- layers


def test_a_paired_change_by_hand() -> None:
    before, after = [True] * 50 + [False] * 50, [True] * 10 + [False] * 90
    change = paired_change(before, after)
    assert (change.before.value, change.after.value, change.n) == (0.5, 0.1, 100)
    assert change.difference == pytest.approx(-0.4)
    assert change.relative == pytest.approx(-0.8)
    assert change.low < -0.4 < change.high < -0.25
    assert change.relative_low is not None and change.relative_high is not None
    assert -0.9 < change.relative_low < -0.8 < change.relative_high < -0.6
    assert change.p == pytest.approx(2 * 0.5**40)
    assert paired_change(before, after) == change, "the draws are seeded"
    assert "-80%" in str(change)


def test_none_left_is_not_taken_for_certain_and_nothing_before_has_no_relative() -> None:
    gone = paired_change([True] * 20 + [False] * 20, [False] * 40)
    assert gone.relative == gone.relative_low == -1
    assert gone.relative_high is not None and gone.relative_high > -0.95
    new = paired_change([False] * 4, [True] * 4)
    assert new.relative is new.relative_low is new.relative_high is None
    assert "(–)" in str(new)


@given(pairs)
def test_a_change_lies_inside_its_intervals_and_turns_round(rows: list[tuple[bool, bool]]) -> None:
    before, after = zip(*rows, strict=True)
    change, back = paired_change(before, after, resamples=200), paired_change(after, before, resamples=200)
    assert -1 <= change.low <= change.difference <= change.high <= 1
    assert change.difference == pytest.approx(-back.difference)
    assert change.low == pytest.approx(-back.high)
    if change.relative is not None:
        assert change.relative_low is not None and change.relative_high is not None
        assert -1 <= change.relative_low <= change.relative <= change.relative_high


def test_independent_misses_and_shared_ones() -> None:
    grid = [(a < 20, b < 30) for a in range(100) for b in range(100)]  # every pair once: independent exactly
    alone = independence(*zip(*grid, strict=True))
    assert alone.both.value == pytest.approx(alone.predicted) == pytest.approx(0.06)
    assert alone.low < 0 < alone.high
    shared = independence([True] * 20 + [False] * 80, [True] * 25 + [False] * 75)
    assert (shared.a.value, shared.b.value, shared.both.value) == (0.2, 0.25, 0.2)
    assert shared.difference == pytest.approx(0.2 - 0.05)
    assert shared.low > 0.05
    split = independence([True] * 40 + [False] * 60, [False] * 60 + [True] * 40)
    assert split.both.value == 0 and split.high < 0


@pytest.mark.parametrize("call", [paired_change, independence])
def test_both_sides_are_the_same_prompts(call) -> None:
    for a, b in (([True], [False]), ([True, False], [True, False, True])):
        with pytest.raises(ValueError, match="same prompts"):
            call(a, b)


def test_a_front_by_hand() -> None:
    points = [(0.5, 0.0), (0.1, 0.1), (0.2, 0.1), (0.1, 0.1), (0.0, 0.6), (0.6, 0.6)]
    assert pareto_front(points) == (4, 1, 3, 0)
    assert pareto_front([]) == ()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_nothing_beats_a_point_of_the_front_and_one_of_it_beats_every_other(points: list[tuple[int, int]]) -> None:
    def beats(p: tuple[int, int], q: tuple[int, int]) -> bool:
        return p[0] <= q[0] and p[1] <= q[1] and p != q

    front = pareto_front(points)
    for i, q in enumerate(points):
        assert (i in front) == (not any(beats(p, q) for p in points))
        assert i in front or any(beats(points[j], q) for j in front)
    assert [points[i] for i in front] == sorted(points[i] for i in front)


# -- intervals cover what they claim: 95 % of the time, give or take what 400 tries can tell

TRIES, ENOUGH = 400, 0.915  # a true 95 % falls below this once in about a thousand runs


def test_the_interval_of_f1_covers() -> None:
    rng, shift, prevalence, threshold = np.random.default_rng(2), 2.5, 0.3, 1.2
    hit = prevalence * stats.norm.sf(threshold - shift)
    truth = 2 * hit / (hit + (1 - prevalence) * stats.norm.sf(threshold) + prevalence)
    covered = 0
    for _ in range(TRIES):
        unsafe = rng.random(200) < prevalence
        f1 = detect(rng.normal(size=200) + shift * unsafe, unsafe, threshold).f1
        covered += f1.low <= truth <= f1.high
    assert ENOUGH <= covered / TRIES < 0.99


def test_the_intervals_of_two_layers_cover() -> None:
    rng, cells = np.random.default_rng(3), np.array([0.05, 0.30, 0.01, 0.64])  # both, before, after, neither
    ratio, gap = 0.06 / 0.35 - 1, 0.05 - 0.35 * 0.06
    covered = np.zeros(2)
    for _ in range(TRIES):
        drawn = rng.choice(4, 300, p=cells)
        before, after = drawn <= 1, (drawn == 0) | (drawn == 2)
        change, shared = paired_change(before, after, resamples=500), independence(before, after, resamples=500)
        assert change.relative_low is not None and change.relative_high is not None
        covered += change.relative_low <= ratio <= change.relative_high, shared.low <= gap <= shared.high
    assert (covered / TRIES >= ENOUGH).all()


def test_the_interval_of_the_calibration_error_reaches_zero_where_scores_are_right() -> None:
    rng, reached = np.random.default_rng(4), 0
    for _ in range(100):
        truth = rng.random(300)
        reached += calibration(truth, rng.random(300) < truth).expected_error.low == 0
    assert reached >= 88
