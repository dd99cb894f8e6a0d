"""find_numbers(): every number written in a text, exactly, as fractions.

Reads "1,234", "$0.50", "-3", "3/4", "1 1/2", "½", "\\frac{3}{4}", "25%", "2 million", "a dozen" and, where a text
has no digits, "twenty-five". Not read: powers, roots, times of day, Roman numerals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 40
_HALVES = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {**{w: i for i, w in enumerate(_ONES)}, **{w: 10 * (i + 2) for i, w in enumerate(_TENS)}}
_DIGITS = r"(?>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    r"(?<![\w.^])"
    r"(?:(?<![\d)\]%] )(?P<sign>\A[-+] |[-+](?=[$€£.0-9])|\b(?:negative|minus) ))?[$€£]? ?(?P<late>-)?"
    rf"(?:(?P<whole>[0-9]+) (?=[0-9]+/))?(?P<number>{_DIGITS})(?:/(?P<under>{_DIGITS}))?"
    r"(?!\w*\^)(?:(?P<percent> ?%| percent\b)| ?-?(?P<scale>" + "|".join(_SCALES) + r")\b)?",
    re.I,
)
_WORD = "|".join([*_SMALL, *_SCALES])
_WORDS = re.compile(
    rf"\b(?:(?:a|an) (?=(?:{'|'.join(_SCALES)})\b))?(?:{_WORD})(?:(?:[ -]|,? and )(?:{_WORD}))*\b", re.I
)
_FRACTION = re.compile(r"\\[dt]?frac ?\{ ?(-?[0-9.,]+) ?\} ?\{ ?([0-9.,]+) ?\}")


@dataclass(frozen=True)
class Numeral:
    """A number as written at text[start:end] of the text that `plain` returns.

    values: what it may stand for, likeliest first: "50%" is 50, or a half; "3 million" 3,000,000, or 3.
    """

    values: tuple[Fraction, ...]
    start: int
    end: int

    @property
    def value(self) -> Fraction:
        """The likeliest value."""
        return self.values[0]


def plain(text: str) -> str:
    """Return a text with one sort of minus, plain fractions, and LaTeX's marks of digits and money gone."""
    for sign in "\N{MINUS SIGN}\N{NON-BREAKING HYPHEN}\N{FULLWIDTH HYPHEN-MINUS}":
        text = text.replace(sign, "-")
    text = text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ").replace("⁄", "/")
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%").replace("\\!", "")
    text = re.sub(r"(?<=[0-9])\\[,;:]? ?(?=[0-9]{3}\b)", ",", text)
    text = _FRACTION.sub(r" \1/\2 ", text)
    for sign, written in _HALVES.items():
        text = re.sub(f"(?<=[0-9]) ?{sign}", f" {written}", text).replace(sign, written)
    return text


def find_numbers(text: str) -> list[Numeral]:
    """Return the numbers of a text that `plain` returned, in order; number words only where it has no digits."""
    found = [n for m in _NUMBER.finditer(text) if (n := _numeral(m)) is not None]
    if found or re.search("[0-9]", text):
        return found
    return [Numeral((_worded(m[0]),), *m.span()) for m in _WORDS.finditer(text)]


def read_number(text: str) -> Fraction | None:
    """Return the value of a text that is one number and nothing else, else None; "50%" is 50."""
    text = plain(text).strip()
    found = find_numbers(text)
    return found[0].value if len(found) == 1 and (found[0].start, found[0].end) == (0, len(text)) else None


def write_number(value: Fraction) -> str:
    """Return a number as text: "42", "-3" or "7/2"."""
    return str(value)


def _numeral(match: re.Match[str]) -> Numeral | None:
    if len(match[0]) > MAX_DIGITS:
        return None
    number, under = _digits(match["number"]), _digits(match["under"] or "1")
    if not under:
        return None
    value = int(match["whole"] or 0) + number / under
    negative = (match["sign"] or "+").strip().lower() in ("-", "negative", "minus")
    value = -value if negative != bool(match["late"]) else value
    values = [value, value / 100] if match["percent"] else [value]
    if match["scale"]:
        values.insert(0, value * _SCALES[match["scale"].lower()])
    lead = len(match[0]) - len(match[0].lstrip())
    return Numeral(tuple(values), match.start() + lead, match.end())


def _digits(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _worded(text: str) -> Fraction:
    """Return the value of number words: "two hundred and five thousand" is 205,000."""
    total = part = 0
    for word in re.findall("[a-z]+", text.lower()):
        if word in _SMALL:
            part += _SMALL[word]
        elif word in ("hundred", "dozen"):
            part = max(1, part) * _SCALES[word]
        elif word in _SCALES:
            total, part = total + max(1, part) * _SCALES[word], 0
    return Fraction(total + part)
