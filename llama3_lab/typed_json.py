"""to_json(), from_json(), and lines of JSON: frozen records as text, and back with every type checked.

The field names are the JSON's names; tuples become lists. Pure functions: nothing here touches a disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import numbers
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, TypeVar

R = TypeVar("R")
Reader = Callable[[Any], Any]
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no word for these


def to_json(record: Any) -> Any:
    """Return a record as dicts, lists and scalars; tuples become lists, nan and inf become strings.

    Raises:
        ValueError: for anything that is not a frozen dataclass, tuple, list, string, number or None.
    """
    if record is None or isinstance(record, str | bool):
        return record
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, tuple | list):
        return [to_json(item) for item in record]
    if isinstance(record, numbers.Integral):
        return int(record)
    if isinstance(record, numbers.Real):
        return float(record) if math.isfinite(record) else str(float(record))
    raise ValueError(f"cannot write a {type(record).__name__} as JSON; use strings, numbers, tuples, records")


def from_json(cls: type[R], data: Any) -> R:
    """Return the record of type `cls` that `to_json` turned into `data`.

    Raises:
        ValueError: naming the field that is unknown, missing or of another type, e.g.
            "check.kind: must be one of number, tests, chain, rubric, not 'colour'".
    """
    kind: Any = cls
    return typing.cast(R, _reader(kind)(data))


class _Misfit(ValueError):
    """A value that does not fit; collects the path to the field on its way up."""

    def __init__(self, problem: str, path: tuple[str, ...] = ()) -> None:
        where = ".".join(path).replace(".[", "[")
        super().__init__(f"{where}: {problem}" if path else problem)
        self.problem, self.path = problem, path


@cache
def _reader(kind: Any) -> Reader:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record_reader(kind)
    if origin is Literal:
        return _literal_reader(args)
    if origin is tuple:
        return _tuple_reader(args)
    if origin in (typing.Union, types.UnionType) and type(None) in args and len(args) == 2:
        inner = _reader(next(a for a in args if a is not type(None)))
        return lambda data: None if data is None else inner(data)
    if kind in (str, int, float, bool):
        return _scalar_reader(kind)
    raise TypeError(f"records may not hold {kind}")


def _record_reader(cls: Any) -> Reader:
    readers: dict[str, Reader] | None = None  # looked up on first use: a record may hold its own kind

    def read(data: Any) -> Any:
        nonlocal readers
        if readers is None:
            hints = typing.get_type_hints(cls)
            readers = {f.name: _reader(hints[f.name]) for f in dataclasses.fields(cls)}
        if not isinstance(data, dict):
            raise _Misfit(f"must be an object with the fields of {cls.__name__}, not {_brief(data)}")
        if unknown := [name for name in data if name not in readers]:
            raise _Misfit(f"{cls.__name__} has no field {unknown[0]!r}; it has: {', '.join(readers)}")
        later = {f.name for f in dataclasses.fields(cls) if f.metadata.get("added")}  # they have defaults
        if missing := [name for name in readers if name not in data and name not in later]:
            raise _Misfit(f"field {missing[0]!r} of {cls.__name__} is missing")
        values = {}
        for name, value in data.items():
            try:
                values[name] = readers[name](value)
            except _Misfit as misfit:
                raise _Misfit(misfit.problem, (name, *misfit.path)) from None
        return cls(**values)

    return read


def _tuple_reader(args: tuple[Any, ...]) -> Reader:
    open_ended = len(args) == 2 and args[1] is Ellipsis
    fixed = [] if open_ended else [_reader(a) for a in args]
    each = _reader(args[0]) if open_ended else None

    def read(data: Any) -> Any:
        if not isinstance(data, list | tuple):
            raise _Misfit(f"must be a list, not {_brief(data)}")
        if not each and len(data) != len(fixed):
            raise _Misfit(f"must be a list of {len(fixed)}, not of {len(data)}")
        out = []
        for i, (reader, value) in enumerate(zip([each] * len(data) if each else fixed, data, strict=True)):
            try:
                out.append(reader(value))
            except _Misfit as misfit:
                raise _Misfit(misfit.problem, (f"[{i}]", *misfit.path)) from None
        return tuple(out)

    return read


def _literal_reader(choices: tuple[Any, ...]) -> Reader:
    def read(data: Any) -> Any:
        if not isinstance(data, str) or data not in choices:
            raise _Misfit(f"must be one of {', '.join(map(str, choices))}, not {_brief(data)}")
        return data

    return read


def _scalar_reader(kind: type) -> Reader:
    def read(data: Any) -> Any:
        if kind is float:
            if isinstance(data, str) and data in NOT_FINITE:
                return NOT_FINITE[data]
            if isinstance(data, int | float) and not isinstance(data, bool):
                return float(data)
        elif type(data) is kind:
            return data
        raise _Misfit(f"must be a {kind.__name__}, not {_brief(data)}")

    return read


def _brief(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "…"


def digest_records(records: Sequence[Any]) -> str:
    """Return the sha256 (hex) of the bytes that `write_records` would write."""
    return hashlib.sha256(to_lines(records)).hexdigest()


def digest_settings(settings: Any) -> str:
    """Return the sha256 (hex) of a part of a profile, or of the whole; settings added later count once they are set."""
    return hashlib.sha256(_dump(settings_json(settings))).hexdigest()


def settings_json(settings: Any) -> Any:
    """Return settings as `to_json` does, without those that came later and stand at their default (profiles._added)."""
    if not dataclasses.is_dataclass(settings):
        return to_json(settings)
    return {
        f.name: settings_json(getattr(settings, f.name)) for f in dataclasses.fields(settings)
        if not (f.metadata.get("added") and getattr(settings, f.name) == f.default)
    }  # fmt: skip


def parse_line(cls: type[R], line: bytes, where: str) -> R:
    """Return the record of one line; `where` ("prompts.jsonl:7") opens every error."""
    name = cls.__name__
    if not line.strip():
        raise ValueError(f"{where}: the line is empty; write one {name} record a line, or delete it")
    try:
        data = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8 text; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        at = isinstance(error, json.JSONDecodeError) and f"{error.msg}, character {error.colno}"
        raise ValueError(f"{where}: not JSON ({at or error}); is it cut off? Write one {name} a line") from None
    try:
        return from_json(cls, data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; correct this line") from None


def _dump(data: Any) -> bytes:
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only the escaped form can be written
        return json.dumps(data, allow_nan=False).encode()


def to_lines(records: Sequence[Any]) -> bytes:
    """Return records as JSONL, UTF-8, one a line."""
    return b"".join(_dump(to_json(r)) + b"\n" for r in records)
