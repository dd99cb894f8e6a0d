"""GSM8K: worked arithmetic as prompts, and a checker of free-form solutions.

The answer is read (`final_answers`) and matched by Math-Verify, through the small world's own numeric check; the
calculator's marks, `<<48/2=24>>24`, are checked for truth. What cannot be read abstains, unless no number in it
could be the answer. Source: Cobbe et al. 2021.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llama3_lab.benchmarks.equations import check_annotation, find_annotations
from llama3_lab.benchmarks.final_answers import Reading, read_final
from llama3_lab.benchmarks.numerals import Numeral, read_number, write_number
from llama3_lab.benchmarks.sources import Row, Source, prompt_id, read_rows
from llama3_lab.pipeline.sandbox import one_line
from llama3_lab.pipeline.verdicts import check_text
from llama3_lab.records import Check, Outcome, Prompt, Verdict

SKILL = "gsm8k"
HUB = Source("openai/gsm8k", "train", config="main")
_MARK = re.compile(r"<<[^<>\n]*>>")
_FINAL = re.compile(r"(?:####|\nA:)[ \t]*([^\n]+?)[ \t]*\Z")


def load_gsm8k(source: Source = HUB, training: bool = False) -> list[Prompt]:
    """Return one prompt a row, in order; columns: question, answer (working, then "#### 42").

    training: the prompts may train, so that a row of the test split is refused.

    Raises:
        ValueError: naming the row, for a missing column or an answer without a final number.
    """
    return [to_prompt(row) for row in read_rows(source, training)]


def to_prompt(row: Row) -> Prompt:
    """Return a row as a prompt; level: the number of the working's equations, 1 at least.

    Raises:
        ValueError: naming the row.
    """
    question, answer = row.text("question"), row.text("answer")
    final = _FINAL.search(answer.strip())
    value = read_number(final[1]) if final else None
    if value is None:
        raise ValueError(f"{row.where}: column 'answer' does not end with '#### <number>'; it ends {answer[-40:]!r}")
    steps = tuple(mark.equation for mark in find_annotations(answer))
    check = Check("number", write_number(value), steps)
    return Prompt(prompt_id(SKILL, row), SKILL, question, row.split, max(1, len(steps)), check)


def solutions(source: Source = HUB) -> dict[str, str]:
    """Return each question's own solution, in the course's form: its working without calculator's marks, "Answer: 42".

    Raises:
        ValueError: as `load_gsm8k`.
    """
    out = {}
    for row in read_rows(source):
        prompt, answer = to_prompt(row), row.text("answer").strip()
        working = _MARK.sub("", _FINAL.sub("", answer)).strip()
        out[prompt.text] = f"{working}\nAnswer: {prompt.check.answer}" if working else f"Answer: {prompt.check.answer}"
    return out


def check(prompt: Prompt, text: str, strict: bool = True) -> Verdict:
    """Return the verdict on one finished solution: its answer and, where strict, the truth of its annotations.

    No text raises.
    """
    verdict = check_answer(prompt, text)
    if verdict.outcome != "pass" or not strict:
        return verdict
    steps = check_steps(prompt, text)
    return steps if steps.outcome == "fail" else verdict


def check_answer(prompt: Prompt, text: str) -> Verdict:
    """Return whether the final number is the right one, however it is written.

    fail: another number, or a hedge. abstain: no number could be read as the answer, or several might be.
    """
    reading = read_final(text)
    said = one_line(reading.text, 60)
    if reading.kind == "none":
        return Verdict("abstain", "number", one_line(f"no final number found: {said}" if said else "no answer found"))
    outcomes = [_match(n, prompt.check.answer) for n in reading.numbers]
    if outcomes[0] == "abstain":
        return Verdict("abstain", "number", one_line(f"the prompt's own answer, {prompt.check.answer}, is no number"))
    if reading.kind == "hedge":
        return Verdict("fail", "number", one_line(f"not one answer: {said}"))
    if outcomes[0] == "pass":
        return Verdict("pass", "number", one_line(f"read {write_number(reading.numbers[0].value)}"))
    if reading.kind == "several" and "pass" in outcomes:
        return Verdict("abstain", "number", one_line(f"several numbers, which one is meant? {said}"))
    return Verdict("fail", "number", one_line(f"read {_shown(reading)}, not {prompt.check.answer}"))


def check_steps(prompt: Prompt, text: str) -> Verdict:
    """Return whether every calculator's mark is true and followed by its own result; the first false one is named.

    Abstains where there is none, or one that is no arithmetic and none that is false. Unlike the small world's
    step check it does not ask for the reference's own steps: other ways to the answer are as good.
    """
    marks = find_annotations(text)
    unreadable = ""
    for i, mark in enumerate(marks):
        truth, why = check_annotation(mark)
        if truth == "false":
            return Verdict("fail", "steps", one_line(f"step {i + 1}: {why}"))
        unreadable = unreadable or (f"step {i + 1}: {why}" if truth == "unreadable" else "")
    if unreadable or not marks:
        return Verdict("abstain", "steps", one_line(unreadable or "the working has no annotations to check"))
    return Verdict("pass", "steps", f"{len(marks)} steps hold")


def check_all(prompts: Sequence[Prompt], texts: Sequence[str], strict: bool = True) -> list[Verdict]:
    """Return one verdict for each pair of prompt and solution, in order."""
    return [check(p, t, strict) for p, t in zip(prompts, texts, strict=True)]


def _match(number: Numeral, answer: str) -> Outcome:
    """Return the outcome of the small world's numeric check for any of the values that a numeral may stand for."""
    asked = Prompt("number", SKILL, "number", "train", 1, Check("number", answer))
    found = [check_text(asked, f"Answer: {write_number(value)}").outcome for value in number.values]
    return "pass" if "pass" in found else found[0]


def _shown(reading: Reading) -> str:
    return " or ".join(dict.fromkeys(write_number(n.value) for n in reading.numbers[:3]))
