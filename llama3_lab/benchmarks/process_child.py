"""main(): the child of the process sandbox: walls first, then the program, then the tests, then one report.

    host -> first process (new namespaces) -> judge (files, user, limits) -> program (own user, no children)

The program's process is forked before the judge has read a test. The report, one JSON line on standard
output, says what the tests found and which isolation was in force.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

from llama3_lab.benchmarks.process_isolation import (
    close_to_tracing,
    die_with_parent,
    guard,
    leave_root,
    limit,
    own_files,
    separate,
)
from llama3_lab.benchmarks.process_judge import Finding, Line, judge
from llama3_lab.benchmarks.process_program import run_program
from llama3_lab.benchmarks.process_values import receive


def main() -> NoReturn:
    """Read a job from standard input (two messages: program and limits; tests), and report. Never returns."""
    job = receive(0)
    own = separate() if job["namespaces"] else []
    if not own:
        _judge(job, own)
    judge_pid = os.fork()
    if not judge_pid:
        _judge(job, own)
    _, status = os.waitpid(judge_pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _judge(job: dict[str, Any], own: list[str]) -> NoReturn:
    try:
        folder = os.getcwd()
        if "mounts" in own:
            own = [name for name in own if name != "mounts"]
            if own_files(Path(folder)):
                own = [*own, "files"]
                os.chdir(folder)
        if leave_root():
            own = [*own, "account"]
        die_with_parent()  # after a change of rights, which would undo it
        to_program, from_program = os.pipe(), os.pipe()
        program = os.fork()
        if not program:
            run_program((to_program[0], from_program[1]), job, folder)
        os.close(to_program[0])
        os.close(from_program[1])
        close_to_tracing()
        line = Line((from_program[0], to_program[1]), time.monotonic() + job["wall"])
        _report(line, job, own, (folder, program))
        with contextlib.suppress(OSError):
            os.kill(program, signal.SIGKILL)
            os.waitpid(program, 0)
    except BaseException as error:
        _say({"outcome": "abstain", "reason": f"the sandbox broke: {type(error).__name__}: {error}", "own": own})
    finally:
        os._exit(0)


def _report(line: Line, job: dict[str, Any], own: list[str], place: tuple[str, int]) -> None:
    """Run the tests and say what they found. place: the folder, and the program's process."""
    asked = receive(0)
    try:
        first = line.wait()  # sent before the first character of the program runs
        took = list(first["limits"])
        if first["user"]:
            own = [*own, "user"]
    except BaseException as error:
        _say({"outcome": "abstain", "reason": f"the program's process did not start: {error}", "own": own})
        return
    limit(job["wall"] + 1, job["memory"], job["file_bytes"], new_processes=False)
    guard(*place)
    found: Finding = judge(line, asked["before"], asked["tests"])
    words = sorted(set(own))
    _say({"outcome": found.outcome, "reason": found.reason, "own": words, "limits": took})


def _say(report: dict[str, Any]) -> None:
    os.write(1, json.dumps(report).encode()[: 1 << 16] + b"\n")
