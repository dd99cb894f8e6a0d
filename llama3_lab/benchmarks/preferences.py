"""Open preference sets as pairs for the reward model: columns prompt, chosen, rejected, as text or as messages.

Messages are lists of {"role": …, "content": …}; the last assistant message is the answer, what stands before it the
prompt. Texts with "Human:" and "Assistant:" turns are read in the same way. Nobody knows an open pair's true
margin: it is nan. Rows that are no pair (a tie, an empty answer) are left out and counted, never dropped in silence.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama3_lab.benchmarks.sources import Row, Source, prompt_id, read_rows
from llama3_lab.records import STRENGTHS, Check, PreferencePair, Prompt, Strength

SKILL = "preference"
_ROLES = {"human": "user", "user": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant",
          "system": "system"}  # fmt: skip


@dataclass(frozen=True)
class PreferenceSet:
    """pairs, in order. left_out: (row as "file:line", why) for every row that is no pair."""

    pairs: tuple[PreferencePair, ...]
    left_out: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        reasons = Counter(why for _, why in self.left_out)
        words = ", ".join(f"{n} {why}" for why, n in sorted(reasons.items()))
        return f"{len(self.pairs)} pairs; {len(self.left_out)} rows left out{f' ({words})' if words else ''}"


def load_preferences(source: Source, training: bool = False, strength: Strength = "better") -> PreferenceSet:
    """Return the pairs of an open set. strength: of a pair whose row has no column "strength" of its own.

    training: the pairs may train, so that a row of the test split is refused.

    Raises:
        ValueError: naming the row, for a missing column or messages that cannot be read; or if no pair is left.
    """
    pairs, left_out = [], []
    for row in read_rows(source, training):
        found = to_pair(row, strength)
        if isinstance(found, str):
            left_out.append((row.where, found))
        else:
            pairs.append(found)
    if not pairs:
        raise ValueError(f"{source.place}: none of {len(left_out)} rows is a pair; the first: {left_out[0][1]}")
    return PreferenceSet(tuple(pairs), tuple(left_out))


def to_pair(row: Row, strength: Strength = "better") -> PreferencePair | str:
    """Return a row as a pair, or why it is none.

    Raises:
        ValueError: naming the row.
    """
    asked, chosen = _split(row, "chosen")
    asked_again, rejected = _split(row, "rejected")
    prompt = row.columns.get("prompt")
    if prompt:
        asked = _conversation(row, "prompt", prompt)
    elif asked != asked_again:
        return "the two answers have different prompts"
    if not asked.strip():
        return "no prompt"
    if not chosen.strip() or not rejected.strip():
        return "an empty answer"
    if chosen == rejected:
        return "both answers the same"
    said = row.columns.get("strength")
    known = next((s for s in STRENGTHS if s == said), None)
    if said is not None and known is None:
        raise ValueError(f"{row.where}: column 'strength' is {said!r}; use {', '.join(STRENGTHS)}")
    made = Prompt(prompt_id(SKILL, row), SKILL, asked, row.split, 1, Check("rubric", ""))
    return PreferencePair(made, chosen, rejected, known or strength, "annotator", math.nan)


def _split(row: Row, name: str) -> tuple[str, str]:
    """Return (what was asked, the answer) of a column of text or messages; a text has no prompt of its own."""
    value = _read(row.get(name))
    if isinstance(value, str):
        asked, mark, answer = value.rpartition("\n\nAssistant:")
        first = asked.removeprefix("\n\nHuman:")
        return (first.strip(), answer.strip()) if mark and first != asked else ("", value)
    turns = _turns(row, name, value)
    if turns[-1][0] != "assistant":
        raise ValueError(f"{row.where}: column {name!r} does not end with a message of the assistant")
    return _join(turns[:-1]), turns[-1][1]


def _conversation(row: Row, name: str, value: Any) -> str:
    value = _read(value)
    return value if isinstance(value, str) else _join(_turns(row, name, value))


def _read(value: Any) -> Any:
    """Return a column's value; messages in a CSV file are written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _turns(row: Row, name: str, value: Any) -> list[tuple[str, str]]:
    """Return messages as (role, content), whatever their fields are called ("role" or "from", …)."""
    turns = []
    for message in value if isinstance(value, list) else ():
        get = message.get if isinstance(message, dict) else {}.get
        role, content = _ROLES.get(str(get("role", get("from"))).lower()), get("content", get("value"))
        if role is None or not isinstance(content, str):
            break
        turns.append((role, content))
    if not turns or len(turns) != len(value):
        raise ValueError(f"{row.where}: column {name!r} is neither text nor messages with role and content")
    return turns


def _join(turns: Sequence[tuple[str, str]]) -> str:
    """Return the turns before an answer as one request: a single turn as it is, several under their roles."""
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in turns)
