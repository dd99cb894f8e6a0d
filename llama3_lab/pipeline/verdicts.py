"""verify(): candidates → verdicts, by the checker that each prompt names.

    number   the final "Answer: N", by numeric match; and the working, step by step
    tests    unit tests, run in the sandbox
    chain    "Ann > Bob > Cid", link by link; then the answer
    rubric   no checker: abstain

What they are not: readers. A right answer in another format fails (only a number may be written in
several ways), and a right answer with working that says nothing passes the numeric match alone.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from llama3_lab.pipeline.sandbox import one_line, run_tests
from llama3_lab.records import Candidate, Outcome, Prompt, Verdict

MAX_ANSWER = 80  # characters of a final answer that are read
_INTEGER = re.compile(r"[+-]?[0-9]{1,80}")
_EQUATION = re.compile(r"(-?[0-9]{1,12}) ?([-+*/]) ?(-?[0-9]{1,12}) ?= ?(-?[0-9]{1,12})")
_FRAC = re.compile(r"\\[dt]?frac ?\{([^{}]*)\} ?\{([^{}]*)\}")
_WRAPPING = re.compile(r"\\(?:boxed|text|mathrm|left|right)\b|\\(?=%)|\\[()\[\],; ]|[${}()\[\]]|^\*\*|\*\*$")
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# One number, perhaps a fraction or a percentage, perhaps "x =" before and a unit after. Nothing that could
# hedge ("9 or 10"), and no power or function that could keep a computer algebra system busy for ever.
_WRITTEN = re.compile(
    rf"(?:[a-z] ?= ?)?([+-]?) ?({_UNSIGNED})(?: ?/ ?({_UNSIGNED}))?( ?%)?(?: ([A-Za-z ]+))? ?\.?"
)
_SCALES = frozenset({"hundred", "thousand", "million", "billion", "dozen", "percent", "pi", "times", "or"})


def verify(candidates: Sequence[Candidate], strict: bool = True) -> list[Verdict]:
    """Return one verdict for each candidate, in order. The same text to the same prompt is checked once.

    An answer that was cut off fails unread. strict: arithmetic passes only if its answer and every
    step of its working hold; otherwise the answer alone counts.
    """
    return verify_by(check_strictly if strict else check_text, candidates)


def verify_by(check: Callable[[Prompt, str], Verdict], candidates: Sequence[Candidate]) -> list[Verdict]:
    """Return one verdict for each candidate, in order, by `check`: each text once; what was cut off fails unread."""
    known: dict[tuple[str, str], Verdict] = {}
    verdicts = []
    for c in candidates:
        if not c.finished:
            verdicts.append(Verdict("fail", c.prompt.check.kind, f"cut off at {c.n_tokens} tokens"))
            continue
        key = (c.prompt.id, c.text)
        if key not in known:
            known[key] = check(c.prompt, c.text)
        verdicts.append(known[key])
    return verdicts


def check_text(prompt: Prompt, text: str) -> Verdict:
    """Return the verdict on one finished answer; for "number", by the final answer alone.

    No text raises, however malformed.

    Raises:
        ValueError: if the code sandbox cannot be started.
    """
    check = prompt.check
    if check.kind == "rubric":
        return Verdict("abstain", "rubric", "no checker for open requests")
    if check.kind == "tests":
        result = run_tests(text, check.items)
        return Verdict(result.outcome, "tests", result.reason)
    lines, said = _final(text)
    if said is None:
        return Verdict("fail", check.kind, "no answer found")
    if check.kind == "chain":
        wrong = _wrong_chain(lines, check.items)
        if not wrong and said != check.answer:
            wrong = f"the answer is {check.answer}, not {said}"
        reason = one_line(wrong or "every link and the answer hold")
        return Verdict("fail" if wrong else "pass", "chain", reason)
    outcome, reason = _match_number(said, check.answer)
    return Verdict(outcome, "number", one_line(reason))


def check_steps(prompt: Prompt, text: str) -> Verdict:
    """Return whether each line of the working is a true equation, and the problem's own, in order.

    The reason names the first wrong step. Abstains where the prompt brings no working to compare.
    """
    wanted = prompt.check.items
    if prompt.check.kind != "number" or not wanted:
        return Verdict("abstain", "steps", "the prompt has no working to compare")
    lines, said = _final(text)
    if said is None:
        return Verdict("fail", "steps", "no answer found")
    for i, step in enumerate(wanted):
        wrong = _wrong_step(lines[i], step) if i < len(lines) else f"{step} is missing"
        if wrong:
            return Verdict("fail", "steps", one_line(f"step {i + 1}: {wrong}"))
    if len(lines) > len(wanted):
        extra = f"step {len(wanted) + 1}: {lines[len(wanted)]} is one too many"
        return Verdict("fail", "steps", one_line(extra))
    return Verdict("pass", "steps", f"{len(wanted)} steps hold")


def check_strictly(prompt: Prompt, text: str) -> Verdict:
    """Return the verdict on one finished answer; for "number", answer and every step of the working."""
    verdict = check_text(prompt, text)
    if verdict.outcome != "pass" or prompt.check.kind != "number":
        return verdict
    steps = check_steps(prompt, text)
    return steps if steps.outcome == "fail" else verdict


def _final(text: str) -> tuple[list[str], str | None]:
    """Return (the lines before the answer, the answer of the last line), blank lines aside.

    The answer is None unless the last line is "Answer: something".
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines or not lines[-1].startswith("Answer:"):
        return lines, None
    return lines[:-1], lines[-1].removeprefix("Answer:").strip() or None


def _wrong_step(line: str, wanted: str) -> str:
    """Return what is wrong with one line of working, or ""."""
    read = _EQUATION.fullmatch(line)
    if read is None:
        return f"{line} is not an equation"
    a, b, c = int(read[1]), int(read[3]), int(read[4])
    true = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b != 0 and a == b * c}[read[2]]
    if not true:
        return f"{line} is false"
    same = line.replace(" ", "") == wanted.replace(" ", "")
    return "" if same else f"{line} is true, but the problem asks for {wanted}"


def _wrong_chain(lines: list[str], links: tuple[str, ...]) -> str:
    """Return what is wrong with the chain, first link first, or ""."""
    if len(lines) != 1:
        return f"{len(lines)} lines before the answer; the chain is one"
    said = [f"{a} > {b}" for a, b in pairwise(name.strip() for name in lines[0].split(">"))]
    for i, link in enumerate(said):
        if link not in links:
            return f"link {i + 1}: {link} is not true"
    missing = [link for link in links if link not in said]
    return f"the chain lacks {missing[0]}" if missing else ""


def _match_number(said: str, answer: str) -> tuple[Outcome, str]:
    """Return outcome and reason: whole numbers by themselves, other ways of writing by Math-Verify."""
    right: tuple[Outcome, str] = ("pass", f"read {said}")
    wrong: tuple[Outcome, str] = ("fail", f"read {said}, not {answer}")
    if _INTEGER.fullmatch(said) and _INTEGER.fullmatch(answer):
        return right if int(said) == int(answer) else wrong
    gold, read = _read_number(answer), _read_number(said) if len(said) <= MAX_ANSWER else []
    if not gold:
        return "abstain", f"the prompt's own answer, {answer}, is no number"
    if not read:
        return "fail", f"cannot read {said[:MAX_ANSWER]} as one number"
    return right if _math_verify().verify(gold, read, timeout_seconds=None) else wrong


@functools.lru_cache(maxsize=4096)
def _read_number(text: str) -> list[Any]:
    """Return Math-Verify's reading of one number: "1,200", "18/2", "$9", "50%", "9 pens"; [] of all else."""
    plain = _WRAPPING.sub(" ", _FRAC.sub(r"\1/\2", text.replace("\N{MINUS SIGN}", "-")))
    read = _WRITTEN.fullmatch(" ".join(plain.split()))
    if read is None or _SCALES & set((read[5] or "").lower().split()):
        return []
    sign, number, over, percent = read[1].strip("+"), read[2], read[3] or "1", 100 if read[4] else 1
    exact = f"{sign}{number}" if over == "1" and percent == 1 else f"{sign}({number})/({over}*{percent})"
    return list(_math_verify().parse(exact.replace(",", ""), parsing_timeout=None))


@functools.cache
def _math_verify() -> Any:
    """Return the module, imported at the first number that is not a plain integer: it is slow to load."""
    import math_verify

    # It warns that its own time limit is off; that one works by signals, in the main thread only.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
