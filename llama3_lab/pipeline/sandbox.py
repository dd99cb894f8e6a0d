"""run_tests(): a model's program against its unit tests, in an interpreter that can reach nothing.

The program runs in pydantic-monty: a Python interpreter written in Rust, in a worker process of its
own, without files, network, environment or subprocesses, under limits on time, memory and depth.

A check is one message to the worker and one back: judge, tests, program, and a last line that runs the
tests. A program cannot pass by looking right. Judge and tests are parsed and defined before the first
character of the program, under names drawn anew for each check; the judge holds its own builtins and the
expected values; `f(...) == value` is compared as plain data, never by an object's own `__eq__`. No value
leaves the worker (a small one can take for ever to unpack), only a printed line that begins with a word
drawn for the check: "ok", or the number of the failing test and a short description.

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
import keyword
import os
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_monty import (
    CollectString,
    Monty,
    MontyComplete,
    MontyCrashedError,
    MontyError,
    MontySession,
    MontySyntaxError,
)

from llama3_lab.records import Outcome

MAX_REASON = 120
GRACE = 0.05  # seconds past the limit until a worker stuck in one long operation is killed
_NUMBER = (int, float, complex)  # and bool, which is an int
_UNKNOWN = "NotImplementedError: The monty syntax parser does not yet support "
_SLOW = "time limit exceeded"
_LIMIT_WORDS = {"TimeoutError": _SLOW, "MemoryError": "memory or output limit exceeded",
                "RecursionError": "too many nested calls"}  # fmt: skip
_PURE = {"abs", "bool", "complex", "dict", "float", "frozenset", "int", "len", "list", "max", "min", "range",
         "round", "set", "sorted", "str", "sum", "tuple"}  # fmt: skip

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
    "J": """def P(v, type=type, all=all, B=(tuple, frozenset),
      A=(int, float, bool, str, bytes, complex, type(None))):
 return type(v) in A or type(v) in B and all([P(x) for x in v])
def S(v, e, type=type, isinstance=isinstance, len=len, all=all, zip=zip, A=(int, float, bool, complex),
      list=list, tuple=tuple, dict=dict, B=(set, frozenset)):
 t = type(e)
 if t in A: return type(v) in A and v == e
 if t is list or t is tuple:
  return isinstance(v, t) and len(v) == len(e) and all([S(x, y) for x, y in zip(v, e)])
 if t is dict:
  return isinstance(v, t) and len(v) == len(e) and all([P(k) and k in e and S(v[k], e[k]) for k in v])
 if t in B: return isinstance(v, B) and len(v) == len(e) and all([P(x) and x in e for x in v])
 return type(v) is t and v == e
E = [EXPECTED]
def J(i, v):
 return None if S(v, E[i]) else f"{i} got {v!r}"
""",
}
_SECRET = "\0"  # stands for the check's secret in the judges' names; no Python source can hold it
_JUDGES = {kind: re.sub(r"\b([NLTJPSE])\b", rf"\g<1>{_SECRET}", code) for kind, code in _JUDGES.items()}
# What could find or change the judge's names is taken away; the last line of the prelude, which no
# program's first line can continue.
_CLOSED = "dir = vars = locals = globals = eval = exec = compile = __import__ = None\n"
# The usual test: a function of numbers and flat lists of numbers, with a known result of that kind.
_PLAIN = r"-?(?:0|[1-9][0-9]{0,17})"
_PLAIN = rf"(?:{_PLAIN}|\[(?:{_PLAIN}(?:, {_PLAIN})*)?\])"
_USUAL = re.compile(rf"(([A-Za-z_][A-Za-z_0-9]*)\((?:{_PLAIN}(?:, {_PLAIN})*)?\)) == ({_PLAIN})")


@dataclass(frozen=True)
class Limits:
    """What a check may use. seconds: for the program and its tests together; the same once more after
    a time-out, lest a busy machine decide. memory: bytes of heap; depth: calls; printed: bytes."""

    seconds: float = 0.15
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


class Sandbox:
    """One worker, started at the first check, and again when it died.

    Use it in a `with` block, or call `close()`. Threads may share it (they take turns). A process that
    was forked after the first check cannot use any: its copy of the pool's threads does not run.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._pool: Monty | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker; a later check starts a new one."""
        pool, self._pool = self._pool, None
        if pool is not None and _pids == {os.getpid()}:
            pool.__exit__(None, None, None)

    def run_tests(self, program: str, tests: Sequence[str]) -> SandboxResult:
        """Run `program`, then each of `tests` (Python expressions) in its namespace, in order.

        A test must be exactly True; of the form `call == value` the two must be the same data, as
        Python's == sees it. Nothing is left behind for the next check. No text of a program raises.

        Raises:
            ValueError: if the worker cannot be started, or this process is a fork of one that checked.
        """
        built = _harness(tuple(tests))
        if isinstance(built, SandboxResult):
            return built
        for _ in range(2):  # twice: a death or a time-out may be somebody else's doing
            try:
                result = self._check(program, *built, tests)
                if not result.reason.endswith(_SLOW):
                    break
            except MontyCrashedError as error:
                result = SandboxResult("fail", _SLOW if error.timed_out else "the program ends its worker")
            except (OSError, RuntimeError) as error:
                self.close()
                what = f"the code sandbox does not start: {one_line(str(error))}; reinstall pydantic-monty"
                raise ValueError(what) from error
        return result

    def _check(self, program: str, prelude: str, first: int, tests: Sequence[str]) -> SandboxResult:
        secret, printed = "_" + secrets.token_hex(8), CollectString(self.limits.printed)
        # The last line stands alone: an open quote, bracket, block or trailing backslash cannot take it in.
        code = f"{prelude.replace(_SECRET, secret)}{program}\n\nR{secret}()"
        with self._session() as session:
            try:
                done = session.feed_start(code, print_callback=printed)  # its `output` stays where it is
                while not isinstance(done, MontyComplete):  # asked for a name that nobody knows, or the clock
                    done = done.resume_auto()
            except MontyCrashedError:
                raise
            except MontyError as error:
                return _raised(error, secret, first, tests)
        _, ran, said = printed.output.partition(secret)
        if not ran:
            return SandboxResult("fail", "program: it ends before its tests; a return outside a function?")
        if said.strip() == "ok":
            return SandboxResult("pass", f"{len(tests)} tests passed")
        number, _, what = said.strip().partition(" ")
        return SandboxResult("fail", one_line(f"{_title(int(number), tests)}{what}"))

    def _session(self) -> MontySession:
        """Return a new session: nothing of another check is in it. Sleep is none, randomness seeded."""
        with self._lock:
            _pids.add(os.getpid())
            if len(_pids) > 1:
                raise ValueError("the code sandbox does not survive a fork; start this process with spawn")
            if self._pool is None:
                seconds = self.limits.seconds + GRACE
                pool = Monty(max_processes=1, checkout_timeout=60.0, request_timeout=seconds,
                             feed_duration_limit_grace=GRACE, turn_duration_limit_grace=GRACE)  # fmt: skip
                self._pool = pool.__enter__()
            pool = self._pool
        return pool.checkout(
            limits={"max_feed_duration_secs": self.limits.seconds, "max_memory": self.limits.memory,
                    "max_recursion_depth": self.limits.depth, "max_suspensions": 20,
                    "max_total_sleep_secs": 0.0},
            os_policy={"random_start": {"seed": 0}, "sleep": "zero"},
        )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _harness(tests: tuple[str, ...]) -> tuple[str, int] | SandboxResult:
    """Return the source that goes before the program, and the line of it on which the first test stands."""
    calls, kinds, expected = [], set(), []
    for i, test in enumerate(tests):
        try:
            kind, call, value = _form(test.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return SandboxResult("abstain", one_line(f"test {i + 1} is not a Python expression: {test}"))
        calls.append(f"{kind}{_SECRET}({i}, {call}{', ' + value if kind in 'NL' else ''})")
        expected.append(value if kind == "J" else "0")
        kinds.add(kind)
    if not tests:
        return SandboxResult("abstain", "there are no tests")
    judges = "".join(_JUDGES[kind] for kind in sorted(kinds)).replace("EXPECTED", ", ".join(expected))
    head = f"{judges}def R{_SECRET}(p{_SECRET}=print):\n p{_SECRET}('{_SECRET}', (\n"
    return head + "\nor ".join(calls) + f"\nor 'ok')[:{4 * MAX_REASON}])\n{_CLOSED}", head.count("\n") + 1


def _form(test: str) -> tuple[str, str, str]:
    """Return (judge, call, value) of `call == value`, either way round; ("T", test, "") of another."""
    usual = _USUAL.fullmatch(test)  # told without a parser, which takes ten times as long
    if usual and not keyword.iskeyword(usual[2]):
        return "L" if usual[3].startswith("[") else "N", usual[1], usual[3]
    node = ast.parse(test, mode="eval").body
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
        a, b = node.left, node.comparators[0]
        for call, known in ((a, b), (b, a)):
            # Known beforehand: it hangs on literals and builtins alone.
            if not any(isinstance(n, ast.Attribute) or getattr(n, "id", "len") not in _PURE
                       for n in ast.walk(known)):  # fmt: skip
                return _judge(known), ast.unparse(call), ast.unparse(known)
    return "T", ast.unparse(node), ""


def _judge(value: ast.expr) -> str:
    try:
        known = ast.literal_eval(value)
    except ValueError:
        return "J"
    if isinstance(known, _NUMBER):
        return "N"
    return "L" if isinstance(known, list) and all(isinstance(x, _NUMBER) for x in known) else "J"


def _words(error: MontyError) -> str:
    """Return the exception as "Type: message", the limits in words that are the same each time."""
    if isinstance(error, MontySyntaxError):
        return f"SyntaxError: {error}"
    kind, _, _ = str(error).partition(":")
    return _LIMIT_WORDS.get(kind, str(error))


def _raised(error: MontyError, secret: str, first: int, tests: Sequence[str]) -> SandboxResult:
    """Return what an exception means: by its line, the program's own or that of a test, `first` the first."""
    what = _words(error).replace(secret, "")
    frames = error.traceback() if hasattr(error, "traceback") else []
    if what.startswith(_UNKNOWN) and len(frames) == 1 and frames[0].function_name is None:  # said by the parser
        return SandboxResult("abstain", one_line("not in the sandbox's Python: " + what.removeprefix(_UNKNOWN)))
    # A limit, or the interpreter's own error, comes without a line.
    where = "program: " if frames or isinstance(error, MontySyntaxError) else ""
    before = next((f.line for f in frames if 1 < f.line < first + len(tests)), None)  # 1: unknown
    if before is not None:
        where = _title(before - first, tests) if 0 <= before - first < len(tests) else "tests: "
    return SandboxResult("fail", one_line(where + what))


def _title(i: int, tests: Sequence[str]) -> str:
    return f"test {i + 1} ({one_line(tests[i], 60)}): "


_pids: set[int] = set()  # that checked something: this process, and what it was forked from
_default = Sandbox()
atexit.register(_default.close)


def run_tests(program: str, tests: Sequence[str]) -> SandboxResult:
    """Run one check in the process's own sandbox (`Sandbox.run_tests`), at the default limits."""
    return _default.run_tests(program, tests)
