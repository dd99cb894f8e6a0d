"""run_tests(): a model's program against its unit tests, in an interpreter that can reach nothing.

The program runs in pydantic-monty: a Python interpreter written in Rust, in a worker process of its
own, without files, network, environment or subprocesses, under limits on time, memory and depth.

A program cannot pass by looking right. The judge is defined before the program runs, under a name
drawn anew for each check, and holds its own builtins and the expected values; `f(...) == value` is
compared as plain data, never by an object's own `__eq__`; no value leaves the worker, only "ok", or
the number of the failing test and a short description.

What it is not: proof that a program is right (it passed these tests; one that knows the expected values
can recite them); a full Python (no `yield`, `del`, `eval`, `exec` or class inheritance, and little of
the standard library); strict about tests of another form than `call == value`, which are taken at their
word: `abs(f(2) - 1.4) < 0.1` trusts `abs` and the object that f returns; a measure of speed. A worker
that breaks the memory limit in one stroke says so on standard error as it goes.
"""

from __future__ import annotations

import ast
import atexit
import functools
import os
import re
import secrets
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_monty import CollectString, Monty, MontyCrashedError, MontyError, MontySyntaxError

from llama3_lab.records import Outcome

MAX_REASON = 120
GRACE = 0.1  # seconds past the limit until a worker stuck in one long operation is killed
_UNKNOWN = "NotImplementedError: The monty syntax parser does not yet support "
_LIMIT_WORDS = {"TimeoutError": "time limit exceeded", "MemoryError": "memory or output limit exceeded",
                "RecursionError": "too many nested calls"}  # fmt: skip
_PURE = frozenset("abs bool complex dict float frozenset int len list max min range round set sorted "
                  "str sum tuple".split())  # fmt: skip

# What judges one value: None if it is right, else the number of the test and what is wrong. Parsing
# this costs as much as the check itself, so a check is given only the parts that its tests need.
# N: a number. L: a flat list of numbers. T: exactly True. J: any data; S: are v and the trusted e the
# same data? P: is v plain data? The builtins are bound as defaults before the program can shadow them.
_JUDGES = {
    "N": """def N(i, v, e, type=type, A=(int, float, bool, complex)):
 return None if type(v) in A and v == e else f"{i} got {v!r}"
""",
    "L": """def L(i, v, e, type=type, list=list, A=(int, float, bool, complex)):
 if type(v) is list and False not in [type(x) in A for x in v] and v == e: return None
 return f"{i} got {v!r}"
""",
    "T": """def T(i, v):
 return None if v is True else f"{i} got {v!r}"
""",
    "J": """def P(v, type=type, A=(int, float, bool, str, bytes, complex, type(None)), B=(tuple, frozenset)):
 if type(v) not in B: return type(v) in A
 for x in v:
  if not P(x): return False
 return True
def S(v, e, type=type, isinstance=isinstance, len=len, range=range, A=(int, float, bool, complex),
      list=list, tuple=tuple, dict=dict, B=(set, frozenset)):
 t = type(e)
 if t in A: return type(v) in A and v == e
 if t is list or t is tuple:
  if not isinstance(v, t) or len(v) != len(e): return False
  for i in range(len(e)):
   if not S(v[i], e[i]): return False
  return True
 if t is dict:
  if not isinstance(v, dict) or len(v) != len(e): return False
  for k in v:
   if not P(k) or k not in e or not S(v[k], e[k]): return False
  return True
 if t in B:
  if not isinstance(v, B) or len(v) != len(e): return False
  for x in v:
   if not P(x) or x not in e: return False
  return True
 return type(v) is t and v == e
E = [EXPECTED]
def J(i, v):
 return None if S(v, E[i]) else f"{i} got {v!r}"
""",
}
_JUDGES = {kind: re.sub(r"\b([NLTJPSE])\b", r"\1SECRET", code) for kind, code in _JUDGES.items()}
# What could find or change the judge's names is taken away; the last line of the prelude.
_CLOSED = "dir = vars = locals = globals = eval = exec = compile = __import__ = None\n"


@dataclass(frozen=True)
class Limits:
    """What one check may use. seconds: each for the program and for its tests, so 2 × seconds in all
    (plus GRACE); memory: bytes of heap; depth: calls; printed: bytes."""

    seconds: float = 0.2
    memory: int = 16 << 20
    depth: int = 400
    printed: int = 1 << 16


@dataclass(frozen=True)
class SandboxResult:
    """pass: every test true. fail: reason names the first failing test, or the exception. abstain:
    the sandbox lacks a construct of the program, or the tests are no tests. reason: one line."""

    outcome: Outcome
    reason: str


def one_line(text: str, limit: int = MAX_REASON) -> str:
    """Return `text` on one line of at most `limit` printable characters."""
    flat = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text[: 4 * limit]).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


@dataclass
class Sandbox:
    """A pool of one worker, started at the first check, and again after a fork or a failure.

    Use it in a `with` block, or call `close()`. Safe to share between threads (they take turns) and
    to carry across `fork` (the child starts a worker of its own).
    """

    limits: Limits = Limits()
    _pool: Any = field(default=None, init=False, repr=False)
    _pid: int = field(default=0, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker; a later check starts a new one."""
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.__exit__(None, None, None)

    def run_tests(self, program: str, tests: Sequence[str]) -> SandboxResult:
        """Run `program`, then each of `tests` (Python expressions) in its namespace, in order.

        A test must be exactly True; of the form `call == value` the two must be the same data, as
        Python's == sees it. Nothing is left behind for the next check. Never raises on account of
        the program's text.
        """
        built = _harness(tuple(tests))
        if isinstance(built, SandboxResult):
            return built
        prelude, calls = built
        for attempt in (0, 1):
            try:
                return self._check(program, prelude, calls, tests)
            except (MontyCrashedError, OSError, RuntimeError) as error:
                if getattr(error, "timed_out", False):
                    return SandboxResult("fail", "program: time limit exceeded")
                if attempt:
                    return SandboxResult("fail", "program: the worker died of it, twice")
                self.close()  # perhaps somebody else's doing: once more, in a new worker
        raise AssertionError("unreachable")

    def _check(self, program: str, prelude: str, calls: str, tests: Sequence[str]) -> SandboxResult:
        secret = "_" + secrets.token_hex(8)
        with self._session() as session:
            # The closing 0: what a feed ends with is returned, and no value may leave.
            _, error = self._feed(session, f"{prelude.replace('SECRET', secret)}{program}\n\n0")
            if error is not None:
                what = _words(error).replace(secret, "")
                if what.startswith(_UNKNOWN) and self._unparsed(program):
                    return SandboxResult("abstain", one_line("not in the sandbox's Python: " + what[len(_UNKNOWN) :]))
                return SandboxResult("fail", one_line("program: " + what))
            said, error = self._feed(session, calls.replace("SECRET", secret))
        if error is not None:
            return SandboxResult("fail", one_line(_where(error, tests) + _words(error).replace(secret, "")))
        if said == "ok":
            return SandboxResult("pass", f"{len(tests)} tests passed")
        number, _, what = str(said).partition(" ")
        return SandboxResult("fail", one_line(f"test {int(number) + 1} ({tests[int(number)]}): {what}"))

    def _feed(self, session: Any, code: str) -> tuple[Any, MontyError | None]:
        """Return (value, None), or (None, the program's exception); a dead worker raises."""
        try:
            return session.feed_run(code, print_callback=CollectString(self.limits.printed)), None
        except MontyCrashedError:
            raise
        except MontyError as error:
            return None, error

    def _session(self) -> Any:
        """Return a new session: nothing of another check is in it. Clock and random start are fixed."""
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                _abandoned.append(self._pool)  # after a fork: the parent's, which its destructor would stop
                pool = Monty(min_processes=1, max_processes=1, request_timeout=self.limits.seconds + GRACE,
                             feed_duration_limit_grace=GRACE, turn_duration_limit_grace=GRACE)  # fmt: skip
                self._pool, self._pid = pool.__enter__(), os.getpid()
            pool = self._pool
        return pool.checkout(
            limits={"max_feed_duration_secs": self.limits.seconds, "max_memory": self.limits.memory,
                    "max_recursion_depth": self.limits.depth, "max_suspensions": 20,
                    "max_total_sleep_secs": 0.0},
            os_policy={"random_start": {"seed": 0}, "sleep": "zero"},
        )  # fmt: skip

    def _unparsed(self, program: str) -> bool:
        """Return whether the parser, and not the program as it ran, said "not supported"."""
        with self._session() as session:
            _, error = self._feed(session, "if 0:\n 0\n" + textwrap.indent(program, " ") + "\n0")
        return error is not None and _words(error).startswith(_UNKNOWN)


@functools.lru_cache(maxsize=4096)
def _harness(tests: tuple[str, ...]) -> tuple[str, str] | SandboxResult:
    """Return the source that goes before the program and the source that goes after, names SECRET."""
    calls, kinds, expected = [], set(), []
    for i, test in enumerate(tests):
        try:
            node = ast.parse(test.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return SandboxResult("abstain", one_line(f"test {i + 1} is not a Python expression: {test}"))
        left, right = _sides(node)
        kind = _kind(right)
        value = f", {ast.unparse(right)}" if right is not None and kind in "NL" else ""
        calls.append(f"{kind}SECRET({i}, {ast.unparse(left)}{value})")
        expected.append(ast.unparse(right) if right is not None and kind == "J" else "0")
        kinds.add(kind)
    if not tests:
        return SandboxResult("abstain", "there are no tests")
    judges = "".join(_JUDGES[kind] for kind in sorted(kinds)).replace("EXPECTED", ", ".join(expected))
    return judges + _CLOSED, "(\n" + "\nor ".join(calls) + "\nor 'ok')"


def _kind(value: ast.expr | None) -> str:
    """Return the judge for an expected value: N a number, L a list of numbers, J another, T none given."""
    try:
        known = ast.literal_eval(value) if value is not None else None
    except ValueError:
        return "J"
    if isinstance(known, int | float | complex):
        return "N"
    flat = isinstance(known, list) and all(isinstance(x, int | float | complex) for x in known)
    return "T" if value is None else "L" if flat else "J"


def _sides(node: ast.expr) -> tuple[ast.expr, ast.expr | None]:
    """Return (call, value) of `call == value`, either way round; (the whole test, None) of any other."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
        left, right = node.left, node.comparators[0]
        if _is_pure(right):
            return left, right
        if _is_pure(left):
            return right, left
    return node, None


def _is_pure(node: ast.expr) -> bool:
    """Return whether the value hangs on literals and builtins alone, so that it is known beforehand."""
    return all(not isinstance(n, ast.Name | ast.Attribute) or isinstance(n, ast.Name) and n.id in _PURE
               for n in ast.walk(node))  # fmt: skip


def _words(error: MontyError) -> str:
    """Return the exception as "Type: message", the limits in words that are the same each time."""
    if isinstance(error, MontySyntaxError):
        return f"SyntaxError: {error}"
    kind, _, _ = str(error).partition(":")
    return _LIMIT_WORDS.get(kind, str(error))


def _where(error: MontyError, tests: Sequence[str]) -> str:
    """Return which test an exception came from, by the line of the harness."""
    frames = error.traceback() if hasattr(error, "traceback") else []
    lines = [f.line for f in frames if f.filename == "<python-input-1>"]
    i = lines[0] - 2 if lines else -1
    return f"test {i + 1} ({tests[i]}): " if 0 <= i < len(tests) else "tests: "


_abandoned: list[Any] = []
_default = Sandbox()
atexit.register(_default.close)


def run_tests(program: str, tests: Sequence[str]) -> SandboxResult:
    """Run one check in the process's own sandbox (`Sandbox.run_tests`), at the default limits."""
    return _default.run_tests(program, tests)
