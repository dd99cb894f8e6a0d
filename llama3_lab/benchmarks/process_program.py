"""run_program(): the stranger's program in a process of its own; it answers calls and knows no test.

It sees the program's text and the arguments of each call, nothing else: expected values, the judge's pipe to
the outside and the judge's memory are in another process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

from llama3_lab.benchmarks.process_isolation import die_with_parent, guard, limit, own_user
from llama3_lab.benchmarks.process_values import TransportError, decode, encode, receive, send

MAX_KEPT = 10_000
_MAX_WORDS = 200


def run_program(pipes: tuple[int, int], job: dict[str, Any], folder: str) -> NoReturn:
    """Wall this process off, run `job["program"]`, then answer `call` and `get` messages until the pipe closes.

    pipes: (read, write), the only handles that stay open. Never returns.
    """
    try:
        _only(pipes)
        own = job["namespaces"] and own_user()
        die_with_parent()  # after a change of rights, which would undo it
        took = limit(job["seconds"], job["memory"], job["file_bytes"], new_processes=False)
        os.environ.clear()
        sys.argv, sys.path = ["program"], [p for p in sys.path if p.startswith((sys.base_prefix, sys.base_exec_prefix))]
        sys.set_int_max_str_digits(0)
        send(pipes[1], {"user": own, "limits": took})
        guard(folder)
        for name in [n for n in sys.modules if n.startswith("llama3_lab")]:
            del sys.modules[name]
        _serve(pipes, job)
    finally:
        os._exit(0)


def _only(pipes: tuple[int, int]) -> None:
    """Close every handle but the pipes; standard input, output and error lead nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    low, high = sorted(pipes)
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, 4096)


def _serve(pipes: tuple[int, int], job: dict[str, Any]) -> None:
    names: dict[str, Any] = {"__name__": "program", "__builtins__": __builtins__}
    kept: list[object] = []

    def keep(value: object) -> int:
        if len(kept) >= MAX_KEPT:
            raise TransportError("too many objects")
        kept.append(value)
        return len(kept) - 1

    def run() -> Any:
        for text in job["before"]:
            with contextlib.suppress(Exception):  # the program may not need what the tests import
                exec(compile(text, "<imports>", "exec"), names)
        exec(compile(job["program"], "<program>", "exec"), names)

    _answer(pipes[1], keep, run)
    while True:
        message = receive(pipes[0])
        if "get" in message:
            _answer(pipes[1], keep, lambda name=message["get"]: _named(names, name))
        else:
            _answer(pipes[1], keep, lambda m=message: _called(names, kept, m))


def _named(names: dict[str, Any], name: str) -> Any:
    if name not in names:
        raise NameError(f"name {name!r} is not defined")
    value = names[name]
    if isinstance(value, type(sys)):
        return _Module(str(value.__name__))
    return _Callable() if callable(value) else value


class _Callable:
    """Stands for a callable, which is not sent."""


class _Module:
    """Stands for a module of Python's library: the judge has its own."""

    def __init__(self, name: str) -> None:
        self.name = name


def _called(names: dict[str, Any], kept: list[object], message: dict[str, Any]) -> Any:
    given = decode(message["given"], lambda number: kept[number])
    named = decode(message["named"], lambda number: kept[number])
    return names[message["call"]](*given, **named)


def _answer(handle: int, keep: Any, work: Any) -> None:
    """Send what `work` returns, or the exception that it raises; never let one out."""
    try:
        value = work()
        if isinstance(value, _Module):
            send(handle, {"module": value.name})
        else:
            send(handle, {"callable": True} if isinstance(value, _Callable) else {"value": encode(value, keep)})
    except BaseException as error:
        _send_error(handle, error)


def _send_error(handle: int, error: BaseException) -> None:
    try:
        words = str(error)[:_MAX_WORDS]
    except BaseException:
        words = ""
    plain = next((k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins"), "Exception")
    send(handle, {"error": plain, "name": str(type(error).__name__)[:_MAX_WORDS], "words": words})
