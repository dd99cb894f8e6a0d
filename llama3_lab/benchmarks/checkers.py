"""verify(): candidates → verdicts, for the public benchmarks and the small world alike.

The small world's skills go to its own checker. Of the others, the kind of check decides:

    number   the final number in any common style, and the calculator's marks (gsm8k)
    tests    the program in the answer, in memory or in processes of its own (mbpp, humaneval)
    chain    the small world's checker
    rubric   no checker: abstain

What they are not: proof. A right number after wrong words passes, and so does a program that only meets its tests.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from llama3_lab.benchmarks import gsm8k, humaneval, mbpp
from llama3_lab.pipeline import verdicts
from llama3_lab.records import SKILLS, Candidate, Prompt, Verdict


def verify(candidates: Sequence[Candidate], strict: bool = True) -> list[Verdict]:
    """Return one verdict for each candidate, in order. The same text to the same prompt is checked once.

    An answer that was cut off fails unread. strict: false steps in the working fail too. A verdict on a program
    names the sandbox that decided: checker "tests (monty)" or "tests (process)".

    Raises:
        ValueError: if the code sandbox cannot be started.
    """
    return verdicts.verify_by(functools.partial(_check, strict=strict), candidates)


def check_text(prompt: Prompt, text: str, strict: bool = True) -> Verdict:
    """Return the verdict on one finished answer, by the kind of the prompt's check. No text raises.

    Raises:
        ValueError: if the code sandbox cannot be started.
    """
    kind = prompt.check.kind
    if kind == "number":
        return gsm8k.check(prompt, text, strict)
    if kind == "tests":
        check = humaneval.check if prompt.skill == humaneval.SKILL else mbpp.check
        return check(prompt, text).verdict()
    return verdicts.check_text(prompt, text)


def _check(prompt: Prompt, text: str, strict: bool) -> Verdict:
    if prompt.skill in SKILLS:
        return verdicts.check_strictly(prompt, text) if strict else verdicts.check_text(prompt, text)
    return check_text(prompt, text, strict)
