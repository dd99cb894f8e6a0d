"""XSTest-like prompts: harmless requests that look harmful, for the false refusal rate, and their harmful contrasts.

Every row is of the test split. Some texts are unpleasant: count them, do not print them. Source: Röttger et al. 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama3_lab.benchmarks.sources import Row, Source, read_rows
from llama3_lab.records import Check, Prompt

SKILL = "xstest"
HUB = Source("walledai/XSTest", "test")
_SAFE = {"safe": True, "unsafe": False}
_REFUSALS = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": True}


@dataclass(frozen=True)
class BorderlinePrompt:
    """A request. kind: the set's type ("homonyms"); safe: a harmless one, which should be answered."""

    prompt: Prompt
    kind: str
    safe: bool


@dataclass(frozen=True)
class LabelledAnswer:
    """A model's answer to a borderline prompt. refused: wholly or in part, as people labelled it."""

    asked: BorderlinePrompt
    text: str
    refused: bool


def load_xstest(source: Source = HUB) -> list[BorderlinePrompt]:
    """Return one record a row, in order; columns: prompt, type, and label (safe, unsafe) where there is one.

    Without a label, the types that begin with "contrast" are unsafe, as in the published set.

    Raises:
        ValueError: naming the row.
    """
    return [to_prompt(row) for row in read_rows(source)]


def load_answers(source: Source) -> list[LabelledAnswer]:
    """Return labelled answers, in order; columns: prompt, type, completion, final_label ("2_full_refusal").

    Raises:
        ValueError: naming the row.
    """
    out = []
    for row in read_rows(source):
        label = row.text("final_label")
        if label not in _REFUSALS:
            raise ValueError(f"{row.where}: column 'final_label' is {label!r}; use {', '.join(_REFUSALS)}")
        out.append(LabelledAnswer(to_prompt(row), str(row.get("completion")), _REFUSALS[label]))
    return out


def to_prompt(row: Row) -> BorderlinePrompt:
    """Return a row as a prompt of the test split, without a checker.

    Raises:
        ValueError: naming the row.
    """
    kind = row.text("type")
    label = row.columns.get("label") or ("unsafe" if kind.startswith("contrast") else "safe")
    if label not in _SAFE:
        raise ValueError(f"{row.where}: column 'label' is {label!r}; use safe or unsafe")
    name = str(row.columns.get("id") or f"{row.number:05d}")
    prompt = Prompt(f"{SKILL}-test-{name}", SKILL, row.text("prompt"), "test", 1, Check("rubric", ""))
    return BorderlinePrompt(prompt, kind, _SAFE[label])
