"""run_in_process(): a program and its tests in a Python of its own, for what the in-memory interpreter lacks.

The program runs in one process, its tests in another, and they exchange plain data only: leaving early,
printing a verdict, objects that equal everything, or reading the tests gain nothing. Both have no environment, an
empty folder, limits on time, memory, file size and processes, and an audit hook that refuses files,
sockets and processes; where the kernel allows it, namespaces of their own (user, network, processes) and a
file system that holds nothing but Python's library. `ProcessResult.isolation` says what was in force.

What it is not: a virtual machine. Without namespaces (`isolation.namespaces` is empty) it stops accidents, not
a program that was written to break out. Arguments that a function changes in place are not seen by its tests.
Where Python has no `resource` module (Windows) every check abstains.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from llama3_lab.pipeline.sandbox import one_line
from llama3_lab.records import Outcome

GRACE = 2.0  # seconds past the wall limit until the host kills the whole group
_PACKAGES = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv[1]); from llama3_lab.benchmarks.process_child import main; main()"
Wall = Literal["user", "network", "processes", "files", "account"]


@dataclass(frozen=True)
class ProcessLimits:
    """seconds: processor time; wall: seconds by the clock, program and tests together; memory, file_bytes:
    bytes. namespaces: False leaves them out (to see what the rest does alone)."""

    seconds: float = 4.0
    wall: float = 6.0
    memory: int = 512 << 20
    file_bytes: int = 1 << 20
    namespaces: bool = True


@dataclass(frozen=True)
class Isolation:
    """What was in force. namespaces: what the program had of its own; limits: what the system accepted."""

    namespaces: tuple[Wall, ...] = ()
    limits: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"own {', '.join(self.namespaces)}" if self.namespaces else "limits and audit hook only"


@dataclass(frozen=True)
class ProcessResult:
    """pass: every test held. fail: reason names the first that did not, or how the program ended. abstain: the
    sandbox could not run it. reason: one line."""

    outcome: Outcome
    reason: str
    isolation: Isolation = field(default_factory=Isolation)


def run_in_process(
    program: str, tests: Sequence[str], before: Sequence[str] = (), limits: ProcessLimits | None = None
) -> ProcessResult:
    """Run `program`, then each of `tests`, in processes of their own that are gone when this returns.

    tests: expressions that must hold, or statements that must run through. before: imports of the tests, for the
    program too. No text of a program raises.
    """
    limits = limits or ProcessLimits()
    if importlib.util.find_spec("resource") is None or not tests:
        return ProcessResult("abstain", "there are no tests" if not tests else "this system has no process limits")
    try:
        messages = [
            {"program": program, "before": list(before), "seconds": limits.seconds, "wall": limits.wall,
             "memory": limits.memory, "file_bytes": limits.file_bytes, "namespaces": limits.namespaces},
            {"before": list(before), "tests": list(tests)},
        ]  # fmt: skip
        told = b"".join(len(b).to_bytes(4, "big") + b for b in (json.dumps(m).encode() for m in messages))
        with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder:
            os.chmod(folder, 0o777 if os.geteuid() == 0 else 0o700)
            said, late = _talk(os.path.realpath(folder), told, limits.wall + GRACE)
    except OSError as error:
        return ProcessResult("abstain", one_line(f"the process sandbox does not start: {error}"))
    return _read(said, late)


def _talk(folder: str, told: bytes, seconds: float) -> tuple[bytes, bool]:
    """Return what the child said on standard output, and whether it had to be killed."""
    # The seed makes the order of a set of texts the same each time; the program does not see it.
    command, environment = [sys.executable, "-s", "-P", "-S", "-B", "-c", _START, _PACKAGES], {"PYTHONHASHSEED": "0"}
    child = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    late = False
    try:
        said, _ = child.communicate(told, timeout=seconds)
    except subprocess.TimeoutExpired:
        late, said = True, b""
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        if child.returncode is None:
            said, _ = child.communicate()
    return said, late


def _read(said: bytes, late: bool) -> ProcessResult:
    if late:
        return ProcessResult("fail", "time limit exceeded; the process was killed")
    try:
        report: dict[str, Any] = json.loads(said)
        outcome, reason, own = report["outcome"], str(report["reason"]), tuple(report["own"])
    except (ValueError, KeyError, TypeError):
        return ProcessResult("abstain", "the process sandbox ended without a report")
    if outcome not in get_args(Outcome):
        return ProcessResult("abstain", "the process sandbox ended with another report")
    return ProcessResult(outcome, one_line(reason), Isolation(own, tuple(report.get("limits", ()))))
