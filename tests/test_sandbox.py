"""The sandbox: right programs pass; wrong, hostile and cheating ones fail in time and leave no trace."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_lab.pipeline import sandbox
from llama3_lab.pipeline.sandbox import Limits, Sandbox, one_line, run_tests
from llama3_lab.world.corpus import make_prompt

RIGHT = "def f(xs):\n xs = [x for x in xs if x > 4]\n return sum(xs)"
TESTS = ("f([1, 4, 5, 9]) == 14", "f([]) == 0")
MBPP = Path(__file__).parents[2] / "shared" / "data" / "mbpp" / "sanitized-mbpp.json"

IN_BODY = {  # name: what f does when it is called
    "endless loop": "while True: pass",
    "loop that catches everything": "while True:\n  try:\n   while True: pass\n  except BaseException: pass",
    "list growth": "x = []\n while True: x.append(1)",
    "string doubling": "x = 'a'\n while True: x += x",
    "huge power": "return 10 ** 10 ** 9",
    "repeated powers": "x = 7\n while True: x = x ** 7",
    "huge range list": "return list(range(10 ** 10))",
    "huge sum": "return sum(range(10 ** 13))",
    "huge padding": "return 'a'.center(10 ** 9)",
    "deep recursion": "return f(xs)",
    "open a file": "return open('/etc/passwd').read()",
    "write a file": "open('/tmp/escaped', 'w').write('x')",
    "socket": "import socket\n socket.create_connection(('127.0.0.1', 1))",
    "urllib": "import urllib.request\n urllib.request.urlopen('http://127.0.0.1')",
    "os.system": "import os\n os.system('true')",
    "os.environ": "import os\n return os.environ['PATH']",
    "subprocess": "import subprocess\n subprocess.run('true')",
    "__import__": "return __import__('os').system('true')",
    "builtins": "import builtins\n return builtins.open('/etc/passwd')",
    "eval": "return eval('14')",
    "huge output": "while True: print('x' * 1000)",
    "one huge print": "print('x' * 10 ** 7)\n return sum(x for x in xs if x > 4)",
    "long sleep": "import time\n time.sleep(30)",
    "input": "return input()",
    "SystemExit": "raise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "colliding keys": "return {i * (2 ** 61 - 1): 0 for i in range(30000)}",
    "nest that explodes when hashed": "x = (1,)\n for i in range(60): x = (x, x)\n return {x: 1}",
    "nest that explodes when shown": "x = [1]\n for i in range(60): x = [x, x]\n return x",
    "deep nest": "x = []\n for i in range(100000): x = [x]\n return x",
    "itself inside": "x = []\n x.append(x)\n return x",
}
AS_TEXT = {  # name: the whole program
    "nothing": "",
    "invalid syntax": "def f(:",
    "a sentence": "Sure! Here is the function.",
    "bad indentation": "def f(xs):\nreturn 1",
    "a million characters in a comment": "#" + "a" * 1_000_000,
    "a million characters in a sum": "x = " + "1+" * 500_000 + "1",
    "a million brackets": "[" * 1_000_000,
    "a million characters in a name": "a" * 1_000_000,
    "null bytes": "def f(xs):\0 return 14",
    "lone surrogates": "def f(xs): return '\ud800'",
    "open quotes": RIGHT + "\n'''",
    "open bracket": RIGHT + "\n(",
    "loop on loading": "while True: pass",
    "exit on loading": RIGHT + "\nraise SystemExit(0)",
    "value of its own last line": RIGHT.replace("> 4", "> 5") + "\n'ok'",
    "value past its end": RIGHT.replace("> 4", "> 5") + "\n'ok' \\",
    "value that explodes on leaving": "x = (1,)\nfor i in range(60): x = (x, x)\n{x: 1}",
    "return of a value that explodes": RIGHT + "\nx = (1,)\nfor i in range(60): x = (x, x)\nreturn {x: 1}",
    "return of a word": RIGHT.replace("> 4", "> 5") + "\nreturn 'ok'",
    "return before the tests": RIGHT + "\nreturn",
    "exit in a block": RIGHT + "\nif 1:\n for x in 1, 2:\n  print('ok')\n  return 'ok'",
    "open block": RIGHT + "\nif 0:\n #",
    "open block, bent line": RIGHT + "\nif 0: \\",
    "open condition, bent line": RIGHT + "\n0 and \\",
    "open decorator": RIGHT + "\n@sum",
    "goes on with the judge, indented": " f = sum\n" + RIGHT,
    "goes on with the judge, in brackets": "or 'ok')[:9])\n" + RIGHT,
    "names that nobody knows": "for i in range(99):\n try: nobody\n except NameError: pass\n" + RIGHT,
}
FAKES = {  # each would pass if a test were only "is the expression truthy?"
    "fake __eq__": "class A:\n def __eq__(self, o): return True\ndef f(xs): return A()",
    "fake __eq__ and __repr__": "class A:\n def __eq__(s, o): return True\n def __repr__(s): return '14'\n"
                                "def f(xs): return A()",
    "fake __eq__ in a list subclass": "class A(list):\n def __eq__(s, o): return True\ndef f(xs): return A()",
    "rebound type": "class A:\n def __eq__(s, o): return True\n"
    "type = lambda x: int\nisinstance = lambda x, t: True\n"
                    "def f(xs): return A()",
    "rebound everything": "len = all = zip = list = lambda *a: True\nint = float = True\ndef f(xs): return 1",
    "prints what is expected": "def f(xs): print('ok', 14, 0)",
    "rebound print": "def print(*a): return 'ok'\ndef f(xs): return 1",
    "hunts the judge by name": "def f(xs): return 1\nfor n in list(locals()): exec(n + ' = lambda *a: None')",
    "hunts the judge when called": "def f(xs):\n for n in list(globals()): exec(f'global {n}; {n}=min')",
}  # fmt: skip
HOSTILE = {**{k: f"def f(xs):\n {v}" for k, v in IN_BODY.items()}, **AS_TEXT, **FAKES}


def test_right_passes_and_wrong_names_the_first_failing_test() -> None:
    assert run_tests(RIGHT, TESTS).outcome == "pass"
    wrong = run_tests(RIGHT.replace("> 4", ">= 4"), TESTS)
    assert (wrong.outcome, wrong.reason) == ("fail", "test 1 (f([1, 4, 5, 9]) == 14): got 18")
    late = run_tests("def f(xs): return 14 if xs else None", TESTS)
    assert late.reason == "test 2 (f([]) == 0): got None"
    raised = run_tests("def f(xs): return 14 if xs else xs[0]", TESTS)
    assert raised.reason == "test 2 (f([]) == 0): IndexError: list index out of range"
    assert run_tests("x = 1 / 0", TESTS).reason == "program: ZeroDivisionError: division by zero"
    in_repr = "class A:\n def __repr__(s): return [][0]\ndef f(xs): return A()"
    assert run_tests(in_repr, TESTS).reason.startswith("test 1 (f([1, 4, 5, 9]) == 14): IndexError")
    assert run_tests("raise", TESTS).reason.startswith("program: RuntimeError")
    assert run_tests("def f(xs):", TESTS).reason.startswith("program: SyntaxError")
    assert run_tests(RIGHT, [*TESTS, "f([]) == max([])"]).reason.startswith("tests: ValueError")
    assert run_tests(RIGHT + "\nreturn 0", TESTS).reason.startswith("program: it ends before its tests")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_with_a_reason_inside_a_second_and_the_next_check_works(name: str) -> None:
    run_tests(RIGHT, TESTS)
    start = time.perf_counter()
    got = run_tests(HOSTILE[name], TESTS)
    seconds = time.perf_counter() - start
    assert got.outcome == ("abstain" if "subclass" in name else "fail")
    assert 0 < len(got.reason) <= 120 and got.reason.isprintable()
    assert seconds < 1.0
    assert run_tests(RIGHT, TESTS).outcome == "pass"
    assert not os.path.exists("/tmp/escaped")


@pytest.mark.parametrize(
    "name", ["endless loop", "list growth", "deep recursion", "huge output", "fake __eq__"]
)
def test_reasons_are_the_same_each_time(name: str) -> None:
    assert len({run_tests(HOSTILE[name], TESTS) for _ in range(3)}) == 1


def test_the_reason_says_which_limit() -> None:
    assert run_tests(HOSTILE["endless loop"], TESTS).reason.endswith("time limit exceeded")
    assert run_tests(HOSTILE["string doubling"], TESTS).reason.endswith("memory or output limit exceeded")
    assert run_tests(HOSTILE["deep recursion"], TESTS).reason.endswith("too many nested calls")
    assert "limit" in run_tests(HOSTILE["one huge print"], TESTS).reason


def test_the_limits_are_settings() -> None:
    deep = "def f(n): return 0 if n == 0 else f(n - 1)"
    with Sandbox(Limits(depth=50)) as shallow, Sandbox(Limits(depth=900)) as roomy:
        assert shallow.run_tests(deep, ["f(200) == 0"]).outcome == "fail"
        assert roomy.run_tests(deep, ["f(200) == 0"]).outcome == "pass"
    with Sandbox(Limits(memory=4 << 20)) as small, Sandbox(Limits(memory=64 << 20)) as large:
        assert small.run_tests("def f(n): return len([0] * n)", ["f(10 ** 6) == 10 ** 6"]).outcome == "fail"
        assert large.run_tests("def f(n): return len([0] * n)", ["f(10 ** 6) == 10 ** 6"]).outcome == "pass"


def test_nothing_leaks_from_one_check_to_the_next() -> None:
    leaky = "import math, random\nleft = 14\nsum = lambda xs: 14\nlen = max\nrandom.seed(3)\n" + RIGHT
    for _ in range(3):
        run_tests(leaky, TESTS)
        assert run_tests("def f(xs): return left", TESTS).reason.endswith(
            "NameError: name 'left' is not defined"
        )
        assert run_tests(RIGHT, TESTS).outcome == "pass"
        assert run_tests("def f(xs): return len(xs)", ["f([7, 7]) == 2"]).outcome == "pass"
    drawn = [
        run_tests("import random\ndef f(): return random.random()", ["f() == 2"]).reason for _ in range(2)
    ]
    assert drawn[0] == drawn[1] and "got 0." in drawn[0]


@pytest.mark.parametrize("value, expected, same", [
    ("3", "3", True), ("3.0", "3", True), ("True", "1", True), ("'3'", "3", False), ("None", "0", False),
    ("[1, 2]", "[1, 2]", True), ("(1, 2)", "[1, 2]", False), ("[1, '2']", "[1, 2]", False),
    ("[]", "[]", True),
    ("[[1], (2,)]", "[[1], (2,)]", True), ("[[1], [2]]", "[[1], (2,)]", False), ("'ab'", "'ab'", True),
    ("{'a': [1]}", "{'a': [1]}", True), ("{'a': [1], 'b': 2}", "{'a': [1]}", False),
    ("{}", "{'a': 1}", False),
    ("{1, 2}", "set((1, 2))", True), ("{1}", "set((1, 2))", False), ("frozenset([1])", "{1}", True),
    ("None", "None", True), ("-2", "-2", True), ("b'a'", "b'a'", True), ("range(3)", "[0, 1, 2]", False),
    ("A()", "{1}", False), ("[A()]", "[1]", False), ("[A()]", "['a']", False), ("{A()}", "{1}", False),
    ("{A(): 1}", "{1: 1}", False), ("(A(),)", "(1,)", False), ("{(1, A())}", "{(1, 1)}", False),
    ("A()", "None", False), ("A()", "'a'", False), ("A()", "True", False), ("[[A()]]", "[['a']]", False),
])  # fmt: skip
def test_equality_is_pythons_but_of_data_only(value: str, expected: str, same: bool) -> None:
    program = (
        f"class A:\n def __eq__(s, o): return True\n def __hash__(s): return hash(1)\ndef f(): return {value}"
    )
    want = "pass" if same else "fail"
    assert run_tests(program, [f"f() == {expected}"]).outcome == want
    assert run_tests(program, [f"{expected} == f()"]).outcome == want


def test_a_test_of_another_form_must_be_exactly_true() -> None:
    assert (
        run_tests("def f(x): return x", ["f(3) < 4", "f(True)", "not f(0)", "f(2) == f(1) + 1"]).outcome
        == "pass"
    )
    assert run_tests("def f(x): return x", ["f(1)"]).outcome == "fail"
    assert (
        run_tests("class A:\n def __bool__(s): return True\ndef f(x): return A()", ["f(1)"]).outcome == "fail"
    )


def test_the_words_of_a_test_reach_the_program_unchanged() -> None:
    for text in ("SECRET", "EXPECTED", "NSECRET(0", "\\0", "\\n"):
        assert (
            run_tests("def f(x): return x", [f"f('{text}') == '{text}'", f"f('{text}') < 'zz'"]).outcome
            == "pass"
        )


@pytest.mark.parametrize("test", [
    "f() == 0", "f(1) == -2", "f([]) == []", "f([1, -2], 3) == [-4, 50]", "g_1([0], []) == 12", "not(1) == 0",
    "None(1) == 2", "f(007) == 1", "f(1) == 2 ", "f(1)==2", "f( 1) == 2", "f(1,) == 2", "f([1, 2], [3]) == [4, [5]]",
    "f(1) == 2 == 3", "f(1)(2) == 3", "1 == f(1)", "f(1) == 2)", "f(1", "lambda(1) == 1", "f(-0) == 1",
])  # fmt: skip
def test_the_short_way_to_read_a_test_finds_what_the_parser_finds(
    test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> tuple[str, str, str] | str:
        try:
            return sandbox._form(test)
        except SyntaxError:
            return "no expression"

    short = read()
    monkeypatch.setattr(sandbox, "_USUAL", re.compile("(?!)"))
    assert short == read()


def test_a_check_takes_less_than_a_1500th_of_a_second_of_processor_time() -> None:
    """Host and worker together; the clock on the wall of a busy machine proves nothing (`make bench` shows it)."""
    rng, took = Random(0), []
    with Sandbox() as box:
        for _ in range(4):
            work = [make_prompt(rng, "programs", 1 + i % 3, "train").check for i in range(250)]
            box.run_tests(RIGHT, TESTS)
            both = [psutil.Process(), *psutil.Process().children()]
            before = [p.cpu_times() for p in both]
            assert {box.run_tests(c.answer, c.items).outcome for c in work} == {"pass"}
            used = zip(before, (p.cpu_times() for p in both), strict=True)
            took.append(sum(b.user - a.user + b.system - a.system for a, b in used) / len(work))
    assert min(took) < 1 / 1500


def test_what_cannot_be_checked_abstains() -> None:
    assert run_tests("def f():\n yield 1", ["list(f()) == [1]"]).outcome == "abstain"
    posing = "raise NotImplementedError('The monty syntax parser does not yet support tests')"
    assert run_tests(posing, TESTS).outcome == "fail"
    assert run_tests(RIGHT, []).outcome == "abstain"
    for test in ("", "f(1) = 2", "f(", "x = 1", "f()\nf()", "\0", "(" * 10_000):
        assert run_tests(RIGHT, [TESTS[0], test]).reason.startswith("test 2 is not a Python expression")


def test_a_killed_worker_is_replaced() -> None:
    with Sandbox() as box:
        assert box.run_tests(RIGHT, TESTS).outcome == "pass"
        with box._session() as session:
            pid = session.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert box.run_tests(RIGHT, TESTS).outcome == "pass"
        box.close()
        assert box.run_tests(RIGHT, TESTS).outcome == "pass"


def test_threads_may_share_it() -> None:
    got: list[str] = []

    def work() -> None:
        got.extend(run_tests(RIGHT, TESTS).outcome for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert got == ["pass"] * 80


FORKED = """
import os, sys
if {used}:
    import torch
from llama3_lab.pipeline.sandbox import run_tests
check = lambda: run_tests("def f(): return 3", ["f() == 3"]).outcome == "pass"
if {used}:
    assert check()
child = os.fork()
if child == 0:
    try:
        ok = check() and check() and not {used}
    except ValueError as error:
        ok = {used} and "fork" in str(error)
    sys.exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"
assert check() and check()
print("fine")
"""


@pytest.mark.parametrize("used", [False, True])
def test_a_fork_before_the_first_check_is_free_and_one_after_it_is_told_so(used: bool) -> None:
    """In a process of its own, with torch imported too; both ends clean up as they leave."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED.format(used=used)], timeout=60,
                          capture_output=True, text=True, cwd=Path(__file__).parents[1],
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr


def test_a_missing_interpreter_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTY_BIN", "/nowhere/monty")
    with Sandbox() as box, pytest.raises(ValueError, match="does not start.*reinstall pydantic-monty"):
        box.run_tests(RIGHT, TESTS)


def test_one_line() -> None:
    assert one_line("a\n b\t\x00c\ud800") == "a b ?c?"
    assert len(one_line("x" * 10**6)) == 120


TOKENS = st.lists(st.sampled_from([
    "def f(xs):", "\n", "\n ", "\n  ", "return ", "xs", "x", "for x in xs", "if ", "[", "]", "(", ")", " > ",
    "4", "sum",
    "while True:", "try:", "except:", "finally:", "raise", "lambda: ", "'", '"""', "\\", "=", "**",
    "9" * 20, "print",
    "import os", "class A:", "del x", "yield", "async ", "await ", "global f", "@", "match xs:",
    "case _:", "f'{xs}'",
]), max_size=25).map("".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(TOKENS, TOKENS.map((RIGHT + "\n").__add__), st.text(max_size=80),
                 st.text(st.characters(), max_size=20)))  # fmt: skip
def test_no_program_text_raises(program: str) -> None:
    got = run_tests(program, ("f([1, 4, 5, 9]) == 15",))  # no mixture of these tokens makes it
    assert got.outcome in ("fail", "abstain")
    assert len(got.reason) <= 120 and got.reason.isprintable()


@pytest.mark.skipif(not MBPP.exists(), reason=f"{MBPP.name} is not there")
def test_most_reference_programs_of_mbpp_pass() -> None:
    """399 of 427 (93 %) pass, measured. The rest needs modules that are missing (heapq, operator, cmath,
    array), or `iter` and match objects as truth, or 10^4 times more work than a small function.
    """
    rows = json.loads(MBPP.read_text(encoding="utf-8"))
    passed = 0
    for row in rows:
        program = "\n".join([*row["test_imports"], row["code"].replace("\r", "")])
        tests = [t.strip().removeprefix("assert ") for t in row["test_list"]]
        passed += run_tests(program, tests).outcome == "pass"
    assert passed / len(rows) > 0.90
