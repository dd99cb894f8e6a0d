"""reports: hand-worked tables, published examples, brute force over every subset, and coverage."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_lab.pipeline import reports
from llama3_lab.records import Candidate, Check, Prompt, PromptScore


def row(i: int, greedy: float, sampled: float = 0.5, skill: str = "arithmetic", level: int = 1):
    name, at_k = f"{skill}-{i:04}", float(sampled > 0)
    return PromptScore(name, skill, level, greedy, sampled, at_k, 2 * sampled, ended=1.0, n_tokens=9.0)


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[PromptScore], list[PromptScore]]:
    a = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    b = [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither
    return [row(i, x) for i, x in enumerate(a)], [row(i, x) for i, x in enumerate(b)]


def answer(prompt: Prompt, text: str, finished: bool = True) -> Candidate:
    return Candidate(prompt, text, "p", 1.0, 0, len(text), finished, -1.0)


def prompt(name: str) -> Prompt:
    return Prompt(name, "arithmetic", "1+1?", "test", 1, Check("number", "2"))


# --- rates

def test_wilson_interval_of_8_in_10_is_the_textbook_one():
    r = reports.rate([1.0] * 8 + [0.0] * 2)
    assert (round(r.low, 3), round(r.high, 3), r.n) == (0.490, 0.943, 10)


def test_shares_get_students_t_by_hand():
    r = reports.rate([0.25, 0.5, 0.75], samples=4)  # mean .5, sd .25, t(2) = 4.3027: .5 ± .621, clipped
    assert (r.value, r.low, r.high, r.samples) == (0.5, 0.0, 1.0, 4)
    wide = reports.rate([0.25, 0.5, 0.75] * 20)
    half = 2.0010 * np.std([0.25, 0.5, 0.75] * 20, ddof=1) / math.sqrt(60)  # t(59) = 2.0010
    assert wide.high - wide.value == pytest.approx(half, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_shares_that_never_vary_still_have_an_interval(share):
    r = reports.rate([share] * 20, samples=4)
    assert r.value == share and 0.15 < r.high - r.low < 0.45 and 0 <= r.low <= share <= r.high <= 1


def test_no_values_claim_nothing():
    r = reports.rate([])
    assert (r.n, r.low, r.high) == (0, 0.0, 1.0)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40))
def test_every_interval_holds_its_mean_and_does_not_depend_on_order(values):
    r = reports.rate(values, 4)
    assert 0 <= r.low <= r.value + 1e-12 and r.value <= r.high + 1e-12 and r.high <= 1
    assert reports.rate(sorted(values), 4).low == pytest.approx(r.low)


@pytest.mark.parametrize("bad", [1.2, -0.1, math.nan])
def test_a_share_outside_the_unit_interval_is_refused(bad):
    with pytest.raises(ValueError, match="share must lie"):
        reports.rate([0.5, bad])


def test_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    draws = 1500
    ability = rng.beta(1, 1.5, size=(draws, 80))  # prompts differ; mean 0.4
    shares = rng.binomial(4, ability) / 4
    greedy = rng.binomial(1, ability).astype(float)
    t = [r.low <= 0.4 <= r.high for r in (reports.rate(x, 4) for x in shares)]
    wilson = [r.low <= 0.4 <= r.high for r in (reports.rate(x) for x in greedy)]
    assert 0.935 < np.mean(t) < 0.965  # three standard errors: ± .017
    assert 0.930 < np.mean(wilson) < 0.970


# --- scoring prompts

def test_score_prompts_by_hand():
    p = prompt("a")
    drawn = [answer(p, "2"), answer(p, "three"), answer(p, "2", finished=False)]
    (r,) = reports.score_prompts([p], [answer(p, "2")], [drawn], right=lambda c: c.text == "2",
                                 quality=lambda c: float(len(c.text)))
    assert (r.greedy, r.at_k) == (1.0, 1.0)
    assert r.sampled == pytest.approx(1 / 3)  # the third is right but cut off: never a pass
    assert r.ended == pytest.approx(2 / 3) and r.quality == r.n_tokens == pytest.approx(7 / 3)


def test_score_prompts_refuses_what_does_not_belong_together():
    p, q = prompt("a"), prompt("b")
    args = {"right": lambda c: True, "quality": lambda c: 0.0}
    with pytest.raises(ValueError, match="2 prompts, 1 greedy"):
        reports.score_prompts([p, q], [answer(p, "2")], [[], []], **args)
    with pytest.raises(ValueError, match="a: holds an answer to b"):
        reports.score_prompts([p], [answer(p, "2")], [[answer(q, "2")]], **args)
    with pytest.raises(ValueError, match="a: no samples"):
        reports.score_prompts([p], [answer(p, "2")], [[]], **args)


def test_evaluate_pools_levels_into_zero_and_checkable_skills_into_all():
    rows = [row(i, 1.0, 0.75, level=1 + i % 2) for i in range(4)]
    rows += [row(i, 0.0, 0.25, "orderings") for i in range(2)]
    rows += [row(i, 0.0, 0.0, "conversation") for i in range(6)]
    scores = {(s.skill, s.level): s for s in reports.evaluate("base", 0, "test", rows, 4).scores}
    levels = {"arithmetic": 3, "orderings": 2, "conversation": 2, "all": 1}  # level 0 included
    assert set(scores) == {(skill, level) for skill, n in levels.items() for level in range(n)}
    assert scores["all", 0].greedy.value == pytest.approx(4 / 6)  # conversation stays out
    assert scores["all", 0].sampled.value == pytest.approx(3.5 / 6)
    assert scores["arithmetic", 0].greedy.n == 4 and scores["arithmetic", 2].greedy.n == 2
    with pytest.raises(ValueError, match="base: no prompts"):
        reports.evaluate("base", 0, "test", [], 4)


# --- pass@k

@pytest.mark.parametrize(("n", "c"), [(6, 0), (6, 1), (6, 3), (6, 6), (5, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n, c):
    right = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        share = np.mean([any(s) for s in combinations(right, k)])
        assert reports.pass_at_k(n, c, k) == pytest.approx(share)


def test_pass_at_k_refuses_more_than_was_drawn():
    for n, c, k in [(4, 1, 5), (4, 5, 1), (4, 1, 0)]:
        with pytest.raises(ValueError, match="draw more answers"):
            reports.pass_at_k(n, c, k)


# --- comparisons

def test_newcombe_gives_the_published_interval():
    c = reports.compare("x", *table(36, 12, 2, 0), "greedy")  # the example of Newcombe 1998, method 10
    assert (round(c.difference, 4), round(c.low, 4), round(c.high, 4)) == (0.2, 0.0569, 0.3404)


def test_mcnemar_by_hand():
    c = reports.compare("x", *table(10, 8, 1, 5), "greedy", names=("sft", "random"))
    assert c.p == pytest.approx(2 * (1 + 9) / 2**9)  # 9 discordant: P(at most 1) = (1 + 9) / 512, two-sided
    assert c.difference == pytest.approx(7 / 24) and (c.a, c.b, c.verdict) == ("sft", "random", "better")


def test_identical_sides_are_inconclusive_with_p_one_and_an_open_interval():
    c = reports.compare("x", *table(10, 0, 0, 10), "greedy")
    assert (c.difference, c.p, c.verdict) == (0.0, 1.0, "inconclusive") and c.low < 0 < c.high
    same = [row(i, 1.0, 0.25 * (i % 4)) for i in range(20)]
    for metric in ("sampled", "quality"):
        c = reports.compare("x", same, same, metric)
        assert (c.p, c.verdict) == (1.0, "inconclusive")


def test_paired_t_by_hand():
    a = [row(i, 1.0, x) for i, x in enumerate([0.5, 0.75, 1.0, 0.75])]
    b = [row(i, 1.0, x) for i, x in enumerate([0.25, 0.75, 0.5, 0.5])]
    c = reports.compare("x", a, b, "sampled")  # differences .25 0 .5 .25: mean .25, sd .2041, t(3) = 3.1824
    assert c.difference == pytest.approx(0.25)
    assert c.high - 0.25 == pytest.approx(3.1824 * 0.204124 / 2, rel=1e-4)
    assert c.p == pytest.approx(0.0917, abs=1e-4) and c.verdict == "inconclusive"


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30), st.randoms())
def test_swapping_sides_mirrors_and_order_does_not_matter(pairs, random):
    a = [row(i, float(x), x / 2 + 0.25 * (i % 2)) for i, (x, _) in enumerate(pairs)]
    b = [row(i, float(y), y / 2) for i, (_, y) in enumerate(pairs)]
    for metric in ("greedy", "sampled", "quality"):
        forth, back = reports.compare("x", a, b, metric), reports.compare("x", b, a, metric)
        assert (back.difference, back.low, back.high, back.p) == pytest.approx(
            (-forth.difference, -forth.high, -forth.low, forth.p), abs=1e-9)
        assert forth.low <= forth.difference + 1e-12 <= forth.high + 2e-12
    shuffled = list(b)
    random.shuffle(shuffled)
    assert reports.compare("x", a, shuffled, "greedy") == reports.compare("x", a, b, "greedy")


def test_different_prompts_or_too_few_are_refused():
    a, b = table(3, 2, 1, 1)
    with pytest.raises(ValueError, match=r"x: 1 prompts are on one side only, e\.g\. arithmetic-0006"):
        reports.compare("x", a, b[:-1])
    with pytest.raises(ValueError, match="x: 0 prompts of skill 'orderings'"):
        reports.compare("x", a, b, skill="orderings")
    with pytest.raises(ValueError, match="comes twice"):
        reports.compare("x", [*a, a[0]], b)


def test_skill_all_leaves_the_open_skill_out():
    talk = [row(i, 1.0, skill="conversation") for i in range(5)]
    silence = [row(i, 0.0, skill="conversation") for i in range(5)]
    a, b = table(5, 5, 5, 5)
    assert reports.compare("x", a + talk, b + silence, "greedy").difference == 0.0
    assert reports.compare("x", a + talk, b + silence, "greedy", "conversation").difference == 1.0


def test_paired_interval_covers_a_known_difference():
    rng = np.random.default_rng(1)
    hits, draws, p_a, p_b = 0, 600, 0.7, 0.6
    for _ in range(draws):
        u = rng.random(120)  # one uniform decides both sides for half the prompts: correlated, as in life
        v = np.where(rng.random(120) < 0.5, u, rng.random(120))
        a = [row(i, float(x)) for i, x in enumerate(u < p_a)]
        b = [row(i, float(x)) for i, x in enumerate(v < p_b)]
        c = reports.compare("x", a, b, "greedy")
        hits += c.low <= p_a - p_b <= c.high
    assert 0.93 < hits / draws <= 0.985


def test_holm_by_hand():
    base = reports.compare("x", *table(10, 8, 1, 5), "greedy")
    family = [replace(base, p=p) for p in (0.04, 0.01, 0.03)]  # sorted .01·3, .03·2, max(.06, .04·1)
    assert [c.p_holm for c in reports.holm(family)] == pytest.approx([0.06, 0.03, 0.06])
    assert reports.holm([replace(base, low=-0.1, verdict="better")])[0].verdict == "inconclusive"
    assert reports.holm([]) == []


def test_pooling_averages_over_seeds_on_the_same_prompts_and_concatenates_otherwise():
    a1, b1 = table(3, 4, 1, 2)
    a2, b2 = table(5, 2, 1, 2)
    both = reports.pooled("x", [(a1, b1), (a2, b2)], "greedy")
    seeds = [[x.greedy - y.greedy for x, y in zip(a, b, strict=True)] for a, b in ((a1, b1), (a2, b2))]
    d = np.mean(seeds, axis=0)
    assert both.n == 10 and both.difference == pytest.approx(d.mean())
    assert both.high - both.difference == pytest.approx(2.2622 * d.std(ddof=1) / math.sqrt(10), rel=1e-4)
    other = [[row(100 + i, r.greedy) for i, r in enumerate(side)] for side in (a2, b2)]
    apart = reports.pooled("x", [(a1, b1), (other[0], other[1])], "greedy")
    assert apart.n == 20 and apart.difference == pytest.approx((3 + 1) / 20)
    with pytest.raises(ValueError, match="no seeds"):
        reports.pooled("x", [])


# --- picking among K

PICKS = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 3.0]), st.booleans()), min_size=4, max_size=7)


def brute_best(picks, k):
    values = []
    for subset in combinations(picks, k):
        top = max(s for s, _ in subset)
        values.append(np.mean([r for s, r in subset if s == top]))
    return float(np.mean(values))


def brute_vote(votes, k):
    values = []
    for subset in combinations(range(len(votes)), k):
        counts = Counter(votes[i][0] for i in subset if votes[i][0] is not None)
        winners = [key for key, n in counts.items() if n == max(counts.values())]
        share = {key: np.mean([r for other, r in votes if other == key]) for key in winners}
        values.append(np.mean(list(share.values())) if winners else 0.0)
    return float(np.mean(values))


@settings(max_examples=60, deadline=None)
@given(PICKS)
def test_best_of_k_equals_brute_force_over_all_subsets(picks):
    ks = (1, 2, 3, 4)
    curve = reports.best_of_k_curve("reward model", "arithmetic", ks, [picks])
    for k, r in zip(ks, curve.rates, strict=True):
        assert r.value == pytest.approx(brute_best(picks, k))
    turned = reports.best_of_k_curve("reward model", "arithmetic", ks, [picks[::-1]])
    assert [r.value for r in turned.rates] == pytest.approx([r.value for r in curve.rates])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["4", "5", "6", None]), st.booleans()), min_size=4, max_size=7))
def test_majority_vote_equals_brute_force_over_all_subsets(votes):
    # "4" is right, "6" is wrong, "5" is right now and then; what cannot be read is never right
    votes = [(key, key == "4" or (key == "5" and right)) for key, right in votes]
    curve = reports.majority_vote("arithmetic", (1, 2, 3, 4), [votes])
    for k, r in zip(curve.ks, curve.rates, strict=True):
        assert r.value == pytest.approx(brute_vote(votes, k))


def test_the_checker_reaches_pass_at_k_and_a_constant_score_is_random():
    rng = np.random.default_rng(2)
    rights = [[bool(x) for x in rng.random(16) < 0.3] for _ in range(30)]
    ks = (1, 2, 4, 8, 16)
    checker = reports.best_of_k_curve("checker", "programs", ks, [[(float(r), r) for r in p] for p in rights])
    random = reports.best_of_k_curve("random", "programs", ks, [[(0.0, r) for r in p] for p in rights])
    for k, c, r in zip(ks, checker.rates, random.rates, strict=True):
        assert c.value == pytest.approx(np.mean([reports.pass_at_k(16, sum(p), k) for p in rights]))
        assert r.value == pytest.approx(np.mean(rights)) and (r.n, r.samples) == (30, k)


def test_a_judge_that_prefers_the_wrong_answer_falls_below_random():
    picks = [[(1.0, False), (0.0, True), (0.0, True), (0.0, True)]] * 10
    curve = reports.best_of_k_curve("reward model", "arithmetic", (1, 2, 4), picks)
    assert [r.value for r in curve.rates] == pytest.approx([0.75, 0.5, 0.0])  # 3 of 6 pairs hold the outlier


def test_curves_refuse_what_they_cannot_answer():
    with pytest.raises(ValueError, match="best of 4 needs as many answers, but a prompt has 2"):
        reports.best_of_k_curve("checker", "arithmetic", (1, 4), [[(0.0, True)] * 2])
    with pytest.raises(ValueError, match="score is NaN"):
        reports.best_of_k_curve("reward model", "arithmetic", (1,), [[(math.nan, True)]])
    with pytest.raises(ValueError, match="ascending"):
        reports.majority_vote("arithmetic", (4, 1), [[("a", True)] * 4])
