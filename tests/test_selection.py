"""Selection, pairs, truth and the funnel: hand-worked cases."""

from typing import get_args

import pytest

from llama3_lab.pipeline.demonstrations import Rule, select, select_at_random
from llama3_lab.pipeline.pairs import annotated, distinct, from_verdicts, strong, triples
from llama3_lab.pipeline.truth import are_right, share_of_right_lines, true_qualities
from llama3_lab.records import Candidate, Check, Judged, PreferencePair, Prompt, Verdict

SUM = Check("number", "9", ("7+5=12", "12-3=9"))
RIGHT, WRONG = "7+5=12\n12-3=9\nAnswer: 9", "7+5=11\n11-3=8\nAnswer: 8"


def ask(name="p", check=SUM, skill="arithmetic"):
    return Prompt(name, skill, "Ann has 7 pens, finds 5, loses 3. How many pens?", "train", 1, check)


def said(text, prompt=None, finished=True):
    return Candidate(prompt or ask(), text, "policy", 1.0, 0, 9, finished, -1.0)


def judged(outcome, reward, text, prompt=None, finished=True):
    return Judged(said(text, prompt, finished), Verdict(outcome, "test", ""), reward)


def test_each_rule_picks_its_winner():
    rows = [judged("fail", 9.0, "a"), judged("pass", 1.0, "b"), judged("pass", 2.0, "c"),
            judged("fail", 99.0, "cut", finished=False)]  # fmt: skip
    assert [d.text for d in select(rows)] == ["c"]
    assert [d.text for d in select(rows, "reward")] == ["a"]  # never the one that was cut off
    assert {select(rows, "checker", seed)[0].text for seed in range(20)} == {"b", "c"}


def test_either_judge_will_do_or_both_must_agree():
    rows = [judged("fail", 9.0, "a"), judged("pass", 1.0, "b"), judged("fail", 3.0, "c")]
    assert {select(rows, "either", seed)[0].text for seed in range(20)} == {"a", "b"}
    assert select(rows, "strict") == []
    assert [d.text for d in select([*rows, judged("pass", 9.5, "d")], "strict")] == ["d"]
    cut = [judged("fail", 99.0, "cut", finished=False)]
    assert all(select(cut, rule) == [] for rule in get_args(Rule))
    open_one = ask("open", Check("rubric", "x", ("x",)), "conversation")
    talk = [judged("abstain", 1.0, "c", open_one), judged("abstain", 2.0, "d", open_one)]
    assert [select(talk, rule)[0].text for rule in ("either", "strict")] == ["d", "d"]  # nothing there passes


def test_a_prompt_that_nobody_solves_yields_nothing_and_open_ones_go_by_reward():
    lost = ask("lost")
    open_one = ask("open", Check("rubric", "x", ("x",)), "conversation")
    rows = [judged("fail", 3.0, "a", lost), judged("fail", 4.0, "b", lost),
            judged("abstain", 1.0, "c", open_one), judged("abstain", 2.0, "d", open_one)]  # fmt: skip
    assert [(d.prompt.id, d.text) for d in select(rows)] == [("open", "d")]


def test_the_control_has_the_same_prompts_and_any_finished_answer():
    rows = [judged("fail", 0.0, "a"), judged("pass", 1.0, "b"), judged("fail", 9.0, "cut", finished=False)]
    best = select(rows)
    seen = {select_at_random(rows, best, seed)[0].text for seed in range(30)}
    assert seen == {"a", "b"}
    assert [d.prompt for d in select_at_random(rows, best)] == [d.prompt for d in best]


def test_an_answer_cut_off_cannot_be_recorded_as_a_pass():
    with pytest.raises(ValueError, match="cannot pass"):
        judged("pass", 0.0, RIGHT, finished=False)


def test_truth_of_checkable_answers():
    candidates = [said(RIGHT), said(WRONG), said("7+5=12\n12-3=8\nAnswer: 8"), said(RIGHT, finished=False)]
    assert true_qualities(candidates) == [4.0, 0.0, 0.5, 0.0]
    assert are_right(candidates) == [True, False, False, False]


def test_share_of_right_links():
    chain = ask("c", Check("chain", "Ann", ("Ann > Bob", "Bob > Cid")), "orderings")
    assert share_of_right_lines(chain, "Ann > Bob > Cid\nAnswer: Ann") == 1.0
    assert share_of_right_lines(chain, "Bob > Cid > Ann\nAnswer: Bob") == 0.5


def test_annotated_pairs_keep_order_skip_equal_answers_and_edit_toward_the_ideal():
    prompts = [ask(f"p{i}") for i in range(200)]
    first = [said(RIGHT, p) for p in prompts]
    second = [said(WRONG if i else RIGHT, p) for i, p in enumerate(prompts)]
    pairs = annotated(first, second, edit_share=0.5, seed=0)
    assert [p.prompt.id for p in pairs] == [f"p{i}" for i in range(1, 200)]
    right = sum(p.chosen == RIGHT for p in pairs) / len(pairs)
    assert right > 0.95  # 4 logits apart at noise 0.6: sigmoid(6.7) = 0.999
    assert all(p.edited is None for p in pairs if p.chosen == RIGHT)
    with pytest.raises(ValueError, match="different prompts"):
        annotated(first[:1], second[1:2], 0.0, 0)


def test_strength_filter_and_triples():
    weak = PreferencePair(ask(), "a", "b", "slightly better", "annotator", 0.1)
    sure = PreferencePair(ask(), "a", "b", "better", "annotator", 2.0, edited="e")
    assert strong([weak, sure], "better") == [sure]
    assert [(x, y) for _, x, y in triples([weak, sure])] == [("a", "b"), ("a", "b"), ("e", "a"), ("e", "b")]


def test_the_field_reports_pairs_put_passes_over_fails():
    rows = [judged("pass", 1.0, RIGHT), judged("fail", 5.0, WRONG), judged("fail", 0.0, "Answer: 1")]
    pairs = from_verdicts(rows)
    assert [(p.chosen, p.source) for p in pairs] == [(RIGHT, "verifier")]
    assert pairs[0].rejected in (WRONG, "Answer: 1") and pairs[0].true_margin == 4.0


def test_distinct_pairs_are_disjoint_different_and_of_one_prompt():
    p, q = ask("p"), ask("q")
    drawn = [said(t, p) for t in ("a", "b", "a", "c", "d", "e")] + [
        said("x", q),
        said("x", q),
        said("y", q, finished=False),
    ]
    first, second = distinct(drawn, 2)
    assert [(a.prompt.id, a.text, b.text) for a, b in zip(first, second, strict=True)] == [
        ("p", "a", "b"),
        ("p", "c", "d"),
    ]
