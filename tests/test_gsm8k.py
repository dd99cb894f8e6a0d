"""Worked arithmetic: numbers, equations and final answers as people and models write them, and GSM8K's own rows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_lab.benchmarks import gsm8k
from llama3_lab.benchmarks.equations import check_annotation, check_equation, evaluate, find_annotations
from llama3_lab.benchmarks.final_answers import read_final
from llama3_lab.benchmarks.numerals import find_numbers, plain, read_number
from llama3_lab.benchmarks.sources import Source
from llama3_lab.records import Check, Prompt

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(os.environ.get("LLAMA3_LAB_SHARED", ROOT.parent / "shared")) / "data" / "gsm8k" / "train_first_1000.jsonl"
needs_rows = pytest.mark.skipif(not ROWS.exists(), reason=f"{ROWS.name} is not there")

RIGHT = [  # the right answer, and a solution that gives it: labelled by hand
    ("42", "#### 42"), ("42", "####42"), ("42", "#### 42."), ("42", "#### $42"), ("42", "#### 42 dollars"),
    ("42", "#### **42**"), ("42", "#### \\boxed{42}"), ("1234", "#### 1,234"), ("1200", "#### 1,200.00"),
    ("42", "A: 42"), ("90000", "So it made 90,000\nA: 90,000"), ("42", "Answer: 42"), ("42", "Answer=42"),
    ("1234", "So that is it.\nThe answer is $1,234."), ("42", "The answer is: \\(42\\)"), ("42", "Answer: 42.00"),
    ("42", "The answer is 42 because 6*7=42."), ("42", "The answer is 40 + 2 = 42."), ("42", "The answer is x = 42"),
    ("42", "The answer is 42 apples (20 in May and 22 in June)."), ("42", "The answer is USD 42"),
    ("42", "The answer to the question is 42."), ("42", "My answer would be 42."), ("42", "The answer is $42/day."),
    ("42", "**Answer: 42**"), ("42", "**Answer:** 42 apples"), ("42", "### Answer\n42"), ("42", "Final Answer:\n\n42"),
    ("42", "> **Final answer:** `42`"), ("42", "Answer: 42\nExplanation: 6 times 7 makes 42, not 43."),
    ("42", "\\boxed{42}"), ("42", "$\\boxed{42}$."), ("42", "The final answer is $\\boxed{42 \\text{ apples}}$"),
    ("42", "The total is \\(\\boxed{42}\\). I hope this helps! Ask me 2 more questions."), ("42", "\\boxed{42\\%}"),
    ("42", "$$\\boxed{42}$$\n\nThere are 42 students, 20 boys and 22 girls."), ("1234", "\\boxed{1{,}234}"),
    ("42", "So the answer is $\\$42$."), ("42", "\\[ 6 \\times 7 = 42 \\]"), ("1.5", "\\boxed{1\\frac{1}{2}}"),
    ("0.75", "\\boxed{\\frac{3}{4}}"), ("0.75", "#### 3/4"), ("1.5", "The answer is 1½ hours."), ("42", "#### 84/2"),
    ("50", "The answer is 50%."), ("0.5", "The answer is 50%."), ("50", "#### 50%"),
    ("-5", "#### -5"), ("-5", "The answer is \N{MINUS SIGN}5 degrees"), ("-5", "The answer is negative 5."),
    ("1000000", "The answer is 1 million dollars"), ("3", "The answer is 3 million"), ("24", "The answer is two dozen"),
    ("10.5", "The answer is 10 dollars and 50 cents."), ("9", "Answer: nine"), ("0", "The answer is zero."),
    ("42", "The answer is forty-two."), ("6", "She ends in\nA: 6th"),
    ("42", "Therefore, she has 42 apples."), ("42", "6 x 7 = 42"), ("42", "She earns 6 * 7 = $42 per week"),
    ("42", "She earns **$42**."), ("42", "She has forty-two apples."), ("42", "Thus, after 3 days she has 42 left."),
    ("8", "Tom has 20 - 12 = <<20-12=8>>8 apples left"), ("42", "Total = 42\n\nLet me know if you have any questions!"),
    ("42", "So, the answer is 41. Wait, I made a mistake. The answer is 42."),
    ("42", "#### Step 1: Find the total\n6*7 = 42\n#### Step 2: Conclude\nThe answer is 42."),
    ("42", "#### 1. Find the total\n6*7 = 42\n\n#### Final Answer: 42"),
    ("72", "48 + 24 = <<48+24=72>>72\n#### 72\n\nQuestion: What is 3+4?\nAnswer: 7"),
    ("42", "The answer is 42 eggs, not 20."), ("42", "Total - 42"), ("42", "#### 42<|end_of_text|>"),
    ("-42", "#### - 42"),
    ("42", "She'd have 42 left.\n\nLet me know if you need 1 more example!"), ("42", "{\"answer\": 42}"), ("42", "42"),
    ("42", "<answer>\n42\n</answer>"), ("42", "Therefore, 42 is the answer."), ("42", "The answer: 42 (forty-two)."),
    ("66", "He earned 24 answers * 2 points/answer = <<24*2=48>>48 points.\nHis total is 66 points."),
]  # fmt: skip
WRONG = [  # fail: another number, or a hedge
    "#### 43", "#### 4.2", "#### -42", "#### 420", "The answer is 420.", "She has 41 apples.", "The answer is 4,2",
    "#### 42 or 43", "The answer is 42 or 43.", "The answer is either 42 or 43", "The answer is between 41 and 43",
    "\\boxed{41, 42}", "\\boxed{42}\\text{ or }\\boxed{43}", "The answer is 42-43", "#### 42, 43", "A: 42/43",
    "The answer is not 42.", "The answer is at least 42", "The answer is more than 42.", "#### > 42",
    "#### 42\n#### 43", "#### 43\nThe answer is 42", "#### 42\nThe answer is 43",
    "The answer is 42. No wait, the answer is 43.",
]  # fmt: skip
UNREAD = [  # abstain: nothing says which number is meant
    "", "I do not know.", "I cannot solve this problem.", "The answer is unclear.", "#### ?", "####", "#### 42^2",
    "The answer is 42. Wait, that is wrong.", "She has 42 apples and 43 pears.", "The answer is 42 + 1",
]  # fmt: skip


def prompt(answer: str) -> Prompt:
    return Prompt("g", gsm8k.SKILL, "How many?", "train", 1, Check("number", answer))


@pytest.mark.parametrize("answer, text", RIGHT)
def test_right_answers_pass_in_every_common_style(answer: str, text: str) -> None:
    verdict = gsm8k.check(prompt(answer), text)
    assert (verdict.outcome, verdict.checker) == ("pass", "number"), verdict.reason


@pytest.mark.parametrize("answer, text", RIGHT)
def test_the_same_solutions_do_not_pass_for_the_next_number(answer: str, text: str) -> None:
    assert gsm8k.check(prompt(str(Fraction(answer) + 1)), text).outcome != "pass"


@pytest.mark.parametrize("text", WRONG)
def test_other_numbers_and_hedges_fail(text: str) -> None:
    assert gsm8k.check(prompt("42"), text).outcome == "fail"


@pytest.mark.parametrize("text", UNREAD)
def test_what_cannot_be_read_abstains(text: str) -> None:
    verdict = gsm8k.check(prompt("42"), text)
    assert verdict.outcome == "abstain" and verdict.reason


def test_a_sentence_of_several_numbers_passes_by_its_last_abstains_by_another_and_else_fails() -> None:
    text = "In 3 weeks she earned $42."
    assert [gsm8k.check(prompt(a), text).outcome for a in ("42", "3", "7")] == ["pass", "abstain", "fail"]


@pytest.mark.parametrize("text, values", [
    ("1,234.5 and 7", ["1234.5", "7"]), ("-3", ["-3"]), ("5-3", ["5", "3"]), ("-$5, $-5", ["-5", "-5"]), (".5", [".5"]),
    ("3/4", ["3/4"]), ("1 1/2", ["3/2"]), ("\\dfrac{3}{4}", ["3/4"]), ("2½", ["5/2"]), ("25 %", ["25"]),
    ("2.5 million", ["2500000"]), ("3 dozen", ["36"]), ("1,23", ["1", "23"]), ("x2 3kg", ["3"]), ("2^10", []),
    ("twenty-five", ["25"]), ("two hundred and five thousand", ["205000"]), ("a dozen", ["12"]), ("five of 6", ["6"]),
    ("5/0", []), ("no number", []), ("٣", []), ("1" * 50, []),
])  # fmt: skip
def test_numbers_are_found_exactly(text: str, values: list[str]) -> None:
    assert [n.value for n in find_numbers(plain(text))] == [Fraction(v) for v in values]


def test_a_number_alone_is_read_and_nothing_else() -> None:
    assert read_number(" $1,000 ") == 1000
    assert read_number("about 3") is None and read_number("3 4") is None and read_number("") is None


@pytest.mark.parametrize("text, truth", [
    ("48/2=24", "true"), ("7+5=12", "true"), ("7+5=13", "false"), ("0.2*50=10", "true"), ("(2+3)*4=20", "true"),
    ("10/3=3.33", "true"), ("10/3=3", "true"), ("10/3=4", "true"), ("10/3=5", "false"), ("10/3=3.4", "true"),
    ("10/3=3.5", "false"), ("5/2=2.4", "false"), ("5/2=2.5", "true"), ("5/2=3", "true"), ("2*1/2=1.0", "true"),
    ("200*40%=80", "true"), ("2^3=8", "true"), ("2 x 3=6", "true"), ("$1,000*2=2000", "true"), ("07*2=14", "true"),
    ("2+3=5=5", "true"), ("2+3=5=6", "false"), ("560//10=56", "true"), ("-3+5=2", "true"), (".5*4=2", "true"),
    ("x=5", "unreadable"), ("5", "unreadable"), ("2/case*80=160", "unreadable"), ("1/0=1", "unreadable"),
    ("=", "unreadable"),
    ("9**9**9=1", "unreadable"), ("9" * 300 + "=1", "unreadable"), ("f(2)=2", "unreadable"), ("1+=2", "unreadable"),
])  # fmt: skip
def test_an_equation_is_true_to_the_digits_it_shows(text: str, truth: str) -> None:
    assert check_equation(text)[0] == truth


def test_evaluation_is_exact_and_of_arithmetic_only() -> None:
    assert evaluate("1/3+1/3+1/3") == 1
    assert evaluate("0.1+0.2") == Fraction("0.3")
    for text in ("__import__('os')", "a", "1 if 1 else 2", "[1]", "'a'*3", "", "(" * 500, "1e5"):
        assert evaluate(text) is None


@pytest.mark.parametrize("text, truth", [
    ("<<48/2=24>>24", "true"), ("<<48/2=24>> 24.0 apples", "true"), ("<<48/2=24>>25", "false"),
    ("<<5+5=10>>$10.", "true"), ("<<10/3=3.3333333>>3.33", "true"), ("<<2*3=6>>6 million", "true"),
    ("<<1/2=0.5>>50%", "true"), ("<<5+8=13>>13th", "true"),
    ("<<20*10=200>>, 3 times", "true"), ("<<20*1000=20000>>20,000", "true"), ("<<48/2=25>>25", "false"),
])  # fmt: skip
def test_the_number_after_an_annotation_is_its_result(text: str, truth: str) -> None:
    (mark,) = find_annotations(text)
    assert check_annotation(mark)[0] == truth


def test_steps_are_checked_for_truth_and_the_first_false_one_is_named() -> None:
    text = "She has 7+5=<<7+5=13>>13, less 4: <<13-4=9>>9\n#### 9"
    assert gsm8k.check_answer(prompt("9"), text).outcome == "pass"
    assert gsm8k.check(prompt("9"), text, strict=False).outcome == "pass"
    verdict = gsm8k.check(prompt("9"), text)
    assert (verdict.outcome, verdict.checker, verdict.reason) == ("fail", "steps", "step 1: 7+5=13 is false")
    assert gsm8k.check_steps(prompt("9"), "#### 9").outcome == "abstain"
    assert gsm8k.check_steps(prompt("9"), "<<x=9>>9 <<4+5=9>>9").outcome == "abstain"
    assert gsm8k.check(prompt("9"), "<<x=9>>9\n#### 9").outcome == "pass"
    assert gsm8k.check_steps(prompt("9"), "<<x=9>>9 <<4+5=8>>8").outcome == "fail"
    assert gsm8k.check_steps(prompt("9"), "<<4+5=9>>9").reason == "1 steps hold"


def test_a_prompt_whose_own_answer_is_no_number_abstains() -> None:
    assert gsm8k.check(prompt("cat"), "#### 9").outcome == "abstain"


PIECES = st.one_of(
    st.sampled_from(["#### ", "\\boxed{", "}", "Answer: ", "A:", "The answer is ", "<<2+2=4>>", "\n", "$", "**", "or"]),
    st.text(max_size=12),
    st.text("0123456789+-*/=.,%$\\{}()^ frac\n", max_size=12),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_no_text_makes_the_checker_raise(text: str) -> None:
    verdict = gsm8k.check(prompt("42"), text)
    assert verdict.outcome in ("pass", "fail", "abstain")
    assert 0 < len(verdict.reason) <= 120 and verdict.reason.isprintable()


@pytest.mark.parametrize("text", ["a answer " * 20_000, "#### " * 20_000, "answer is " + "9" * 200_000,
                                  "\\boxed{" * 20_000, "1 " * 100_000, "<<" * 50_000, "one and " * 20_000,
                                  "(" * 100_000, "1,111" * 40_000, "Answer: " * 20_000,
                                  "the answer to " * 10_000, "\n" * 100_000])  # fmt: skip
def test_long_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    gsm8k.check(prompt("42"), text)
    assert time.process_time() - start < 2.0


@pytest.fixture(scope="module")
def rows() -> list[tuple[Prompt, str]]:
    prompts = gsm8k.load_gsm8k(Source(str(ROWS), "train"), training=True)
    answers = [json.loads(line)["answer"] for line in ROWS.read_text(encoding="utf-8").splitlines()]
    return list(zip(prompts, answers, strict=True))


@needs_rows
def test_reference_answers_pass_with_their_steps(rows) -> None:
    assert len(rows) == 1000 and len({p.id for p, _ in rows}) == 1000
    assert {p.split for p, _ in rows} == {"train"}
    for check in (gsm8k.check, gsm8k.check_answer):
        assert sum(check(p, a).outcome == "pass" for p, a in rows) >= 995
    steps = [gsm8k.check_steps(p, a).outcome for p, a in rows]
    assert "fail" not in steps and steps.count("pass") >= 970


def other_digit(text: str) -> str:
    i = Random(text).randrange(len(text))
    return text[:i] + str((int(text[i]) + 5) % 10) + text[i + 1 :] if text[i].isdigit() else text + "7"


STYLES: dict[str, Callable[[str, str], str]] = {
    "hashes": lambda work, x: f"{work}#### {x}",
    "sentence": lambda work, x: f"{work}So the total comes to {x} in all.",
    "boxed": lambda work, x: f"{work}The final answer is: $\\boxed{{{x}}}$. I hope it is correct.",
    "bold": lambda work, x: f"{work}\n**Answer:** {x} units",
    "letter": lambda work, x: f"{work}A: {x}",
}
CHANGES: dict[str, Callable[[str], str]] = {
    "plus one": lambda x: str(int(x) + 1), "minus one": lambda x: str(int(x) - 1), "ten times": lambda x: x + "0",
    "sign": lambda x: "-" + x, "digit": other_digit, "half more": lambda x: x + ".5",
    "a tenth": lambda x: f"{x[:-1]}.{x[-1]}",
}  # fmt: skip


@needs_rows
@pytest.mark.parametrize("style", STYLES)
def test_perturbed_numbers_are_rejected_in_every_style_and_the_right_ones_accepted(style: str, rows) -> None:
    passed: dict[str, list[bool]] = {name: [] for name in ("right", *CHANGES)}
    for i, (p, answer) in enumerate(rows):
        work, _, last = answer.rpartition("#### ")
        right = last.replace(",", "")
        passed["right"].append(gsm8k.check(p, STYLES[style](work, right)).outcome == "pass")
        name = list(CHANGES)[i % len(CHANGES)]
        changed = CHANGES[name](right)
        if Fraction(changed) != Fraction(right):
            passed[name].append(gsm8k.check(p, STYLES[style](work, changed)).outcome == "pass")
    assert sum(passed.pop("right")) >= 995
    wrongly = {name: sum(found) for name, found in passed.items() if sum(found)}
    assert sum(wrongly.values()) <= 5, wrongly


@needs_rows
def test_a_perturbed_step_is_found_though_the_answer_is_right(rows) -> None:
    found = []
    for p, answer in rows:
        marks = list(re.finditer(r"=(\d+)>>", answer))
        if marks:
            mark = marks[len(answer) % len(marks)]
            changed = answer[: mark.start(1)] + str(int(mark[1]) + 1) + answer[mark.end(1) :]
            assert gsm8k.check_answer(p, changed).outcome == "pass"
            found.append(gsm8k.check(p, changed).outcome == "fail")
    assert len(found) > 900 and sum(found) / len(found) >= 0.995


def test_rows_that_lack_something_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "How many?", "answer": "2\\n#### 2"}\n{"question": "How many?", "answer": "two"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: column 'answer' does not end with '#### <number>'"):
        gsm8k.load_gsm8k(Source(str(path), "train"))
    path.write_text('{"question": "How many?", "answer": "3*1 = <<3*1=3>>3\\n#### 3,000"}\n')
    (made,) = gsm8k.load_gsm8k(Source(str(path), "validation"))
    assert (made.id, made.level, made.check) == ("gsm8k-validation-00001", 1, Check("number", "3000", ("3*1=3",)))


def test_the_reading_says_from_what_it_was_read() -> None:
    reading = read_final("She has 3.\nThe answer is 42 apples.")
    assert (reading.kind, reading.numbers[0].value, reading.text) == ("one", 42, "42 apples.")
