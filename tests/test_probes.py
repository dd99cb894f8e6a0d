"""What a reward model's numbers are worth: cases worked by hand, and laws."""

from __future__ import annotations

import math
from itertools import combinations
from random import Random

import pytest

from llama3_lab.pipeline import probes
from llama3_lab.pipeline.probes import Couple
from llama3_lab.records import Candidate, Check, Judged, PreferencePair, Prompt, Verdict
from llama3_lab.world import conversation
from llama3_lab.world.annotators import NOISE


def asked(i: int, skill: str = "arithmetic") -> Prompt:
    return Prompt(f"p{i}", skill, f"{i}+{i}?", "validation", 1, Check("number", str(2 * i), (f"{i}+{i}={2 * i}",)))


def answer(prompt: Prompt, right: bool, reward: float, n_tokens: int = 5, text: str = "") -> Judged:
    text = text or f"{'right' if right else 'wrong'} {reward} {n_tokens}"
    candidate = Candidate(prompt, text, "first", 1.0, 0, n_tokens, True, -1.0)
    return Judged(candidate, Verdict("pass" if right else "fail", "exact_number", ""), reward)


def group(i: int, *answers: tuple[bool, float]) -> list[Judged]:
    return [answer(asked(i), right, reward) for right, reward in answers]


def pair(i: int, margin: float, strength: str = "better") -> PreferencePair:
    return PreferencePair(asked(i), "a", "b", strength, "annotator", margin)  # type: ignore[arg-type]


def test_a_mean_has_students_interval():
    m = probes.mean([1.0, 2.0, 3.0])
    assert m.value == 2 and m.n == 3
    assert m.high - m.value == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom, sd 1
    assert (probes.mean([5.0]).low, probes.mean([5.0]).high) == (-math.inf, math.inf)
    assert str(m) == "+2.00 [-0.48, +4.48] n=3"
    with pytest.raises(ValueError, match="at least one prompt"):
        probes.mean([])


@pytest.mark.parametrize("x", [-800.0, -2.0, 0.0, 2.0, 800.0])
def test_a_sigmoid_and_its_mirror_make_one(x):
    assert probes.sigmoid(x) + probes.sigmoid(-x) == pytest.approx(1)
    assert probes.sigmoid(math.log(3)) == pytest.approx(0.75)


def test_raters_are_counted_by_prompt_and_strength():
    rows = [pair(0, 1.0), pair(0, -1.0), pair(1, 2.0), pair(2, 0.0), pair(3, 3.0, "significantly better")]
    found = {a.strength: a for a in probes.raters(rows)}
    assert set(found) == {"any", "better", "significantly better"}
    assert (found["better"].couples, found["better"].rate.n) == (3, 2)  # the pair of equal quality has no right side
    assert found["better"].rate.value == pytest.approx((0.5 + 1) / 2)
    assert found["any"].couples == 4


def test_couples_are_disjoint_and_signed_by_the_truth():
    judged = group(0, (True, 1.0), (False, 0.2), (False, 3.0), (True, 1.0), (True, 9.0)) + group(
        1, (False, 1.0), (False, 2.0), (True, 1.0), (False, 1.0)
    )
    found = probes.couples(judged)
    assert [(c.prompt_id, c.gap) for c in found] == [("p0", 4.0), ("p0", 4.0), ("p1", 4.0)]
    assert [c.lead for c in found] == pytest.approx([0.8, -2.0, 0.0])


def of(*leads: float, gap: float = 3.0) -> list[Couple]:
    return [Couple(f"p{i}", "arithmetic", gap, lead) for i, lead in enumerate(leads)]


def test_accuracy_counts_a_tie_one_half_and_goes_by_strength():
    rows = [*of(1.0, -1.0, 0.0, 2.0), *of(5.0, gap=0.5), Couple("q", "programs", 1.0, 1.0)]
    found = {a.strength: a for a in probes.accuracy(rows, "arithmetic")}
    assert set(found) == {"any", "marginally better", "significantly better"}
    assert found["significantly better"].rate.value == pytest.approx(2.5 / 4)
    assert (found["any"].couples, found["any"].rate.n) == (5, 4)  # p0 has two couples
    assert list(probes.hits(rows)) == ["p0", "p1", "p2", "p3", "q"]
    assert probes.hits(rows)["p2"] == 0.5


def test_calibration_sorts_by_confidence_and_knows_both_truths():
    lead = math.log(3)  # says 0.75
    (found,) = probes.calibration(of(lead, lead, -lead, lead, gap=0.6))
    assert (found.low, found.high, found.couples) == (0.7, 0.8, 4)
    assert found.predicted == pytest.approx(0.75)
    assert found.true.value == pytest.approx(0.75)
    chance = 1 / (1 + math.exp(-0.6 / NOISE))  # raters choose the better one that often
    assert found.raters.value == pytest.approx((3 * chance + (1 - chance)) / 4)
    assert probes.mean(list(probes.overconfidence(of(lead, lead, -lead, lead)).values())).value == pytest.approx(0)


def test_every_couple_is_in_one_bin():
    rows = of(*[0.0, 0.3, -0.9, 1.5, 2.5, -50.0, 50.0])
    assert sum(b.couples for b in probes.calibration(rows)) == len(rows)
    for edges in ((0.5, 0.8), (0.4, 1.0), (0.5, 0.5, 1.0)):
        with pytest.raises(ValueError, match=r"runs from 0\.5 to 1"):
            probes.calibration(rows, edges)


def test_the_longer_of_two_equals_is_counted_once_a_prompt():
    p, q = asked(0), asked(1)
    judged = [
        answer(p, True, 2.0, 9), answer(p, True, 1.0, 5), answer(p, True, 2.0, 9), answer(p, False, 9.0, 50),
        answer(q, False, 1.0, 9), answer(q, False, 3.0, 4), answer(q, False, 2.0, 6), answer(q, False, 2.0, 6, "other"),
    ]  # fmt: skip
    found = probes.longer_wins(judged)  # p: the one pair of equals, won; q: all five pairs lost
    assert (found.n, found.value) == (2, 0.5)


def requests(n: int = 40) -> list[tuple[Prompt, str]]:
    rng = Random(1)
    prompts = [conversation.make(rng, 1 + i % 3, "validation", f"c{i}") for i in range(n)]
    return [(p, conversation.write(p, rng)) for p in prompts]


def test_every_way_of_saying_more_costs_the_same_and_a_greeting_nothing():
    seen: set[str] = set()
    for prompt, text in requests():
        before = conversation.quality(prompt, text)
        for way, new in probes.lengthened(prompt, text).items():
            seen.add(way)
            assert new.startswith(text) and len(new) > len(text)
            assert conversation.quality(prompt, new) == pytest.approx(before - probes.LONGER_COSTS)
        if (new := probes.regreeted(text)) is not None:
            assert new != text and conversation.quality(prompt, new) == before
    assert seen == {"filler", "repeated", "unasked"}


def test_an_answer_without_an_end_mark_cannot_be_made_longer():
    prompt, _ = requests(1)[0]
    assert probes.lengthened(prompt, "It is red") == {}
    assert probes.regreeted("Oh no. It is red.") is None


def test_variants_take_each_answer_once_and_changes_average_by_prompt():
    prompt, text = requests(1)[0]
    judged = [answer(prompt, False, 0.0, text=t) for t in (text, text, "Sure! It is nice.")]
    rows = probes.variants(judged)
    assert len({(old, way) for _, way, old, _ in rows}) == len(rows)
    assert {old for _, _, old, _ in rows} == {text, "Sure! It is nice."}
    assert {old for _, _, old, _ in probes.variants(judged, most=1)} == {text}
    found = probes.changes([("a", "x", 1.0), ("a", "x", -3.0), ("b", "x", 2.0), ("b", "y", 0.0), ("a", "y", 1.0)])
    change, rose = found["x"]
    assert (change.value, change.n, rose.value) == (0.5, 2, 0.75)
    assert found["y"][1].value == 0.75


def test_contrasts_are_imperfect_and_the_better_comes_first():
    prompt, _ = requests(1)[0]
    perfect, poor = prompt.check.answer, "It is nice."
    poorer = "It is nice. It is nice."
    judged = [answer(prompt, False, 0.0, text=t) for t in (perfect, poorer, poor)]
    assert probes.contrasts(judged) == [(prompt, poor, poorer)]
    assert probes.contrasts(judged[:2]) == []


def brute(judged: list[Judged], values: list[float], k: int) -> float:
    """Mean true quality of the pick over all subsets of k, ties shared."""
    worth, total = probes.qualities(judged), []
    for subset in combinations(range(len(judged)), k):
        top = [i for i in subset if values[i] == max(values[j] for j in subset)]
        total.append(sum(worth[i] for i in top) / len(top))
    return sum(total) / len(total)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_the_pick_is_the_mean_over_all_subsets(k):
    judged = group(0, (True, 1.0), (False, 5.0), (True, 3.0), (False, 3.0), (False, 0.0), (True, 3.0))
    values = [j.reward for j in judged]
    (row,) = probes.picked(judged, values, k)
    assert row.quality == pytest.approx(brute(judged, values, k))
    assert row.sampled == pytest.approx(brute(judged, values, k) / 4)


def test_climbs_of_three_judges():
    judged = group(0, (True, 1.0), (False, 2.0), (False, 3.0), (False, 4.0)) + group(1, *[(True, 1.0)] * 4)
    ks, rewards = (1, 2, 4), [j.reward for j in judged]
    coin = probes.climb("random", judged, [0.0] * 8, ks)
    assert [m.value for m in coin.quality] == pytest.approx([2.5, 2.5, 2.5])
    assert [m.value for m in coin.reward] == pytest.approx([0, 0, 0])
    truth = probes.climb("truth", judged, probes.qualities(judged), ks)
    assert [r.value for r in truth.right] == pytest.approx([(0.25 + 1) / 2, (0.5 + 1) / 2, 1.0])
    model = probes.climb("reward model", judged, rewards, ks)
    assert model.quality[-1].value == 2.0 and model.reward[-1].value == pytest.approx((4 - 2.5) / 2)
    assert [probes.mean(probes.shortfall(judged, rewards, k)).value for k in ks] == pytest.approx([0, 1, 2])


def test_what_cannot_be_picked_is_said():
    judged = group(0, (True, 1.0), (False, 2.0))
    with pytest.raises(ValueError, match="p0: 2 answers, and k is 3; draw more"):
        probes.picked(judged, [1.0, 2.0], 3)
    with pytest.raises(ValueError, match="2 answers and 1 values"):
        probes.picked(judged, [1.0], 1)
    with pytest.raises(ValueError, match="give those of one skill"):
        probes.climb("x", [*judged, answer(asked(5, "orderings"), True, 1.0)], [0.0] * 3, (1,))
