"""verify(): the number, the working, the program, the chain; and texts that are none of these."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_lab.pipeline import verdicts
from llama3_lab.pipeline.verdicts import check_steps, check_text, verify
from llama3_lab.records import Candidate, Check, Prompt, Verdict
from llama3_lab.world import arithmetic, orderings, programs

SUM = Prompt("a1", "arithmetic", "Ann has 7 pens, buys 5, loses 3. How many pens?", "train", 1,
             Check("number", "9", ("7+5=12", "12-3=9")))  # fmt: skip
CODE = Prompt("p1", "programs", "Write f(xs): keep above 4, sum.", "train", 1,
              Check("tests", "def f(xs):\n xs = [x for x in xs if x > 4]\n return sum(xs)",
                    ("f([1, 4, 5, 9]) == 14", "f([]) == 0")))  # fmt: skip
ORDER = Prompt("o1", "orderings", "Bob beats Cid. Bob loses to Ann. Who is first?", "train", 1,
               Check("chain", "Ann", ("Ann > Bob", "Bob > Cid")))  # fmt: skip
OPEN = Prompt("c1", "conversation", "Tell me about the fox.", "train", 1, Check("rubric", "It is red."))
ALL = (SUM, CODE, ORDER, OPEN)


def candidate(prompt: Prompt, text: str, finished: bool = True) -> Candidate:
    return Candidate(prompt, text, "base", 1.0, 0, 12, finished, -1.0)


@pytest.mark.parametrize("text", [
    "7+5=12\n12-3=9\nAnswer: 9", "Answer: 9", "Answer: 09", "Answer: +9", "Answer: 9.0", "Answer: 18/2",
    "Answer: \\frac{18}{2}", "Answer: $\\boxed{9}$", "Answer: 9 pens", "Answer: $9", "Answer: 900%",
    "Answer: **9**", "Answer: 9.", "\nAnswer:9\n\n",
])  # fmt: skip
def test_the_right_number_passes_in_every_common_way_of_writing(text: str) -> None:
    assert check_text(SUM, text).outcome == "pass"


@pytest.mark.parametrize("said", [
    "8", "-9", "\N{MINUS SIGN}9", "- 9", "9.5", "1/9", "9%", "9 or 10", "9, 10", "3*3", "9(9)", "9 million",
    "not 9", "9e5", "9^9^9^9", "9!", "nine", "9 / 0", "9" * 5000, "٩", "\\Gamma(9999999)",
])  # fmt: skip
def test_a_wrong_or_hedged_number_fails_and_the_reason_is_one_short_line(said: str) -> None:
    verdict = check_text(SUM, f"Answer: {said}")
    assert verdict.outcome == "fail"
    assert 0 < len(verdict.reason) <= 120 and "\n" not in verdict.reason


@pytest.mark.parametrize("answer, said, outcome", [
    ("1200", "1,200", "pass"), ("1,200", "1200", "pass"), ("1200", "1,20", "fail"),
    ("1/3", "0.333333", "pass"),
    ("1/3", "0.33", "fail"), ("0.5", "50%", "pass"), ("-3", "-3.0", "pass"), ("-3", "3.0", "fail"),
    ("cat", "9", "abstain"),
])  # fmt: skip
def test_numbers_that_are_not_plain_integers(answer: str, said: str, outcome: str) -> None:
    prompt = Prompt("n", "arithmetic", "How many?", "train", 1, Check("number", answer))
    assert check_text(prompt, f"Answer: {said}").outcome == outcome


@pytest.mark.parametrize(
    "text", ["", "9", "Answer:", "Answer: \n", "answer is 9", "Answer: 9\nI hope it helps"]
)
def test_no_answer_on_the_last_line_is_no_answer(text: str) -> None:
    for prompt in (SUM, ORDER):
        verdict = check_text(prompt, text)
        assert (verdict.outcome, verdict.reason) == ("fail", "no answer found")
    assert check_steps(SUM, text).outcome == "fail"


@pytest.mark.parametrize("working, reason", [
    ("7+5=12\n12-3=9", "2 steps hold"),
    ("7 + 5 = 12\n12 - 3 = 9", "2 steps hold"),
    ("7+5=13\n13-3=10", "step 1: 7+5=13 is false"),
    ("7+5=12\n12-3=8", "step 2: 12-3=8 is false"),
    ("7+5=12\n12+3=15", "step 2: 12+3=15 is true, but the problem asks for 12-3=9"),
    ("12-3=9\n7+5=12", "step 1: 12-3=9 is true, but the problem asks for 7+5=12"),
    ("7+5=12", "step 2: 12-3=9 is missing"),
    ("", "step 1: 7+5=12 is missing"),
    ("7+5=12\n12-3=9\n9*1=9", "step 3: 9*1=9 is one too many"),
    ("seven\n12-3=9", "step 1: seven is not an equation"),
    ("7/0=7\n12-3=9", "step 1: 7/0=7 is false"),
])  # fmt: skip
def test_the_first_wrong_step_is_named(working: str, reason: str) -> None:
    verdict = check_steps(SUM, f"{working}\nAnswer: 9")
    assert verdict.reason == reason
    assert (verdict.outcome == "pass") == reason.endswith("hold")


def test_right_answer_from_wrong_working_passes_the_numeric_match_only() -> None:
    lucky = candidate(SUM, "7+5=13\n13-4=9\nAnswer: 9")
    assert verify([lucky])[0].reason == "step 1: 7+5=13 is false"
    assert verify([lucky], strict=False)[0].outcome == "pass"
    wrong_end = candidate(SUM, "7+5=12\n12-3=9\nAnswer: 8")
    assert check_steps(SUM, wrong_end.text).outcome == "pass"
    assert verify([wrong_end])[0].outcome == "fail"


def test_without_working_to_compare_the_steps_abstain_and_the_answer_decides() -> None:
    bare = Prompt("n", "arithmetic", "How many?", "train", 1, Check("number", "9"))
    assert check_steps(bare, "Answer: 9").outcome == "abstain"
    assert check_steps(ORDER, "Answer: Ann").outcome == "abstain"
    assert verify([candidate(bare, "Answer: 9")])[0].outcome == "pass"


@pytest.mark.parametrize("text, reason", [
    ("Ann > Bob > Cid\nAnswer: Ann", "every link and the answer hold"),
    ("Ann>Bob >  Cid\nAnswer: Ann", "every link and the answer hold"),
    ("Ann > Cid > Bob\nAnswer: Ann", "link 1: Ann > Cid is not true"),
    ("Ann > Bob > Bob\nAnswer: Ann", "link 2: Bob > Bob is not true"),
    ("Bob > Ann > Cid\nAnswer: Ann", "link 1: Bob > Ann is not true"),
    ("Ann > Cid\nAnswer: Ann", "link 1: Ann > Cid is not true"),
    ("Ann > Bob\nAnswer: Ann", "the chain lacks Bob > Cid"),
    ("Ann\nAnswer: Ann", "the chain lacks Ann > Bob"),
    ("Answer: Ann", "0 lines before the answer; the chain is one"),
    ("Ann > Bob\nBob > Cid\nAnswer: Ann", "2 lines before the answer; the chain is one"),
    ("Ann > Bob > Cid\nAnswer: Cid", "the answer is Ann, not Cid"),
])  # fmt: skip
def test_a_chain_is_checked_link_by_link_then_the_answer(text: str, reason: str) -> None:
    verdict = check_text(ORDER, text)
    assert verdict.reason == reason
    assert (verdict.outcome == "pass") == reason.endswith("hold")


def test_a_program_is_judged_by_its_tests() -> None:
    assert check_text(CODE, CODE.check.answer).outcome == "pass"
    boundary = check_text(CODE, CODE.check.answer.replace("> 4", ">= 4"))
    assert (boundary.outcome, boundary.reason) == ("fail", "test 1 (f([1, 4, 5, 9]) == 14): got 18")
    assert check_text(CODE, "def f(xs):\n return xs[0]").reason.startswith("test 1")
    assert "IndexError" in check_text(CODE, "def f(xs):\n return 14 if xs else xs[0]").reason
    assert check_text(CODE, "Sure!").outcome == "fail"


def test_the_open_skill_has_no_checker() -> None:
    assert check_text(OPEN, "It is red.").outcome == "abstain"


def test_an_answer_cut_off_at_the_cap_fails_however_right_and_whatever_its_twin_got() -> None:
    right = [
        candidate(SUM, "7+5=12\n12-3=9\nAnswer: 9"),
        candidate(CODE, CODE.check.answer),
        candidate(ORDER, "Ann > Bob > Cid\nAnswer: Ann"),
    ]
    cut = [candidate(c.prompt, c.text, finished=False) for c in right]
    outcomes = [v.outcome for v in verify([*right, *cut, candidate(OPEN, "x", finished=False)])]
    assert outcomes == ["pass"] * 3 + ["fail"] * 4
    assert verify(cut)[0].reason == "cut off at 12 tokens"


def test_verify_keeps_length_and_order_and_checks_equal_texts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def counted(prompt: Prompt, text: str) -> Verdict:
        seen.append((prompt.id, text))
        return check_text(prompt, text)

    monkeypatch.setattr(verdicts, "check_text", counted)
    texts = ["Answer: 9", "Answer: 8", "Answer: 9", "Answer: Ann"]
    many = [candidate(p, t) for t in texts for p in (SUM, ORDER)]
    got = verify(many, strict=False)
    assert [v.checker for v in got] == ["number", "chain"] * 4
    assert [v.outcome for v in got if v.checker == "number"] == ["pass", "fail", "pass", "fail"]
    assert len(seen) == len(set(seen)) == 6
    assert verify([]) == []


@pytest.mark.parametrize("skill", [arithmetic, programs, orderings])
def test_the_worlds_right_answers_pass_and_its_flawed_authors_are_caught(skill) -> None:  # type: ignore[no-untyped-def]
    rng = Random(7)
    prompts = [skill.make(rng, level, "train", f"{level}-{i}") for level in (1, 2, 3) for i in range(20)]
    assert {v.outcome for v in verify([candidate(p, skill.ideal(p)) for p in prompts])} == {"pass"}
    flawed = [candidate(p, skill.write(p, rng)) for p in prompts]
    for c, v in zip(flawed, verify(flawed), strict=True):
        if c.text == skill.ideal(c.prompt):
            assert v.outcome == "pass"
        elif skill is not programs:  # a program may be right in another way
            assert v.outcome == "fail"
    assert "fail" in {v.outcome for v in verify(flawed)}


LINES = st.one_of(
    st.sampled_from(
        ["7+5=12", "12-3=9", "Ann > Bob > Cid", "Ann >", ">", "=", "Answer: 9", "Answer:", "Answer: 1/0"]
    ),
    st.text(max_size=30),
    st.text("0123456789+-*/=.,%$\\{}()^ frac", max_size=20).map("Answer: ".__add__),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(LINES, max_size=5).map("\n".join))
def test_no_text_makes_a_checker_raise(text: str) -> None:
    for prompt in ALL:
        for verdict in (check_text(prompt, text), check_steps(prompt, text)):
            assert verdict.outcome in ("pass", "fail", "abstain")
            assert len(verdict.reason) <= 120 and verdict.reason.isprintable()
    assert check_text(CODE, text).outcome == "fail"
