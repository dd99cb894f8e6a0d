"""read_final(): which number a worked answer gives in the end, in the styles that models write.

"#### 42", "A: 42", "The answer is $1,234.", "\\boxed{42}", "**Answer:** 42", or a last sentence with a number. Two
numbers side by side ("9 or 10", "9-10", "between 9 and 10"), a bound ("at least 9") or a denial ("not 9") are a
hedge, which is no answer.

What it is not: understanding. A sentence with several numbers gives one of them, by position, or none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from llama3_lab.benchmarks.equations import without_annotations
from llama3_lab.benchmarks.numerals import Numeral, find_numbers, plain

Kind = Literal["one", "hedge", "several", "none"]
MAX_TEXT = 20_000  # characters of a solution that are read, the last ones
MAX_SPAN = 300  # characters of a final answer that are read
MAX_MARKS = 50  # of each style, the last ones
_TOKENS = re.compile(r"<\|[a-z_]{1,30}\|>|</?s>")
_CLOSING = re.compile(r"^\W*(?:let me know|i hope|hope this|feel free|if you|please|thank)\b", re.I)
_NEW_QUESTION = re.compile(r"\n\s*(?:question|q|problem|human|user)\s*[0-9]*\s*:", re.I)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_HEADING = re.compile(
    r"(?:\*\*)?(?:step|part|case|option|[0-9]+[.)])\s*(?:[0-9]+\s*)?[:.)]?\s+[A-Za-z*]|[^0-9]{40}", re.I
)
_PHRASE = re.compile(
    r"\b(?:answer|ans)\b(?:[ \t]+to[ \t][^.:=\n]{0,80}?|[ \t]+(?:here|then|we[ \t]get))?[ \t]*[*_]*[ \t]*"
    r"(?:\b(?:is|was|would[ \t]be|will[ \t]be|should[ \t]be|must[ \t]be|comes[ \t]to|equals)\b[ \t]*:?|:)[*_ \t]*"
    r"(?:\n+[ \t]*(?=[^\n]*[0-9]))?(?=([^\n]{0,300}))",
    re.I,
)
_LINE = re.compile(
    r"^[ \t>*_#]*(?:so,? |thus,? |therefore,? )?(?:the |my )?(?:final |correct )?(?:answer|ans)[*_ \t]*[:=\n]"
    r"[*_ \t]*\n*([^\n]+)|^[ \t>*_#]*A[*_ \t]*:[*_ \t]*([^\n]+)",
    re.I | re.M,
)
_TAKEN_BACK = re.compile(r"\b(?:wait|incorrect|wrong|mistake|mistaken|scratch that|let me re\w*|recheck)\b", re.I)
_WRAP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|boxed|fbox|operatorname)\s*\{([^{}]*)\}")
_MARKS = re.compile(r"\\[()\[\]]|\\(?:left|right|quad|,|;|:| )|[*`{}]|(?<=\w)\$(?!\d)|\$(?=\s|$|[.,;])|\$\$")
_DENIED = re.compile(r"≠|\\neq?\b|\b(?:not|isn't|isn’t|never|cannot|can't|neither)\b", re.I)
_BOUND = re.compile(
    r"[<>≤≥]|\\[gl]eq?\b|\b(?:at least|at most|more than|less than|fewer than|greater than|no more than|up to|between|"
    r"either|somewhere|minimum of|maximum of)\b",
    re.I,
)  # fmt: skip
_SIDE_BY_SIDE = re.compile(r"\b(?:or|and|to|nor|through|versus|vs|maybe|perhaps)\b|^[\s,;&/~–—-]+[$€£]?$", re.I)
_SUM = re.compile(r"^\s*[$€£]?\s*(?:[-+*/×÷^x]|\\times|\\div|\\cdot|:)\s*[$€£]?\s*$")
_REASON = re.compile(
    r"[,;]?\s(?:(?:and )?not|rather than|instead of|because|since|which|where|whereas|so that|given)\b|"
    r"[.!?]\s+(?=[A-Z])|;",
    re.I,
)
_DOLLARS_AND_CENTS = re.compile(r"\$?([0-9,]+) dollars?,? and ([0-9]{1,2}) cents?", re.I)


@dataclass(frozen=True)
class Reading:
    """What was read. one: `numbers[0]` is the answer; several: any of them may be meant, the first most likely;
    hedge, none: no answer. text: the words it was read from."""

    kind: Kind
    numbers: tuple[Numeral, ...]
    text: str


@dataclass(frozen=True)
class _Mark:
    start: int
    end: int
    reading: Reading
    hashes: bool


def read_final(text: str) -> Reading:
    """Return the final answer of a worked solution; no text raises."""
    text = plain(without_annotations(_TOKENS.sub(" ", text[-MAX_TEXT:]).replace("\r", "")))
    marks = _marks(text)
    if marks and (later := _NEW_QUESTION.search(text, marks[0].end)):
        text = text[: later.start()]
        marks = [m for m in marks if m.start < len(text)]
    if not marks:
        return _unmarked(text)
    hashes = [m for m in marks if m.hashes]
    last = marks[-1]
    if hashes and any(_differ(hashes[0].reading, m.reading) for m in marks if m.start >= hashes[0].start):
        return Reading("hedge", last.reading.numbers, last.reading.text)
    if _TAKEN_BACK.search(text, last.end):
        return Reading("none", (), "an answer that is taken back")
    return last.reading


def read_span(span: str, marked: bool = True) -> Reading:
    """Return the number that the words of a final answer give. marked: they follow a mark such as "Answer:";
    else they are a whole sentence, whose last number counts."""
    words = _clean(span[:MAX_SPAN])
    if marked:
        words = _first_clause(words)
    if "=" in words or "≈" in words:
        last = re.split("[=≈]", words)[-1]
        words = last if find_numbers(last) else words
    numbers = find_numbers(words)
    if not numbers:
        return Reading("none", (), words)
    if _DENIED.search(words) or _BOUND.search(words):
        return Reading("hedge" if marked else "several", tuple(numbers), words)
    if len({n.values for n in numbers}) == 1:
        return Reading("one", (numbers[0],), words)
    between = [words[a.end : b.start] for a, b in zip(numbers, numbers[1:], strict=False)]
    if marked:
        if _SIDE_BY_SIDE.search(between[0]):
            return Reading("hedge", tuple(numbers), words)
        return Reading("none" if any(_SUM.search(gap) for gap in between) else "one", tuple(numbers), words)
    if re.search(r"\b(?:or|maybe|perhaps|possibly)\b", between[-1], re.I) or _SUM.search(between[-1]):
        return Reading("hedge", tuple(numbers), words)
    return Reading("several", tuple(reversed(numbers)), words)


def _marks(text: str) -> list[_Mark]:
    found = []
    for match in list(_HASHES.finditer(text))[-MAX_MARKS:]:
        rest = match[1].strip()
        if rest and not _HEADING.match(rest):
            found.append(_Mark(match.start(), match.end(), read_span(rest), True))
    for start, end, inner in _boxes(text):
        found.append(_Mark(start, end, read_span(inner), False))
    for pattern in (_PHRASE, _LINE):
        for match in list(pattern.finditer(text))[-MAX_MARKS:]:
            group = match.lastindex or 1
            span = match[group].split("####")[0]
            end = match.start(group) + len(_first_clause(span))
            found.append(_Mark(match.start(group), end, read_span(span), False))
    return sorted((m for m in found if m.reading.numbers), key=lambda m: m.end)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, content) of every \\boxed{…}, braces balanced."""
    out = []
    for match in list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))[-MAX_MARKS:]:
        depth, i = 1, match.end()
        while i < min(len(text), match.end() + MAX_SPAN) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if not depth:
            out.append((match.start(), i, text[match.end() : i - 1]))
    return out


def _unmarked(text: str) -> Reading:
    """Read an answer without any mark: the last of its two last lines that holds a number, by its last sentence."""
    lines = [line for line in text.split("\n") if line.strip() and not _CLOSING.match(line)][-2:]
    for line in reversed(lines):
        bold = [n for part in re.findall(r"\*\*([^*]+)\*\*", line) for n in find_numbers(part)]
        if bold and len({n.value for n in bold}) == 1:
            return Reading("one", (bold[0],), line.strip())
        for sentence in reversed(re.split(r"(?<=[.!?])\s+(?=[A-Z])", line.strip()[-4 * MAX_SPAN :])):
            reading = read_span(sentence[-MAX_SPAN:], marked=False)
            if reading.kind != "none":
                return reading
    return Reading("none", (), lines[-1].strip() if lines else "")


def _clean(span: str) -> str:
    """Return words without LaTeX's and Markdown's wrapping; money in words becomes one number."""
    for _ in range(3):
        span = _WRAP.sub(r" \1 ", span)
    span = _MARKS.sub(" ", span.replace("\\$", "$"))
    span = _DOLLARS_AND_CENTS.sub(lambda m: f"${m[1]}.{int(m[2]):02d}", span)
    return " ".join(span.split())


def _first_clause(words: str) -> str:
    """Return the words up to a reason, a new sentence or a bracket, as long as a number stands before it."""
    for match in re.finditer(rf"{_REASON.pattern}|\s\(", words):
        if find_numbers(words[: match.start()]):
            return words[: match.start()]
    return words


def _differ(a: Reading, b: Reading) -> bool:
    def values(reading: Reading) -> set[Fraction]:
        return {v for n in reading.numbers[:1] for v in n.values}

    return not values(a) & values(b)
