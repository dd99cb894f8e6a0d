"""read_rows(): rows of a data set, from a local JSONL, JSON, CSV or Parquet file, or from the hub.

A row knows its split: the column "split" where there is one, else that of the source. What belongs to a test
split never trains: it is refused by name, whoever asks for it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from llama3_lab.disk import read_bytes
from llama3_lab.records import Prompt, Split

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_TEST_NAME = re.compile(r"(?:^|[^a-z])(?:test|eval|evaluation)(?:$|[^a-z])")
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_MAX_REASON = 160


@dataclass(frozen=True)
class Source:
    """Where rows come from, and which split they are.

    place: a file (.jsonl, .json, .csv, .parquet), or a data set of the hub, "owner/name". config, revision: of the
    hub's data set. hub_split: the split's name there, where it is not `split`'s ("train_prefs"). limit: rows to
    take from the start; 0 is all.
    """

    place: str
    split: Split
    config: str | None = None
    revision: str | None = None
    hub_split: str | None = None
    limit: int = 0

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"{self.place}: split is {self.split!r}; use train, validation or test")
        if self.limit < 0:
            raise ValueError(f"{self.place}: limit is {self.limit}; use 0 for all rows, or a number above")

    @property
    def is_local(self) -> bool:
        """Whether `place` is a file of this machine: by its ending, or because it is there."""
        return self.place.lower().endswith(SUFFIXES) or Path(self.place).exists()


@dataclass(frozen=True)
class Row:
    """One row. number: from 1, in its source. where: for messages. split: train, validation or test."""

    number: int
    where: str
    split: Split
    columns: Mapping[str, Any] = field(repr=False)

    def get(self, name: str) -> Any:
        """Return a column.

        Raises:
            ValueError: naming the row, and the columns that there are.
        """
        if name not in self.columns or self.columns[name] is None:
            raise ValueError(f"{self.where}: no column {name!r}; there are: {', '.join(map(str, self.columns))}")
        return self.columns[name]

    def text(self, name: str) -> str:
        """Return a column that must be a text with something in it; raises as `get` does."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.where}: column {name!r} is {_shown(value)}; a text is needed")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a column that must be a list of texts; in a CSV file it is written as JSON. Raises as `get` does."""
        value = self.get(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, list | tuple) or any(not isinstance(v, str) for v in value):
            raise ValueError(f"{self.where}: column {name!r} is {_shown(self.get(name))}; a list of texts is needed")
        return tuple(value)


def read_rows(source: Source, training: bool = False, splits: Mapping[int, Split] | None = None) -> list[Row]:
    """Return the rows of a source, in order.

    training: the rows may train. splits: the published split by row number, for files that do not say.

    Raises:
        ValueError: in one line, for a file or data set that cannot be read or holds nothing, and, where the rows may
            train, for the first that belongs to a test split.
    """
    if training:
        _refuse_source(source)
    columns = _local(Path(source.place)) if source.is_local else _hub(source)
    columns = columns[: source.limit] if source.limit else columns
    if not columns:
        raise ValueError(f"{source.place}: no rows in it")
    rows = []
    for number, found in enumerate(columns, 1):
        where = f"{source.place}:{number}"
        said = (splits or {}).get(number, source.split)
        rows.append(Row(number, where, _split(found.get("split"), said, where), found))
    if training:
        refuse_test(rows)
    return rows


def refuse_test(rows: Sequence[Row] | Sequence[Prompt]) -> None:
    """Raise where a row or prompt that is to train belongs to a test split.

    Raises:
        ValueError: naming the first, and how many there are.
    """
    bad = [r for r in rows if r.split == "test"]
    if bad:
        name = bad[0].where if isinstance(bad[0], Row) else f"prompt {bad[0].id}"
        raise ValueError(f"{name}: of the test split, which never trains; {len(bad)} such rows; choose another split")


def prompt_id(skill: str, row: Row, name: str = "") -> str:
    """Return a prompt's id: skill, split, and the row's own name or number."""
    return f"{skill}-{row.split}-{name or f'{row.number:05d}'}"


def _refuse_source(source: Source) -> None:
    name = Path(source.place).stem.lower() if source.is_local else (source.hub_split or "").lower()
    if source.split == "test" or _TEST_NAME.search(name):
        what = "the test split" if source.split == "test" else f"named {name!r}"
        raise ValueError(f"{source.place}: {what}, and a test split never trains; choose the train split")


def _split(said: Any, default: Split, where: str) -> Split:
    """Return a row's split: its own word ("train_prefs", "dev"), else the source's. Test wins over anything."""
    if said in (None, ""):
        return default
    word = re.split(r"[^a-z]", str(said).lower())[0]
    word = {"dev": "validation", "val": "validation", "valid": "validation", "prompt": "train"}.get(word, word)
    if word not in get_args(Split):
        raise ValueError(f"{where}: column 'split' is {_shown(said)}; use train, validation or test")
    found: Split = next(s for s in get_args(Split) if s == word)
    return "test" if "test" in (found, default) else found


def _local(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: cannot tell what is in it by its name; use {', '.join(SUFFIXES)}")
    data = read_bytes(path)
    if kind == ".parquet":
        return _parquet(path, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    if kind == ".csv":
        return _csv(path, text)
    return _jsonl(path, text) if kind == ".jsonl" else _json(path, text)


def _jsonl(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.rstrip().split("\n") if text.strip() else (), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: not a JSON object: {_shown(line)}; write one a line")
        rows.append(row)
    return rows


def _json(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON: {_short(error)}; one object a line is a .jsonl file") from None
    if isinstance(rows, dict):
        lists = [v for v in rows.values() if isinstance(v, list)]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list) or any(not isinstance(r, dict) for r in rows):
        raise ValueError(f"{path}: not a list of JSON objects; write [{{…}}, {{…}}]")
    return rows


def _csv(path: Path, text: str) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 26)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: no CSV: {_short(error)}; quote texts that hold commas") from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"{path}:{number}: another number of columns than the first line; quote texts with commas")
    return [dict(row) for row in rows]


def _parquet(path: Path, data: bytes) -> list[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet as reader  # type: ignore[import-untyped]

    try:
        rows: list[dict[str, Any]] = reader.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no Parquet file: {_short(error)}; download it again") from None
    return rows


def _hub(source: Source) -> list[dict[str, Any]]:
    """Return the rows of a data set of the hub, or of its copy in the cache.

    Raises:
        ValueError: in one line: offline, no such data set, no such split, or no leave to read it.
    """
    if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", source.place):
        raise ValueError(f"{source.place}: no such file, and no name of a data set (owner/name)")
    import datasets

    name = source.hub_split or source.split
    part = f"{name}[:{source.limit}]" if source.limit else name
    try:
        found = datasets.load_dataset(source.place, source.config, split=part, revision=source.revision)
    except Exception as error:
        raise ValueError(_why(source, name, error)) from None
    return [dict(row) for row in found]


def _why(source: Source, split: str, error: Exception) -> str:
    """Return what kept a data set from coming, and the next step, in one line."""
    local = "or name a local .jsonl, .csv or .parquet file with the same columns"
    off = [v for v in _OFFLINE if os.environ.get(v, "").lower() in ("1", "true", "yes", "on")]
    kind, words = type(error).__name__, _short(error)
    if off:
        return f"{source.place}: not on this machine, and {off[0]} forbids to fetch it; unset it, {local}"
    if "Gated" in kind or "401" in words or "403" in words:
        return f"{source.place}: needs leave; accept its terms on its page and set HF_TOKEN, {local}"
    if "Offline" in kind or "Connection" in kind or "Timeout" in kind or "reach" in words.lower():
        return f"{source.place}: the hub cannot be reached; check the network, {local}"
    if "NotFound" in kind:
        return f"{source.place}: no such data set on the hub, or it is not yours to read; check the name, {local}"
    return f"{source.place} (split {split!r}): {kind}: {words}; check name, config and split, {local}"


def _short(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= _MAX_REASON else words[: _MAX_REASON - 1] + "…"


def _shown(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else words[:59] + "…"
