"""judge(): the tests of a program that runs elsewhere; every name of the program is a question to it.

A test is a Python expression that must hold, or statements that must run through (`assert …`, a function
`check` and its call). They run here, with Python's own builtins, on plain data.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llama3_lab.benchmarks.process_values import Opaque, TransportError, decode, encode, receive, send

_MAX_SHOWN = 60


@dataclass(frozen=True)
class Finding:
    """outcome: "pass", "fail" or "abstain"; reason: in words."""

    outcome: str
    reason: str


class _ProgramEnded(BaseException):
    """The program is gone, late, or talks nonsense; no test can catch it."""


class _CannotSendError(BaseException):
    """A test hands over what is no plain data; no test can catch it."""


class Line:
    """The line to the program. handles: (read, write); until: by time.monotonic()."""

    def __init__(self, handles: tuple[int, int], until: float) -> None:
        self.handles, self.until = handles, until

    def wait(self) -> Any:
        """Return the program's next message.

        Raises:
            _ProgramEnded: where there is none in time.
        """
        try:
            return receive(self.handles[0], self.until)
        except TimeoutError:
            raise _ProgramEnded("time limit exceeded") from None
        except (EOFError, OSError):
            late = time.monotonic() > self.until - 0.01
            raise _ProgramEnded("time limit exceeded" if late else "the program ends its process") from None
        except TransportError as error:
            raise _ProgramEnded(f"the program's answer cannot be read: {error}") from None

    def ask(self, message: dict[str, Any], raw: bool = False) -> Any:
        """Return the program's answer to one question, or raise what it raised there. raw: the answer as it came."""
        try:
            send(self.handles[1], message)
        except OSError:
            raise _ProgramEnded("the program ends its process") from None
        except TransportError:
            raise _CannotSendError("a test hands over too much data") from None
        answer = self.wait()
        if not isinstance(answer, dict):
            raise _ProgramEnded("the program's answer cannot be read")
        return answer if raw else self.value(answer)

    def value(self, answer: Any) -> Any:
        """Return the value of an answer.

        Raises:
            Exception: of the builtin kind that the program's exception was, with its words.
        """
        try:
            if "error" in answer:
                kind = getattr(builtins, str(answer["error"]), Exception)
                if not (isinstance(kind, type) and issubclass(kind, Exception)):
                    raise _ProgramEnded(f"{answer['error']}: {answer['words']}")
                raise _raised(kind, str(answer["name"]), str(answer["words"]))
            return decode(answer["value"])
        except (KeyError, TypeError, TransportError, RecursionError) as error:
            if getattr(error, "of_program", False):
                raise
            raise _ProgramEnded("the program's answer cannot be read") from None

    def name(self, name: str) -> Any:
        """Return the program's `name`: data as they are, a callable as a function that asks."""
        answer = self.ask({"get": name}, raw=True)
        if "module" in answer and answer["module"] in sys.stdlib_module_names:
            return importlib.import_module(answer["module"])
        if "callable" not in answer:
            return self.value(answer)

        def asked(*given: Any, **named: Any) -> Any:
            return self.ask({"call": name, "given": encode(list(given), _refuse), "named": encode(named, _refuse)})

        return asked


def judge(line: Line, before: list[str], tests: list[str]) -> Finding:
    """Wait until the program has loaded, then run the tests in order; the first that does not hold ends it.

    before: imports of the tests.
    """
    title = "program: "
    try:
        line.value(line.wait())
        title = "tests: "
        trees, imports = [ast.parse(test) for test in tests], [ast.parse(text) for text in before]
        names: dict[str, Any] = {"__name__": "tests"}
        for tree in imports:
            exec(compile(tree, "<imports>", "exec"), names)
        for name in _wanted([*imports, *trees]):
            _bind(names, line, name)
        for i, (test, tree) in enumerate(zip(tests, trees, strict=True)):
            title = f"test {i + 1} ({' '.join(test.split())[:_MAX_SHOWN]}): "
            wrong = _run(tree, names)
            if wrong:
                return Finding("fail", title + wrong)
    except _ProgramEnded as error:
        return Finding("fail", f"{title}{error}")
    except _CannotSendError as error:
        return Finding("abstain", f"{title}{error}")
    except BaseException as error:
        return Finding("fail", f"{title}{type(error).__name__}: {error}")
    return Finding("pass", f"{len(tests)} tests passed")


def _raised(kind: type[Exception], name: str, words: str) -> Exception:
    """Return an exception of a builtin kind that shows the program's own name of it."""
    try:
        made: Any = type(name, (kind,), {"__init__": lambda self, *a: None, "__str__": lambda self: words})()
    except TypeError:
        made = RuntimeError(words)
    made.of_program = True
    return made


def _refuse(value: object) -> int:
    raise _CannotSendError(f"a test hands over a {type(value).__name__}")


def _bind(names: dict[str, Any], line: Line, name: str) -> None:
    try:
        names[name] = line.name(name)
    except NameError:
        return  # the test that uses it says so


def _wanted(trees: list[ast.Module]) -> list[str]:
    """Return the names that the tests take from the program: not theirs, and no builtins.

    Where that leaves none, the program has named its function like a builtin: then every builtin they call.
    """
    nodes = [n for tree in trees for n in ast.walk(tree)]
    own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    own |= {(a.asname or a.name).partition(".")[0] for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)
            for a in n.names}  # fmt: skip
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - own
    return sorted(read - set(dir(builtins))) or sorted(read)


def _run(tree: ast.Module, names: dict[str, Any]) -> str:
    """Return what is wrong with one test, or ""; what it raises is let through."""
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Assert | ast.Expr):
        exec(compile(tree, "<tests>", "exec"), names)
        return ""
    only = tree.body[0]
    held = only.test if isinstance(only, ast.Assert) else only.value
    evaluate: Callable[[ast.expr], Any] = lambda e: eval(compile(ast.Expression(e), "<tests>", "eval"), names)  # noqa: E731
    if isinstance(held, ast.Compare) and len(held.ops) == 1 and isinstance(held.ops[0], ast.Eq):
        got, wanted = evaluate(held.left), evaluate(held.comparators[0])
        return "" if got == wanted else f"got {_shown(got)}"
    got = evaluate(held)
    return "" if got else f"got {_shown(got)}"


def _shown(value: Any) -> str:
    return "an object" if isinstance(value, Opaque) else repr(value)[:_MAX_SHOWN]
