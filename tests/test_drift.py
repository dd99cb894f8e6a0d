"""What a preference training did to answers: by hand, and on the base where a model is needed."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from llama3_lab.models import answer_logprobs, load_policy
from llama3_lab.pipeline.drift import (
    AnswerShape,
    PairLogps,
    answer_shapes,
    change,
    held_out_pairs,
    pair_logps,
    repeats_itself,
    stops_early,
)
from llama3_lab.profiles import Model
from llama3_lab.records import Candidate, Check, PreferencePair, Prompt

BASE = Path(__file__).parents[1] / "data" / "tiny_base"
SUM = Prompt("s", "arithmetic", "3+4?", "validation", 1, Check("number", "7", ("3+4=7",)))
CHAIN = Prompt("o", "orderings", "Ann beats Bob. Who is first?", "validation", 1, Check("chain", "Ann", ("Ann > Bob",)))
CODE = Prompt("p", "programs", "Write f(xs): sum.", "validation", 1, Check("tests", "def f(xs):\n return sum(xs)", ()))
TALK = Prompt("c", "conversation", "Describe the fox: colour, food.", "validation", 2,
              Check("rubric", "Sure! It is red. It eats mice.", ("It is red.", "It eats mice.")))  # fmt: skip


def said(prompt: Prompt, text: str, finished: bool = True, n_tokens: int = 9) -> Candidate:
    return Candidate(prompt, text, "first", 1.0, 0, n_tokens, finished, -1.0)


@pytest.mark.parametrize(
    ("text", "finished", "repeats"),
    [("It is red. It eats mice.", True, False), ("It is red. It is red.", True, True),
     ("It is red. It eats mice. It is red.", True, True), ("It is red. It is red. It eats mice.", True, False),
     ("It is red. It is red. It", False, True), ("It is red. It eats mice. It", False, False), ("", True, False),
     ("It", False, False)],
)  # fmt: skip
def test_a_tail_that_was_said_before_is_a_repetition(text, finished, repeats):
    assert repeats_itself(said(TALK, text, finished)) is repeats


def test_lines_are_units_as_well_as_sentences():
    assert repeats_itself(said(SUM, "3+4=7\n7+1=8\n3+4=7"))
    assert not repeats_itself(said(SUM, "3+4=7\nAnswer: 7"))


@pytest.mark.parametrize(
    ("prompt", "text", "early"),
    [(SUM, "3+4=7\nAnswer: 7", False), (SUM, "3+4=7", True), (SUM, "", True), (SUM, "3+4=8\nAnswer: 8", False),
     (CHAIN, "Ann > Bob\nAnswer: Bob", False), (CHAIN, "Ann > Bob", True),
     (CODE, "def f(xs):\n return 3", False), (CODE, "def f(xs):\n xs = sorted(xs)", True),
     (TALK, "Sure! It is red. It eats mice.", False), (TALK, "Oh no. It is blue. It eats hay.", False),
     (TALK, "Sure! It is red.", True), (TALK, "Sure!", True)],
)  # fmt: skip
def test_an_answer_stops_early_where_its_last_part_is_missing_whatever_it_says(prompt, text, early):
    assert stops_early(said(prompt, text)) is early
    assert not stops_early(said(prompt, text, finished=False)), "what was cut off did not stop by itself"


def test_shapes_have_one_row_a_prompt_and_keep_their_order():
    talk = [said(TALK, "It is red.", True, 4), said(TALK, "It is red. It is red. It", False, 8)]
    assert answer_shapes([*talk, said(SUM, "Answer: 7")]) == [
        AnswerShape("c", "conversation", repeats=0.5, early=0.5, cut=0.5, n_tokens=6),
        AnswerShape("s", "arithmetic", 0, 0, 0, 9),
    ]


def test_held_out_pairs_are_ordered_by_the_truth_and_near_ones_are_left_out():
    good, bad, worse = "Sure! It is red. It eats mice.", "It is red.", "Oh no. So it goes."
    pairs = held_out_pairs([said(TALK, t) for t in (bad, good, worse, good, "It is red. As you know.")], most=2)
    assert [(p.chosen, p.rejected) for p in pairs] == [(good, bad), ("It is red. As you know.", worse)]
    assert pairs[0].true_margin == pytest.approx(4 - 1.5)
    near = [said(TALK, "Gladly! It is red. It eats mice."), said(TALK, good)]
    assert held_out_pairs(near, most=1) == []


def row(prompt: str, chosen: float) -> PairLogps:
    return PairLogps(prompt, "arithmetic", chosen, -9.0, -0.1, -0.2)


def test_a_change_is_paired_and_its_unit_is_the_prompt():
    before = [row("a", -5), row("a", -5), row("b", -5), row("c", -5)]
    after = [row("a", -3), row("a", -5), row("b", -5), row("c", -3)]
    found = change(after, before, "chosen")
    assert found.n == 3
    assert found.value == pytest.approx((1 + 0 + 2) / 3)
    assert found.low < found.value < found.high
    assert change(after, before, "margin").value == pytest.approx(found.value)
    assert change(before, before, "rejected").value == 0


def test_rows_of_other_prompts_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        change([row("a", -1)], [row("b", -1)], "chosen")
    with pytest.raises(ValueError, match="at least one prompt"):
        change([], [], "chosen")


def test_log_probabilities_are_those_of_whole_answers_and_of_their_ends():
    policy = load_policy(BASE, Model(threads=1))
    pair = PreferencePair(TALK, "It is red.", "Oh no.", "better", "verifier", 1.0)
    (plain,) = pair_logps(policy, [pair])
    chosen, rejected = answer_logprobs(policy, [(TALK.text, "It is red."), (TALK.text, "Oh no.")])
    assert plain.chosen == pytest.approx(chosen, abs=1e-4)
    assert plain.rejected == pytest.approx(rejected, abs=1e-4)
    assert plain.chosen < plain.chosen_end < 0
    assert plain.margin == pytest.approx(chosen - rejected, abs=1e-4)
    (edited,) = pair_logps(policy, [replace(pair, edited="It eats mice.")])
    (other,) = answer_logprobs(policy, [(TALK.text, "It eats mice.")])
    assert edited.chosen == pytest.approx(other, abs=1e-4)
    assert edited.rejected == pytest.approx(rejected, abs=1e-4)
    assert math.isfinite(edited.chosen_end)
