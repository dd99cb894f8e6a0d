"""find_annotations(), check_equation(): the calculator's marks in a worked answer, `<<48/2=24>>24`, and their truth.

An equation is true exactly, or to the digits it shows where the left side has no exact value in so many:
"10/3=3.33" and "10/3=3" hold, "7+5=13" and "5/2=2.4" do not.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from llama3_lab.benchmarks.numerals import find_numbers, plain, read_number

Truth = Literal["true", "false", "unreadable"]
MAX_EXPRESSION = 200
MAX_POWER = 20
MAX_VALUE = Fraction(10) ** 60
_MARK = re.compile(r"<<([^<>]{1,300})>>")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
}  # fmt: skip


@dataclass(frozen=True)
class Annotation:
    """One `<<equation>>`. written: the number that stands right after it, as a text, or ""."""

    equation: str
    written: str


def find_annotations(text: str) -> list[Annotation]:
    """Return the calculator's marks of a text, in order."""
    out = []
    for mark in _MARK.finditer(text):
        after = plain(text[mark.end() : mark.end() + 40])
        first = next(iter(find_numbers(after)), None)
        out.append(Annotation(mark[1], after[: first.end] if first and first.start <= 1 else ""))
    return out


def without_annotations(text: str) -> str:
    """Return a text without the calculator's marks."""
    return _MARK.sub("", text)


def check_annotation(mark: Annotation) -> tuple[Truth, str]:
    """Return whether an annotation's equation is true and the number after it the same, and what is wrong."""
    truth, why = check_equation(mark.equation)
    if truth != "true" or not mark.written:
        return truth, why
    said = find_numbers(plain(mark.written))
    result = read_number(mark.equation.rpartition("=")[2])
    if result is None or not said:
        return truth, why
    if any(_same(result, value, 0) or _same(value, result, 0) or _rounded(result, mark.written, value)
           for value in said[0].values):  # fmt: skip
        return truth, why
    return "false", f"{mark.equation} is followed by {mark.written.strip()}"


def check_equation(text: str) -> tuple[Truth, str]:
    """Return whether "a*b=c" (or "a*b=c=d") is true, and what is wrong with it."""
    sides = [side.strip() for side in plain(text).split("=")]
    values = [evaluate(side) for side in sides]
    if len(sides) < 2 or any(v is None for v in values):
        return "unreadable", f"{text} is no arithmetic"
    for left, right, side in zip(values, values[1:], sides[1:], strict=False):
        if left is not None and right is not None and not _same(left, right, _places(side)):
            return "false", f"{text} is false"
    return "true", ""


def evaluate(expression: str) -> Fraction | None:
    """Return the exact value of +, -, *, /, powers, brackets and percentages, or None where it is anything else."""
    text = re.sub(r"[$€£]|(?<=[0-9]),(?=[0-9]{3})", "", plain(expression))
    text = re.sub(r"(?<=[0-9)])\s*[x×]\s*(?=[0-9.(])", "*", text).replace("×", "*").replace("÷", "/").replace("^", "**")
    text = re.sub(r"([0-9.]+) ?%", r"(\1/100)", text)
    text = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", text)
    if len(text) > MAX_EXPRESSION or not re.fullmatch(r"[-+*/(). 0-9]+", text):
        return None
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError, OverflowError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(repr(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand)
        return -inner if isinstance(node.op, ast.USub) else inner
    if not isinstance(node, ast.BinOp):
        raise ValueError("not arithmetic")
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Pow):
        if right.denominator != 1 or abs(right) > MAX_POWER or abs(left) > MAX_VALUE:
            raise ValueError("too large a power")
        return Fraction(left**right.numerator)
    if type(node.op) not in _OPERATORS:
        raise ValueError("not arithmetic")
    return _OPERATORS[type(node.op)](left, right)


def _places(text: str) -> int:
    """Return how many decimals a number shows."""
    return len(text.rpartition(".")[2].rstrip(")% ")) if "." in text else 0


def _same(exact: Fraction, shown: Fraction, places: int) -> bool:
    """Return whether `shown`, with so many decimals, is `exact`, or its rounding where it has no end so soon."""
    unit = Fraction(1, 10**places)
    return exact == shown or ((exact / unit).denominator != 1 and abs(exact - shown) < unit)


def _rounded(exact: Fraction, written: str, value: Fraction) -> bool:
    return _same(exact, value, _places(written.strip().rstrip("%")))
