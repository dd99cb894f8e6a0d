"""check_program(): a program against its tests, in memory first, and in processes of its own where that cannot run it.

Order: no Python at all fails at once. What leans on the program's own word for equality or on a name that it
binds anew goes straight to the process sandbox, where tests and program are apart. All else runs in the
in-memory interpreter; only what that one lacks (a module, a method, time) is run again by Python itself.
`ProgramResult.ran` says which of the two decided.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llama3_lab.benchmarks.code_blocks import defined, parse
from llama3_lab.benchmarks.process_sandbox import Isolation, ProcessLimits, run_in_process
from llama3_lab.pipeline.sandbox import Limits, Sandbox, SandboxResult, one_line
from llama3_lab.records import Outcome, Verdict

Ran = Literal["none", "monty", "process"]
MEMORY_LIMITS = Limits(seconds=1.0, memory=64 << 20, depth=900)
# What the in-memory interpreter says when it is the one that lacks something; Python then decides.
_LACKS = re.compile(
    r"\b(?:ModuleNotFoundError|ImportError|NotImplementedError|NameError|AttributeError|TypeError|SyntaxError|"
    r"RuntimeError|OverflowError|LookupError)\b|time limit exceeded|memory or output limit|too many nested calls|"
    r"the program ends its worker|not in the sandbox's Python"
)
# Words by which an object can answer for itself when a test compares, counts or calls it.
_SPECIAL = re.compile(r"__[a-z]+__|\bsetattr\b|\bdelattr\b")
_HARMLESS = {"__init__", "__repr__", "__str__", "__doc__", "__slots__", "__name__", "__main__"}


@dataclass(frozen=True)
class ProgramResult:
    """ran: the sandbox that decided; "none" where the text is no program. isolation: in words, what was in force."""

    outcome: Outcome
    reason: str
    ran: Ran
    isolation: str

    def verdict(self) -> Verdict:
        """Return the result as a verdict whose checker names the sandbox: "tests (monty)", "tests (process)", or
        "tests (process, limits only)" where the kernel allowed no namespaces."""
        weak = self.ran == "process" and self.isolation == str(Isolation())
        how = f"{self.ran}, limits only" if weak else self.ran
        return Verdict(self.outcome, "tests" if self.ran == "none" else f"tests ({how})", self.reason)


@dataclass(frozen=True)
class Suite:
    """Tests, sorted. before: imports that they need; tests: the source of each, without its `assert`'s word where
    it is a single expression; blocks: whether each is statements (a function `check` and its call)."""

    before: tuple[str, ...]
    tests: tuple[str, ...]
    blocks: tuple[bool, ...]
    names: frozenset[str] = field(default=frozenset())

    @property
    def wanted(self) -> frozenset[str]:
        """The names that the program must define: used by the tests, and neither theirs nor Python's."""
        return self.names - frozenset(dir(builtins)) or self.names


def read_suite(items: Sequence[str]) -> Suite:
    """Sort the items of a `Check` of kind "tests": expressions, `assert` lines, imports, and whole test functions.

    Raises:
        ValueError: naming the item that is no Python.
    """
    before, tests, blocks, nodes = [], [], [], []
    for i, item in enumerate(items):
        tree = parse(item.strip("\n"))
        if tree is None or not tree.body:
            raise ValueError(f"test {i + 1} is no Python: {one_line(item, 60)}")
        nodes += list(ast.walk(tree))
        if all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body):
            before.append(item.strip())
            continue
        only = tree.body[0]
        single = len(tree.body) == 1 and isinstance(only, ast.Expr | ast.Assert)
        tests.append(_expression(only) if single and isinstance(only, ast.Expr | ast.Assert) else item.strip("\n"))
        blocks.append(not single)
    own = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in nodes if isinstance(n, ast.arg)} | {name for text in before for name in defined(text)}
    own |= {name for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for name in defined(ast.unparse(n))}
    read = {n.id for n in nodes if isinstance(n, ast.Name)}
    return Suite(tuple(before), tuple(tests), tuple(blocks), frozenset(read - own))


class ProgramChecker:
    """Checks programs one at a time; the in-memory worker lives until `close`, or the end of a `with` block."""

    def __init__(self, memory: Limits = MEMORY_LIMITS, process: ProcessLimits | None = None) -> None:
        self.process = process or ProcessLimits()
        self._sandbox = Sandbox(memory)

    def __enter__(self) -> ProgramChecker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the in-memory worker."""
        self._sandbox.close()

    def check(self, program: str, items: Sequence[str]) -> ProgramResult:
        """Run a program, then its tests (the items of a `Check`), in order. No text of a program raises.

        Raises:
            ValueError: if the in-memory worker cannot be started.
        """
        try:
            suite = read_suite(items)
        except ValueError as error:
            return ProgramResult("abstain", one_line(str(error)), "none", "nothing ran")
        if not suite.tests:
            return ProgramResult("abstain", "there are no tests", "none", "nothing ran")
        if not program.strip():
            return ProgramResult("fail", "no program found in the answer", "none", "nothing ran")
        tree = parse(program)
        if tree is None:
            return ProgramResult("fail", "program: it is no Python", "none", "nothing ran")
        if why := _must_be_apart(program, tree, suite):
            return self._apart(program, suite, why)
        found = self._in_memory(program, suite)
        lacks = _LACKS.search(found.reason) or (": got " in found.reason and _knows_order(tree))
        if found.outcome == "abstain" or (found.outcome == "fail" and lacks):
            return self._apart(program, suite, found.reason)
        return ProgramResult(found.outcome, found.reason, "monty", "an interpreter without files, network or processes")

    def _in_memory(self, program: str, suite: Suite) -> SandboxResult:
        """Run everything in memory; test functions stand after the program, under names that it cannot know."""
        after, tests, names = [], [], {}
        for test, block in zip(suite.tests, suite.blocks, strict=True):
            if not block:
                tests.append(test)
                continue
            name = f"_{secrets.token_hex(8)}"
            wrapped = ast.parse(f"def {name}(): pass")
            function = wrapped.body[0]
            assert isinstance(function, ast.FunctionDef)
            function.body = ast.parse(test).body
            after.append(ast.unparse(wrapped))
            tests.append(f"{name}() == None")
            names[tests[-1]] = test.rstrip().rpartition("\n")[2]
        found = self._sandbox.run_tests("\n".join([*suite.before, program, "", *after]), tests)
        reason = found.reason
        for name, shown in names.items():
            reason = reason.replace(name, shown)
        return SandboxResult(found.outcome, one_line(reason))

    def _apart(self, program: str, suite: Suite, why: str) -> ProgramResult:
        found = run_in_process(program, suite.tests, suite.before, self.process)
        if found.outcome == "abstain":
            reason = one_line(f"{found.reason} (in memory: {why})")
            return ProgramResult("abstain", reason, "process", str(found.isolation))
        return ProgramResult(found.outcome, found.reason, "process", str(found.isolation))


def check_program(program: str, items: Sequence[str]) -> ProgramResult:
    """Check one program with the process's own checker, at the default limits (`ProgramChecker.check`)."""
    return _default.check(program, items)


def _expression(node: ast.Expr | ast.Assert) -> str:
    """Return a test as an expression that is exactly True where it holds."""
    held = node.test if isinstance(node, ast.Assert) else node.value
    return ast.unparse(held) if isinstance(held, ast.Compare) else f"not not ({ast.unparse(held)})"


def _must_be_apart(program: str, tree: ast.Module, suite: Suite) -> str:
    """Return why program and tests must not share an interpreter, or "": the program could change what tests mean."""
    nodes = list(ast.walk(tree))
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store | ast.Del)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    bound |= {n.asname or n.name for n in nodes if isinstance(n, ast.alias)}
    modules = {name for text in suite.before for name in defined(text)}
    needed = (suite.names & set(dir(builtins))) | modules
    imports = {n.asname or n.name for n in nodes if isinstance(n, ast.alias)} & modules
    if taken := sorted((bound & needed) - imports - (suite.wanted - modules)):
        return f"the program binds {taken[0]} anew"
    stores = [n.value for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    if modules and any(not isinstance(value, ast.Name) or value.id != "self" for value in stores):
        return "the program may change a module of its tests"
    special = set(_SPECIAL.findall(program)) - _HARMLESS
    return f"the program writes {min(special)}" if special else ""


def _knows_order(tree: ast.Module) -> bool:
    """Return whether a program may show the order of a set, which is another in the in-memory interpreter."""
    return any(
        isinstance(n, ast.Set | ast.SetComp) or (isinstance(n, ast.Name) and n.id in ("set", "frozenset", "hash"))
        for n in ast.walk(tree)
    )


_default = ProgramChecker()
atexit.register(_default.close)
