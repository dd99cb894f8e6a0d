"""Every figure of the paper that the course uses, each with its place: data/paper/facts.yaml as records.

No figure of the paper is typed anywhere else: `fact("dpo.beta").value` reads it. Keys go from the subject to
the detail, e.g. "architecture.8b.layers", "table4.row1.mfu", "gpu_hours.405b". The file's head says how it is written.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from llama3_lab import places

Checked = Literal["text", "card", "computed", "second hand"]
Value = float | int | str | tuple[float, ...] | tuple[str, ...]
FILE = Path("data") / "paper" / "facts.yaml"


@dataclass(frozen=True)
class Fact:
    """One figure.

    value: as printed, in `unit` ("" for a bare count or a text); a list becomes a tuple. where: section, table,
    figure or model card. checked: "text" (read in the paper), "card" (read on an official card, licence or code
    file), "computed" (arithmetic on such figures) or "second hand" (read in somebody else's page only).
    """

    key: str
    value: Any  # a Value; Any, so that arithmetic on it needs no cast
    unit: str
    where: str
    checked: Checked
    note: str = ""

    def __str__(self) -> str:
        return f"{plain(self.value)} {self.unit}".strip()


def plain(value: Value) -> str:
    """Return a figure as one would write it: 1.5T, 2.25M, 12,345, 3e25, 0.1; a list with commas."""
    if isinstance(value, tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, str):
        return value
    size = abs(value)
    if 1e6 <= size < 1e15:
        step, letter = next((s, w) for s, w in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if size >= s)
        return f"{value / step:.4g}{letter}"
    if size >= 10_000 and size == int(size) and size < 1e6:
        return f"{value:,.0f}"
    return re.sub(r"e([+-])0*", lambda m: "e" + m[1].strip("+"), f"{value:.6g}")


def fact(key: str) -> Fact:
    """Return the fact of that key.

    Raises:
        ValueError: if there is none; the message names the nearest keys.
    """
    table = facts()
    if key in table:
        return table[key]
    near = difflib.get_close_matches(key, table, n=3, cutoff=0.5)
    near = near or [k for k in table if k.startswith(key.split(".")[0] + ".")][:3]
    hint = f"did you mean {', '.join(near)}?" if near else f"{FILE.as_posix()} lists them"
    raise ValueError(f"no fact {key!r} of the paper; {hint}")


def number(key: str) -> float:
    """Return a fact's value as a number; ValueError where there is no such fact, or it is none."""
    value = fact(key).value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the fact {key} is {plain(value)!r}, not one number")
    return float(value)


def numbers(key: str) -> tuple[float, ...]:
    """Return a fact's values as numbers; ValueError where there is no such fact, or it is no list of numbers."""
    value = fact(key).value
    if not isinstance(value, tuple) or any(isinstance(v, str) for v in value):
        raise ValueError(f"the fact {key} is {plain(value)!r}, not a list of numbers")
    return tuple(float(v) for v in value)


@cache
def facts() -> Mapping[str, Fact]:
    """Return all facts by key, in the file's order.

    Raises:
        ValueError: if the file is missing or damaged, or a key stands in it twice.
    """
    found: dict[str, Fact] = {}
    for entry in _entries(read_yaml(FILE)):
        if entry.key in found:
            raise ValueError(f"{FILE.as_posix()}: {entry.key} stands there twice; keep one")
        found[entry.key] = entry
    return MappingProxyType(found)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file of the project holds. path: relative to the project's folder.

    Raises:
        ValueError: if the file is not there or is not YAML.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C, where PyYAML has it, is ten times as fast
    try:
        return yaml.load((places.project() / path).read_text(encoding="utf-8"), Loader=loader)
    except FileNotFoundError:
        raise ValueError(f"{path.as_posix()} is missing; run from the project's folder, or restore the file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path.as_posix()} is damaged: {' '.join(str(error).split())}") from None


def _entries(sections: Any) -> Iterator[Fact]:
    for section in sections:
        for key, written in section["facts"].items():
            given = written if isinstance(written, dict) else {"value": written}
            both = {"unit": section.get("unit", ""), "where": section["where"], "checked": section["checked"], **given}
            if both["checked"] not in get_args(Checked):
                raise ValueError(f"{FILE.as_posix()}: {key}: checked is {both['checked']!r}; "
                                 f"use one of {', '.join(get_args(Checked))}")  # fmt: skip
            value = tuple(both.pop("value")) if isinstance(given["value"], list) else both.pop("value")
            yield Fact(str(key), value, **both)
