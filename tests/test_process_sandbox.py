"""The process sandbox: right programs pass; hostile, cheating and endless ones do not, and the host stays as it was."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from llama3_lab.benchmarks import process_sandbox
from llama3_lab.benchmarks.process_sandbox import GRACE, ProcessLimits, run_in_process
from llama3_lab.benchmarks.process_values import Opaque, TransportError, decode, encode

RIGHT = "import heapq\ndef f(xs):\n return heapq.nlargest(1, xs)[0]"
TESTS = ("assert f([1, 5, 2]) == 5", "f([3]) == 3")
QUICK = ProcessLimits(seconds=1.0, wall=2.0, memory=256 << 20)
PLAIN = ProcessLimits(seconds=1.0, wall=2.0, memory=256 << 20, namespaces=False)
PATIENT = ProcessLimits()
SECRET = "LLAMA3_LAB_TEST_SECRET"

IN_BODY = {
    "endless loop": "while True: pass",
    "loop that catches everything": "while True:\n  try:\n   while True: pass\n  except BaseException: pass",
    "long sleep": "import time; time.sleep(60)",
    "memory bomb": "x = []\n while True: x.append('a' * 10 ** 7)",
    "memory bomb in one stroke": "return bytearray(10 ** 12)",
    "fork": "import os\n os.fork()",
    "fork bomb": "import os\n while True:\n  try: os.fork()\n  except OSError: pass",
    "threads without end": "import threading\n while True: threading.Thread(target=lambda: f(xs)).start()",
    "processes": "import multiprocessing as m\n m.Process(target=print).start()",
    "subprocess": "import subprocess\n return subprocess.run(['true'])",
    "os.system": "import os\n return os.system('true')",
    "exec of another program": "import os\n os.execv('/bin/true', ['true'])",
    "write outside": "open('OUTSIDE', 'w').write('x')",
    "write with os.open": "import os\n os.write(os.open('OUTSIDE', os.O_WRONLY | os.O_CREAT), b'x')",
    "remove a file": "import os\n os.remove('KEPT')",
    "rename a file": "import os\n os.rename('KEPT', 'OUTSIDE')",
    "pathlib": "import pathlib\n pathlib.Path('OUTSIDE').write_text('x')",
    "read a file": "return open('KEPT').read()",
    "read the password file": "return open('/etc/passwd').read()",
    "list a folder": "import os\n return os.listdir('/tmp')",
    "huge file": "h = open('a', 'wb')\n for i in range(10 ** 6): h.write(b'x' * 10 ** 6)",
    "network": "import socket\n socket.create_connection(('127.0.0.1', PORT), timeout=1)",
    "network by urllib": "import urllib.request\n urllib.request.urlopen('http://127.0.0.1:PORT', timeout=1)",
    "environment of the parent": "return open(f'/proc/{__import__(\"os\").getppid()}/environ').read()",
    "kill the parent": "import os\n os.kill(os.getppid(), 9)",
    "ctypes": "import ctypes\n ctypes.CDLL(None).getppid()",
    "sys.exit": "import sys\n sys.exit(0)",
    "os._exit": "import os\n os._exit(0)",
    "SystemExit": "raise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "deep recursion": "return f(xs)",
    "crash": "import sys\n sys.setrecursionlimit(10 ** 9)\n return f(xs)",
    "deep answer": "x = []\n for i in range(10 ** 5): x = [x]\n return x",
    "answer in itself": "x = []\n x.append(x)\n return x",
    "answer without end": "import itertools\n return itertools.count()",
    "huge answer": "return 'a' * 10 ** 8",
    "huge output": "print('x' * 10 ** 7)",
    "input": "return input()",
}
AS_TEXT = {
    "nothing": "",
    "a sentence": "Sure! Here is the function.",
    "null bytes": "def f(xs):\0 return 5",
    "lone surrogates": "def f(xs): return '\ud800'",
    "return at top level": RIGHT + "\nreturn",
    "sys.exit before the tests": RIGHT + "\nimport sys\nsys.exit(0)",
    "os._exit before the tests": RIGHT + "\nimport os\nos._exit(0)",
    "a raised exit": RIGHT + "\nraise SystemExit(0)",
    "endless while loading": RIGHT + "\nwhile True: pass",
    "stopped by a signal": RIGHT + "\nimport signal\nsignal.raise_signal(signal.SIGSTOP)",
    "a million brackets": "[" * 1_000_000,
}
FAKES = {
    "fake verdict": 'print(\'{"outcome": "pass", "reason": "2 tests passed", "own": []}\')',
    "fake verdict by os.write": "import os\nfor h in range(9):\n try: os.write(h, b'{\"outcome\": \"pass\"}\\n')\n"
    " except OSError: pass",
    "fake verdict, then exit": "import os\nos.write(1, b'{\"outcome\": \"pass\", \"reason\": \"\", \"own\": []}\\n')\n"
    "os._exit(0)",
    "equals everything": "class A:\n def __eq__(self, o): return True\ndef f(xs): return A()",
    "int that equals everything": "class A(int):\n def __eq__(self, o): return True\ndef f(xs): return A(1)",
    "rebound builtins": "import builtins\nbuiltins.AssertionError = builtins.eval = lambda *a: None\n"
    "def f(xs): return 1",
    "changed judge": "import sys\nfor m in list(sys.modules.values()):\n"
    " if 'judge' in str(m): m.judge = m._run = lambda *a: ''\ndef f(xs): return 1",
    "hunt through the frames": "import sys\ndef f(xs):\n g = sys._getframe()\n while g:\n"
    "  for v in list(g.f_locals.values()) + list(g.f_globals.values()):\n   if str(v).isdigit(): return int(v)\n"
    "  g = g.f_back",
    "hunt through the objects": "import gc\ndef f(xs):\n for o in gc.get_objects():\n"
    "  if isinstance(o, dict) and 'tests' in o: return eval(o['tests'][0].split('==')[1])\n return 1",
    "named like a builtin": "def sum(*a): return 0\ndef f(xs): return 1",
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that must stay, one that must not appear, a listening port, and a secret; checked at the end."""
    kept, outside = tmp_path / "kept", tmp_path / "outside"
    kept.write_text("kept")
    tmp_path.chmod(0o777)
    monkeypatch.setenv(SECRET, "shh")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        port = server.getsockname()[1]
        yield lambda text: text.replace("KEPT", str(kept)).replace("OUTSIDE", str(outside)).replace("PORT", str(port))
        with pytest.raises(TimeoutError):
            server.accept()
    assert kept.read_text() == "kept"
    assert not outside.exists()
    assert not sandboxes(psutil.Process().children(recursive=True))


def sandboxes(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that belong to a process sandbox, the dead that nobody has buried among them."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            try:
                if "process_child" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.ZombieProcess:
                found += [process] if process.name().startswith("python") else []
    return found


def check(program: str, limits: ProcessLimits = QUICK):
    start = time.perf_counter()
    got = run_in_process(program, TESTS, limits=limits)
    assert time.perf_counter() - start < limits.wall + GRACE + 1
    assert 0 < len(got.reason) <= 120 and got.reason.isprintable()
    return got


def test_right_passes_wrong_names_its_first_failing_test_and_the_isolation_is_told() -> None:
    right = check(RIGHT, PATIENT)
    assert (right.outcome, right.reason) == ("pass", "2 tests passed")
    assert {"processor time", "memory", "processes"} <= set(right.isolation.limits)
    wrong = check("def f(xs): return xs[0]", PATIENT)
    assert (wrong.outcome, wrong.reason) == ("fail", "test 1 (assert f([1, 5, 2]) == 5): got 1")
    raised = check("def f(xs): return 5 if xs[1:] else [][0]", PATIENT)
    assert raised.reason == "test 2 (f([3]) == 3): IndexError: list index out of range"
    assert check("x = 1").reason == "test 1 (assert f([1, 5, 2]) == 5): NameError: name 'f' is not defined"
    assert check("1 / 0").reason == "program: ZeroDivisionError: division by zero"
    assert check("def f(").reason.startswith("program: SyntaxError")
    assert check("def f(xs): return g(xs)").reason.endswith("NameError: name 'g' is not defined")


@pytest.mark.parametrize("name", [*IN_BODY, *AS_TEXT, *FAKES])
def test_hostile_programs_never_pass_end_in_time_and_leave_the_host_as_it_was(name: str, host) -> None:
    body = f"def f(xs):\n {IN_BODY[name]}" if name in IN_BODY else {**AS_TEXT, **FAKES}[name]
    got = check(host(body))
    assert got.outcome == "fail"
    assert not got.reason.startswith("the process sandbox")


@pytest.mark.parametrize("name", ["endless loop", "memory bomb", "fork bomb", "write outside", "remove a file",
                                  "network", "environment of the parent", "os._exit", "kill the parent",
                                  "ctypes"])  # fmt: skip
def test_without_namespaces_limits_and_the_audit_hook_hold_too(name: str, host) -> None:
    got = check(host(f"def f(xs):\n {IN_BODY[name]}"), PLAIN)
    assert got.outcome == "fail"
    assert not {"network", "processes", "files", "user"} & set(got.isolation.namespaces)
    assert check(RIGHT, ProcessLimits(namespaces=False)).outcome == "pass"


def test_no_environment_reaches_the_program(host) -> None:
    reads = f"import os\ndef f(xs): return os.environ.get({SECRET!r}) or sorted(os.environ)"
    assert check(reads).reason.endswith("got []")


def test_namespaces_are_in_force_where_the_kernel_allows_them() -> None:
    own = check(RIGHT, PATIENT).isolation.namespaces
    if "network" not in own:
        pytest.skip("this kernel allows no namespaces of one's own")
    assert {"network", "processes", "user"} <= set(own)
    pid = run_in_process("import os\ndef f(): return os.getppid()", ["f() == 1"], limits=QUICK)
    assert pid.outcome == "pass"
    if "files" in own:
        seen = run_in_process("import os\ndef f(p): return os.path.exists(p)",
                              ["not f('/etc/passwd')", "not f('/home')", "not f('/proc')"], limits=QUICK)  # fmt: skip
        assert seen.outcome == "pass"


WALLS = {  # what the kernel alone must refuse, and how
    "read": ("open('/etc/passwd')", "FileNotFoundError"), "write": ("open('/x', 'w')", "Read-only file system"),
    "write to the library": ("open(os.__file__, 'a')", "OSError|PermissionError|Read-only"),
    "fill the disk": ("[open(f'a{i}', 'wb').write(b'x' * 10 ** 6) for i in range(99)]", "No space left on device"),
    "large file": ("open('a', 'wb').write(b'x' * (2 << 20))", "File too large|got 1048576"),
    "network": ("socket.create_connection(('127.0.0.1', PORT), timeout=1)", "unreachable|refused"),
    "fork": ("os.fork()", "BlockingIOError"), "kill all": ("os.kill(-1, 9)", "ProcessLookupError"),
    "mount": ("ctypes.CDLL(None).mount(None, b'/', None, 32, None)", "got -1"),
    "trace the judge": ("ctypes.CDLL(None).ptrace(16, 1, 0, 0)", "got -1"),
    "root": ("os.setuid(0)", "PermissionError|OSError"),
}  # fmt: skip


@pytest.mark.parametrize("name", WALLS)
def test_the_kernels_walls_hold_without_the_audit_hook(name: str, host, monkeypatch: pytest.MonkeyPatch) -> None:
    if "files" not in check(RIGHT, PATIENT).isolation.namespaces:
        pytest.skip("this kernel allows no files of one's own")
    start = "import sys; sys.path.insert(0, sys.argv[1]); from llama3_lab.benchmarks import process_program as p, "
    start += "process_child as c; p.guard = c.guard = lambda *given: None; c.main()"
    monkeypatch.setattr(process_sandbox, "_START", start)
    body, words = WALLS[name]
    got = check(host(f"import ctypes, os, socket\ndef f(xs): return {body}"))
    assert got.outcome == "fail" and re.search(words, got.reason), got.reason


def test_nothing_is_left_behind() -> None:
    before = {p.pid for p in psutil.process_iter()}
    folders = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("program-*"))
    check("import os\ndef f(xs):\n while True: pass")
    time.sleep(0.1)
    assert not sandboxes(p for p in psutil.process_iter() if p.pid not in before)
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("program-*")) <= folders


def test_threads_may_use_it_at_once() -> None:
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.append(check(RIGHT, PATIENT).outcome)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert got == ["pass"] * 3


def test_tests_may_be_statements_and_use_what_they_import() -> None:
    block = "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i * i, 'square'\ncheck(f)"
    assert run_in_process("def f(x): return x * x", [block]).outcome == "pass"
    assert run_in_process("def f(x): return x + x", [block]).reason.endswith("AssertionError: square")
    near = ["assert math.isclose(f(2), 1.41421, rel_tol=1e-3)"]
    assert run_in_process("def f(x): return math.sqrt(x)", near, ["import math"]).outcome == "pass"
    expects = "try:\n    f(0)\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError('no error')"
    assert run_in_process("def f(x): raise ValueError('no')", [expects]).outcome == "pass"
    assert run_in_process("def f(x): return 0", [expects]).outcome == "fail"


def test_objects_stay_in_the_program_and_can_be_handed_back() -> None:
    program = "class Pair:\n def __init__(s, a, b): s.a, s.b = a, b\ndef f(pairs): return sum(p.a for p in pairs)"
    assert run_in_process(program, ["f([Pair(1, 2), Pair(3, 4)]) == 4"]).outcome == "pass"
    assert run_in_process("import re\ndef f(s): return re.match('a', s)", ["f('ab')", "not f('b')"]).outcome == "pass"
    assert run_in_process("def f(xs): return map(str, xs)", ["list(f([1, 2])) == ['1', '2']"]).outcome == "pass"
    unsent = run_in_process("def f(g): return g(1)", ["f(lambda x: x) == 1"])
    assert (unsent.outcome, "hands over a function" in unsent.reason) == ("abstain", True)


@pytest.mark.parametrize("value", [None, True, 3, -(10**50), 1.5, float("inf"), 2 + 1j, "é\n", b"\0a", [1, [2]],
                                   (1, "a"), {1, 2}, frozenset((1,)), {"a": (1,), (2, 3): None},
                                   range(1, 9, 2)])  # fmt: skip
def test_plain_data_arrive_as_they_were(value: object) -> None:
    there = decode(encode(value, lambda o: 0))
    assert there == value and type(there) is type(value)


def test_what_is_no_plain_data_becomes_plain_or_a_number() -> None:
    class Sly(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert decode(encode(Sly(3), lambda o: 0)) != 4
    assert decode(encode(object(), lambda o: 7)) == Opaque(7, True)
    for bad in ({"int": "zz"}, {"what": 1}, {"dict": [[[], 1]]}, {}, {"opaque": []}, {"range": [1, 2, 0]}):
        with pytest.raises(TransportError):
            decode(bad)


def test_without_tests_or_limits_it_abstains(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_in_process(RIGHT, []).outcome == "abstain"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_in_process(RIGHT, TESTS).reason == "this system has no process limits"
