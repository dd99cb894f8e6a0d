"""The simulations: hand-worked limits, laws that must hold, and that each takes under a second."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_lab.paper import evidence_toys as toys
from llama3_lab.paper.evidence import SIMULATION, functions
from llama3_lab.paper.facts import number, numbers


@pytest.mark.parametrize("name", functions("simulation"))
def test_a_simulation_is_quick_repeats_itself_and_says_what_it_is(name):
    f = functions("simulation")[name]
    first = f()
    begun = time.perf_counter()
    assert f() == first
    assert time.perf_counter() - begun < 1.0
    assert first.about == SIMULATION


# -- choosing


def test_one_answer_and_no_threshold_is_the_mean():
    one = toys.choose(1)
    assert one.quality == pytest.approx(0, abs=0.05) and (one.kept, one.hard_kept) == (1, 1)


def test_without_noise_the_best_of_two_is_the_larger_of_two_normals():
    assert toys.choose(2, noise=0.0).above_own == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)


def test_a_reward_of_noise_alone_chooses_nothing():
    assert toys.choose(30, noise=1e6).above_own == pytest.approx(0, abs=0.05)


def test_a_higher_threshold_keeps_fewer_and_drops_the_hard_first():
    found = [toys.choose(10, t) for t in (-9.0, 0.0, 1.0, 2.0, 3.0)]
    assert [c.kept for c in found] == sorted((c.kept for c in found), reverse=True)
    assert [c.quality for c in found] == sorted(c.quality for c in found)
    assert all(c.hard_kept <= c.kept for c in found)


def test_threshold_and_count_are_weighed_within_a_prompt(monkeypatch):
    found = toys.threshold_against_count()
    strict = [max(toys.choose(10, t, seed=seed).above_own for t in toys.THRESHOLDS) for seed in range(toys.SEEDS)]
    gaps = [toys.choose(30, seed=seed).above_own - strict[seed] for seed in range(toys.SEEDS)]
    assert found.value == pytest.approx(sum(gaps) / len(gaps)) and found.low < found.value < found.high
    for threshold, says in ((0.0, "contradicts"), (4.0, "supports")):
        monkeypatch.setattr(toys, "THRESHOLDS", (threshold,))
        assert toys.threshold_against_count().says == says


def test_a_threshold_drops_hard_prompts_that_the_best_of_k_keeps():
    low = int(numbers("sampling.k")[0])
    assert toys.best_of_k_without_threshold().value == pytest.approx(1 - toys.choose(low, toys.STRICT).hard_kept)


# -- quality against quantity


def test_accuracy_goes_from_certainty_to_a_coin():
    clean, coin = toys.accuracies(5000, (0.0, 0.5), 0.0, 1)
    assert clean > 0.97 and 0.2 < coin < 0.8
    assert toys.accuracies(5000, (1.0,), 0.0, 1)[0] == pytest.approx(1 - clean)  # all labels turned over


def test_a_slanted_teacher_is_learned_to_the_angle_and_more_data_does_not_help():
    for examples in (2000, 20_000):
        assert toys.accuracies(examples, (0.0,), 1.0, 3)[0] == pytest.approx(0.75, abs=0.02)  # 45° of 180°


def test_more_wrong_labels_teach_less():
    found = [m for m, _, _ in toys.duel((0.0, 0.1, 0.3, 0.45))]
    assert found == sorted(found, reverse=True) and found[0] > 0 > found[-1]


def test_each_side_wins_somewhere():
    found = toys.where_each_side_wins()
    (_, low, _), (_, _, high) = toys.duel((0.20,))[0], toys.duel((0.48,))[0]
    assert low > 0 > high, "quantity must win at few errors, the small set at many"
    assert 0.2 <= found.low <= found.value <= found.high < 0.48 and found.says == "contradicts"
    kinds = toys.mediocre_tenfold_against_filtered()
    assert kinds.low <= kinds.value <= kinds.high and kinds.says == "inconclusive"
    assert toys.duel((0.0,), toys.SLANT)[0][2] < 0, "errors with a system should not be averaged away"


@pytest.mark.parametrize(("name", "settings_", "says"), [
    ("mediocre_tenfold_against_filtered", {"SOFT_NOISE": 0.48}, "supports"),
    ("mediocre_tenfold_against_filtered", {"SLANT": 0.0}, "contradicts"),
    ("where_each_side_wins", {"TENFOLD": 40}, "supports"),
    ("where_each_side_wins", {"TENFOLD": 215}, "inconclusive"),
])  # fmt: skip
def test_other_numbers_would_say_something_else(monkeypatch, name, settings_, says):
    for key, value in settings_.items():
        monkeypatch.setattr(toys, key, value)
    assert functions("simulation")[name]().says == says


# -- lucky chains


def test_chains_without_slips_are_all_right_and_none_by_luck():
    assert toys.count_lucky(toys.chains(slip=0.0, draws=1000)) == (1000, 0)


def test_lucky_by_hand():
    assert toys.count_lucky(np.array([[0, 0], [1, -1], [1, 0], [3, -3], [2, 2]])) == (3, 2)


def test_two_steps_by_hand():
    right, lucky = toys.count_lucky(toys.chains(slip=1.0, steps=2))
    assert right == lucky
    assert right / 200_000 == pytest.approx(1 / 6, abs=0.005)  # the second of ±1, ±2, ±3 must undo the first


def test_one_step_cannot_be_lucky():
    assert toys.count_lucky(toys.chains(slip=0.5, steps=1))[1] == 0


def test_the_share_of_luck_lies_in_its_interval():
    found = toys.lucky_chains()
    right, lucky = toys.count_lucky(toys.chains())
    assert found.value == lucky / right and found.low < found.value < found.high and found.n == right
    right, lucky = toys.count_lucky(toys.chains(seed=1))
    assert abs(lucky / right - found.value) < 3 * (found.high - found.low)


def test_a_checker_without_error_keeps_just_what_is_right_and_one_that_errs_loses_some():
    off_DS = np.array([[0, 0], [1, -1], [0, 2], [0, 0]])
    assert (toys.pass_check(off_DS, 0.0) == 0).all() and len(toys.pass_check(off_DS, 0.0)) == 2
    assert toys.pass_check(off_DS, 1.0).tolist() == [[1, -1]]  # it takes every step for what it is not
    found = toys.checked_chains()
    assert found.value == pytest.approx(1 - (1 - toys.CHECK_ERROR) ** toys.STEPS, abs=0.005)


# -- two guards


@settings(max_examples=30, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_without_correlation_misses_multiply(first, second):
    assert toys.both_miss(first, second, 0.0) == pytest.approx(first * second, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.0, 0.9))
def test_correlation_is_found_again_and_never_beats_the_better_guard(first, second, correlation):
    both = toys.both_miss(first, second, correlation)
    assert first * second - 1e-4 <= both <= min(first, second) + 1e-4
    assert toys.both_miss(first, second, toys.fit_correlation(first, second, both)) == pytest.approx(both, abs=1e-4)


def test_two_fair_coins_follow_the_known_law():
    for rho in (0.2, 0.5, 0.8):  # of two normals with correlation ρ, both are below 0 with chance 1/4 + arcsin(ρ)/2π
        assert toys.both_miss(0.5, 0.5, rho) == pytest.approx(0.25 + math.asin(rho) / (2 * math.pi), abs=1e-4)
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        toys.both_miss(0.5, 0.5, 1.0)


def test_table_25_needs_guards_that_miss_alike():
    found = toys.correlation_that_explains_table_25()
    assert toys.both_miss(0.24, 0.25, found.value) == pytest.approx(0.14, abs=1e-3)
    assert found.says == "contradicts" and toys.number_of("rounds") == number("rounds")


def test_guards_that_missed_independently_would_need_no_correlation(monkeypatch):
    printed = {"table25.input_vr": -76, "table25.output_vr": -75, "table25.full_vr": -94}
    monkeypatch.setattr(toys, "number_of", lambda key: printed[key])
    found = toys.correlation_that_explains_table_25()
    assert found.says == "inconclusive" and found.value == pytest.approx(0, abs=0.01)
