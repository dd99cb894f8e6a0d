"""encode(), decode(): plain data as JSON between the judge and the program, which do not trust each other.

Whatever a program answers arrives as plain data: no object of its own, no `__eq__` of its own. What cannot be
plain data stays where it is and travels as a number, an `Opaque`, that can be handed back.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE = 16 << 20  # bytes
MAX_ITEMS = 100_000  # of an iterator that is read to its end
Keep = Callable[[object], int]
Find = Callable[[int], object]
_GROUPS: tuple[tuple[str, Any, Any], ...] = (
    ("tuple", tuple, tuple), ("set", set, set), ("frozenset", frozenset, frozenset),
)  # fmt: skip


class TransportError(Exception):
    """A message that cannot be read, or a value that cannot be sent."""


@dataclass(frozen=True)
class Opaque:
    """An object that stayed in the program. true: its truth there."""

    number: int
    true: bool

    def __bool__(self) -> bool:
        return self.true


def encode(value: Any, keep: Keep) -> Any:
    """Return a value as JSON's types; `keep` numbers an object that is no plain data.

    Subclasses of the plain types become the plain types; iterators become a list of what is left in them.

    Raises:
        TransportError: by `keep`, where nothing can be kept.
    """
    if value is None or isinstance(value, bool | str):
        return str(value) if type(value) not in (bool, type(None)) else value
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [encode(v, keep) for v in value]
    for name, kind, _ in _GROUPS:
        if isinstance(value, kind):
            return {name: [encode(v, keep) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    return _encode_rest(value, keep)


def _encode_rest(value: Any, keep: Keep) -> Any:
    if isinstance(value, Opaque):
        return {"opaque": [value.number, value.true]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Iterator):
        return {"iterator": [encode(v, keep) for v in itertools.islice(value, MAX_ITEMS)]}
    if type(value).__module__ in ("collections", "array") and isinstance(value, Iterable):
        return [encode(v, keep) for v in value]
    return {"opaque": [keep(value), bool(value)]}


def decode(data: Any, find: Find | None = None) -> Any:
    """Return the value that `encode` wrote. find: gives back a kept object; without it, an `Opaque` stays one.

    Raises:
        TransportError: if the data are none of `encode`'s.
    """
    try:
        return _decode(data, find)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise TransportError(f"no value: {type(error).__name__}") from error


def _decode(data: Any, find: Find | None) -> Any:
    if data is None or isinstance(data, bool | str):
        return data
    if isinstance(data, list):
        return [_decode(v, find) for v in data]
    ((name, inner),) = data.items()
    if name == "dict":
        return {_decode(k, find): _decode(v, find) for k, v in inner}
    if name in ("tuple", "set", "frozenset"):
        make = next(make for group, _, make in _GROUPS if group == name)
        return make(_decode(v, find) for v in inner)
    if name == "opaque":
        number, true = int(inner[0]), bool(inner[1])
        return find(number) if find else Opaque(number, true)
    if name == "complex":
        return complex(*map(float.fromhex, inner))
    plain: dict[str, Callable[[Any], Any]] = {
        "int": lambda x: int(x, 16), "float": float.fromhex, "bytes": bytes.fromhex,
        "range": lambda x: range(*x), "iterator": lambda x: iter([_decode(v, find) for v in x]),
    }  # fmt: skip
    return plain[name](inner)


def send(handle: int, message: Any) -> None:
    """Write one message to a pipe.

    Raises:
        TransportError: if it is too long. OSError: if nobody reads.
    """
    body = json.dumps(message).encode()
    if len(body) > MAX_MESSAGE:
        raise TransportError("too much data")
    body = len(body).to_bytes(4, "big") + body
    while body:
        body = body[os.write(handle, body) :]


def receive(handle: int, until: float | None = None) -> Any:
    """Return the next message of a pipe. until: the latest moment, by time.monotonic().

    Raises:
        TimeoutError: past that moment. EOFError: if the other side is gone. TransportError: if it is no message.
    """
    size = int.from_bytes(_read(handle, 4, until), "big")
    if size > MAX_MESSAGE:
        raise TransportError("too much data")
    body = _read(handle, size, until)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise TransportError("no message") from error


def _read(handle: int, size: int, until: float | None) -> bytes:
    parts, left = [], size
    while left:
        if until is not None:
            rest = until - time.monotonic()
            if rest <= 0 or not select.select([handle], [], [], rest)[0]:
                raise TimeoutError
        part = os.read(handle, min(left, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
