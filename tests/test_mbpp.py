"""Programs against tests: MBPP's own rows, HumanEval-style rows, programs in answers, cheats, and which sandbox ran."""

from __future__ import annotations

import ast
import json
import os
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from llama3_lab.benchmarks import checkers, humaneval, mbpp, program_checks
from llama3_lab.benchmarks.code_blocks import complete, defined, find_program
from llama3_lab.benchmarks.process_sandbox import Isolation, ProcessLimits, ProcessResult
from llama3_lab.benchmarks.program_checks import ProgramChecker, ProgramResult, check_program, read_suite
from llama3_lab.benchmarks.sources import Row, Source
from llama3_lab.pipeline.sandbox import Limits
from llama3_lab.records import Candidate, Check, Judged, Prompt
from llama3_lab.world.corpus import make_prompt

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(os.environ.get("LLAMA3_LAB_SHARED", ROOT.parent / "shared")) / "data" / "mbpp" / "sanitized-mbpp.json"
needs_rows = pytest.mark.skipif(not ROWS.exists(), reason=f"{ROWS.name} is not there")
SQUARE = "def square(x):\n    return x * x"
TESTS = ("assert square(3) == 9", "assert square(-2) == 4")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return mbpp.load_mbpp(Source(str(ROWS), "train"))


@needs_rows
def test_reference_programs_pass_in_less_than_a_minute_and_each_says_where_it_ran(prompts: list[Prompt]) -> None:
    start = time.perf_counter()
    got = [mbpp.check(p, f"Here it is:\n\n```python\n{p.check.answer}\n```\n\nIt works.") for p in prompts]
    seconds = time.perf_counter() - start
    assert len(got) == 427
    assert sum(r.outcome == "pass" for r in got) / len(got) >= 0.98
    assert seconds < 60
    ran = Counter(r.ran for r in got)
    assert ran["monty"] > 380 and ran["process"] < 40 and not ran["none"]


def changed(program: str, names: frozenset[str], how: str) -> str:
    tree = ast.parse(program)
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names):
        if how == "pass":
            function.body = [ast.Pass()]
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                node.value = ast.UnaryOp(ast.USub(), node.value)
    return ast.unparse(ast.fix_missing_locations(tree))


@needs_rows
@pytest.mark.parametrize("how", ["sign", "pass"])
def test_programs_with_the_sign_flipped_or_no_body_fail(how: str, prompts: list[Prompt]) -> None:
    """Of the 427 flipped ones four still meet their tests: −True holds, and in a recursion two flips are none.

    Every second program is enough here.
    """
    wanted = [read_suite(p.check.items).wanted for p in prompts]
    flawed = [changed(p.check.answer, names, how) for p, names in zip(prompts, wanted, strict=True)]
    got = [mbpp.check(p, text).outcome for p, text in list(zip(prompts, flawed, strict=True))[::2]]
    assert got.count("fail") / len(got) >= 0.98


@needs_rows
def test_the_published_split_holds_and_its_test_part_never_trains(prompts: list[Prompt]) -> None:
    assert {p.split for p in prompts} == {"train", "validation", "test"}
    assert all((p.split == "test") == (11 <= int(p.id.split("-")[-1]) <= 510) for p in prompts)
    with pytest.raises(ValueError, match="test split, which never trains"):
        mbpp.load_mbpp(Source(str(ROWS), "train"), training=True)
    train = mbpp.load_mbpp(Source(str(ROWS), "train"), training=True, splits=["train", "validation"])
    assert len(train) == 427 - sum(p.split == "test" for p in prompts) > 100
    assert all(p.check.items[-1] in p.text for p in train)


def test_a_row_that_lacks_something_is_named(tmp_path: Path) -> None:
    row = {"task_id": 700, "prompt": "Square.", "code": SQUARE, "test_list": list(TESTS), "test_imports": []}
    path = tmp_path / "rows.jsonl"
    for column, value, words in (
        ("task_id", "x", "'task_id' is 'x'"), ("test_list", "assert", "a list of texts is needed"),
        ("test_list", ["assert ("], "test 1 is no Python"), ("code", "", "'code' is ''; a text"),
        ("prompt", None, "'prompt'"),
    ):  # fmt: skip
        path.write_text(json.dumps(row) + "\n" + json.dumps({**row, column: value}) + "\n")
        with pytest.raises(ValueError, match=f"rows.jsonl:2: .*{words}"):
            mbpp.load_mbpp(Source(str(path), "train"))
    full = {"task_id": 3, "text": "Square.", "code": SQUARE, "test_list": list(TESTS), "test_setup_code": "import math"}
    path.write_text(json.dumps(full) + "\n")
    (made,) = mbpp.load_mbpp(Source(str(path), "test"))
    assert made.split == "test" and made.check.items == ("import math", *TESTS)


# -- the program in an answer


@pytest.mark.parametrize("answer", [
    SQUARE, f"```python\n{SQUARE}\n```", f"Sure!\n```py\n{SQUARE}\n```\nDone.", f"```\n{SQUARE}\n```",
    f"~~~python\n{SQUARE}\n~~~", f"Here:\n\n```python\n{SQUARE}", f"[PYTHON]\n{SQUARE}\n[/PYTHON]",
    f"[BEGIN]\n{SQUARE}\n[DONE]\nmore",
    f"Here is the code:\n\n{SQUARE}\n\nThis multiplies x by itself.",
    f"```python\n{SQUARE}\n```\n```python\nprint(square(3))\n```",
    f"```python\nimport os\n```\nor\n```python\n{SQUARE}\n```",
    f"```bash\npip install x\n```\n```python\n{SQUARE}\n```",
    f"First:\n```python\ndef square(x):\n    return x\n```\nThat is wrong. Fixed:\n```python\n{SQUARE}\n```",
    f"1. Do:\n   ```python\n   {SQUARE.replace(chr(10), chr(10) + '   ')}\n   ```", f"```python\r\n{SQUARE}\r\n```",
    f"```python\n{SQUARE}\n\nif __name__ == '__main__':\n    print(square(int(input())))\n```",
    "```python\ndef mul(a, b):\n    return a * b\n```\nThen:\n```python\ndef square(x):\n    return mul(x, x)\n```",
])  # fmt: skip
def test_the_program_is_found_in_every_common_wrapping(answer: str) -> None:
    assert check_program(find_program(answer, {"square"}), TESTS).outcome == "pass"


@pytest.mark.parametrize("answer", ["", "I cannot do that.", "```\n```", "```python\nprint('hi')\n```",
                                    "square(x) = x²", "`square`", "return 3"])  # fmt: skip
def test_an_answer_without_the_program_fails(answer: str) -> None:
    got = check_program(find_program(answer, {"square"}), TESTS)
    assert got.outcome == "fail" and got.reason


@pytest.mark.parametrize("text", ["1+" * 50_000 + "1", "-" * 50_000 + "1", "(" * 50_000, "a" + ".b" * 50_000,
                                  "not " * 30_000 + "1", "[" * 99 + "]" * 99, "if 1:\n" * 300, "x" * 300_000,
                                  "```python\n" * 5_000, "def f():\n" * 3_000, "\0", "\ud800"])  # fmt: skip
def test_no_text_is_too_long_or_too_deep_to_look_at(text: str) -> None:
    start = time.process_time()
    assert check_program(find_program(text, {"square"}), TESTS).outcome == "fail"
    assert time.process_time() - start < 3.0


def test_names_that_a_program_defines() -> None:
    assert defined("import os.path as p\nfrom a import b\nx, y = 1, 2\ndef f(z): w = 1\nclass C: pass") == set("pbxyfC")
    assert defined("def f(") == set()


# -- which sandbox runs, and what a verdict says of it


@pytest.mark.parametrize("program, tests, ran, outcome", [
    (SQUARE, TESTS, "monty", "pass"), ("def square(x):\n return x + x", TESTS, "monty", "fail"),
    ("import heapq\ndef f(xs):\n return heapq.nsmallest(1, xs)", ("assert f([3, 2]) == [2]",), "process", "pass"),
    ("def f(n):\n yield from range(n)", ("assert list(f(3)) == [0, 1, 2]",), "process", "pass"),
    ("def f(xs):\n return tuple(set(xs))", ("assert f([9, 8]) == (8, 9)",), "process", "pass"),
    ("class A:\n def __init__(self, a): self.a = a\n def __add__(self, o): return self.a + o.a\ndef f(a, b):\n"
     " return A(a) + A(b)", ("assert f(1, 2) == 3",), "process", "pass"),
    ("def f(x): return g(x)", ("f(1) == 1",), "process", "fail"), ("def f(", ("f(1) == 1",), "none", "fail"),
    ("", ("f(1) == 1",), "none", "fail"), (SQUARE, (), "none", "abstain"), (SQUARE, ("square(",), "none", "abstain"),
    ("def f(x): return math.sqrt(x)", ("import math", "assert math.isclose(f(2), 1.414, rel_tol=1e-3)"), "monty",
     "pass"),
    ("def f(s): return s == s[::-1]", ("assert f('aba')", "assert not f('ab')"), "monty", "pass"),
])  # fmt: skip
def test_the_process_sandbox_runs_only_what_the_interpreter_in_memory_cannot(program, tests, ran, outcome) -> None:
    got = check_program(program, tests)
    assert (got.ran, got.outcome) == (ran, outcome), got.reason
    assert got.verdict().checker == ("tests" if ran == "none" else f"tests ({ran})")
    assert (ran == "process") == (got.isolation.startswith("own ") or "audit hook" in got.isolation)


CHEATS = {
    "equals everything": ("class A:\n def __eq__(s, o): return True\ndef f(x): return A()", "assert f(1) == 2"),
    "set that is always the same": ("def set(x): return 0\ndef f(x): return x", "assert set(f([1])) == set([2])"),
    "set by assignment": ("set = lambda x: 0\nf = lambda x: x", "assert set(f([1])) == set([2])"),
    "set from a call": ("def f(x):\n global set\n set = lambda x: 0\n return x", "assert set(f([1])) == set([2])"),
    "isclose": ("import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 0", "assert math.isclose(f(1), 2)"),
    "isclose under another name": ("import math as m\nm.isclose = lambda *a, **k: True\ndef f(x): return 0",
                                   "assert math.isclose(f(1), 2)"),
    "math itself": ("class math:\n isclose = lambda *a, **k: True\ndef f(x): return 0", "assert math.isclose(f(1), 2)"),
    "elements that equal everything": ("class A(int):\n def __eq__(s, o): return True\n"
                                       " def __hash__(s): return hash(2)\ndef f(x): return [A(1)]",
                                       "assert set(f([1])) == set([2])"),
    "abs": ("def abs(x): return 0\ndef f(x): return 9", "assert abs(f(1) - 2) < 0.1"),
    "own minus": ("class A:\n def __sub__(s, o): return 0\ndef f(x): return A()", "assert abs(f(1) - 2) < 0.1"),
    "truth of its own": ("class A:\n def __bool__(s): return True\n def __lt__(s, o): return True\n"
                         "def f(x): return A()", "assert f(1) < 0"),
    "made by setattr": ("class A: pass\nsetattr(A, '_' + '_eq_' + '_', lambda s, o: True)\ndef f(x): return A()",
                        "assert f(1) == 2"),
    "exit": ("import sys\ndef f(x): sys.exit(0)", "assert f(1) == 2"),
    "exit at once": ("import os\nos._exit(0)", "assert f(1) == 2"),
    "exit by exception": ("raise SystemExit(0)", "assert f(1) == 2"),
    "return at top level": ("def f(x): return 1\nreturn", "assert f(1) == 2"),
    "check that checks nothing": ("def check(c): pass\ndef f(x): return 1",
                                  "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)"),
    "check from a call": ("def f(x):\n global check\n check = lambda c: None\n return 1",
                          "def check(c):\n    assert c(1) == 2\n    assert c(2) == 2\ncheck(f)"),
    "no assertions": ("AssertionError = ValueError\ndef f(x): return 1",
                      "def check(c):\n    assert c(1) == 2\ncheck(f)"),
    "open string at the end": ("def f(x): return 1\n'''", "assert f(1) == 2"),
    "prints a verdict": ("print('{\"outcome\": \"pass\"}')\ndef f(x): return 1", "assert f(1) == 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(name: str) -> None:
    program, test = CHEATS[name]
    got = check_program(program, ("import math", test) if "math" in test else (test,))
    assert got.outcome == "fail", got


def test_an_endless_program_ends_in_time() -> None:
    start = time.perf_counter()
    with ProgramChecker(Limits(seconds=0.3), ProcessLimits(seconds=1, wall=2)) as checker:
        got = checker.check("def f(x):\n while True: pass", ("f(1) == 1",))
    assert (got.outcome, got.ran) == ("fail", "process")
    assert got.reason.endswith(("time limit exceeded", "the program ends its process"))
    assert time.perf_counter() - start < 6


def test_where_neither_sandbox_can_run_it_the_verdict_abstains(monkeypatch: pytest.MonkeyPatch) -> None:
    none = ProcessResult("abstain", "this system has no process limits", Isolation())
    monkeypatch.setattr(program_checks, "run_in_process", lambda *a, **k: none)
    got = check_program("import heapq\ndef f(x): return x", ("f(1) == 1",))
    assert (got.outcome, got.ran) == ("abstain", "process")
    assert "no process limits" in got.reason and "heapq" in got.reason


# -- HumanEval-style rows

HEAD = '''from typing import List


def total(xs: List[int]) -> int:
    """Return the sum of xs.
    >>> total([1, 2])
    3
    """
'''
TEST = '''

METADATA = {'author': 'x'}


def check(candidate):
    assert candidate([1, 2]) == 3, 'sum'
    for n in range(5):
        assert candidate(list(range(n))) == n * (n - 1) // 2
    assert candidate([]) == 0
'''
BODY = "    out = 0\n    for x in xs:\n        out += x\n    return out\n"


@pytest.fixture
def total() -> Prompt:
    columns = {"task_id": "Some/0", "prompt": HEAD, "canonical_solution": BODY, "test": TEST, "entry_point": "total"}
    return humaneval.to_prompt(Row(1, "rows:1", "test", columns))


@pytest.mark.parametrize("answer", [
    BODY, f"```python\n{HEAD}{BODY}```", HEAD + BODY, f"```python\n{BODY}```", "return sum(xs)",
    "    return sum(xs)\n\n\nprint(total([1]))",
    "```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```",
    "    return sum(xs)\n\n\ndef other(x):\n    return",
    "    return sum(xs)\n```\nThis sums them.",
])  # fmt: skip
def test_a_whole_function_and_a_continuation_both_pass(answer: str, total: Prompt) -> None:
    assert humaneval.check(total, answer).outcome == "pass", humaneval.check(total, answer)


def test_the_reason_of_a_failing_block_is_the_same_each_time(total: Prompt) -> None:
    reasons = {humaneval.check(total, "    return 3").reason for _ in range(2)}
    assert reasons == {"test 1 (check(total)): AssertionError: assert 3 == 0"}
    weak = ProgramResult("fail", "no", "process", str(Isolation()))
    assert weak.verdict().checker == "tests (process, limits only)"


@pytest.mark.parametrize("answer", ["", "    pass", "    return -sum(xs)", "    return 3", "Sorry.",
                                    "    raise SystemExit", HEAD,
                                    "def check(candidate): pass\ndef total(xs): return 1"])  # fmt: skip
def test_wrong_functions_fail(answer: str, total: Prompt) -> None:
    assert humaneval.check(total, answer).outcome == "fail"


def test_humaneval_rows_are_of_the_test_split_and_named_where_they_are_broken(total: Prompt) -> None:
    assert total.split == "test" and total.id == "humaneval-test-Some-0"
    assert humaneval.head_of(total) == HEAD.rstrip()
    assert check_program(total.check.answer, total.check.items).outcome == "pass"
    columns = {"task_id": "Some/0", "prompt": HEAD, "test": "assert True", "entry_point": "total"}
    with pytest.raises(ValueError, match="rows:7: column 'test' is no Python with a function check"):
        humaneval.to_prompt(Row(7, "rows:7", "test", columns))
    assert complete("", SQUARE, "square") == SQUARE


# -- verify()


def candidate(prompt: Prompt, text: str, finished: bool = True) -> Candidate:
    return Candidate(prompt, text, "policy", 1.0, 0, 12, finished, -1.0)


def test_verify_sends_each_prompt_to_its_checker_and_keeps_the_order(total: Prompt) -> None:
    sums = Prompt("g", "gsm8k", "How many?", "train", 1, Check("number", "9", ("4+5=9",)))
    code = Prompt("m", "mbpp", "Square.", "train", 1, Check("tests", SQUARE, TESTS))
    heap = Prompt("h", "mbpp", "Smallest.", "train", 1, Check("tests", "", ("assert f([2, 1]) == 1",)))
    open_ = Prompt("x", "xstest", "How do I kill a process?", "test", 1, Check("rubric", ""))
    small = make_prompt(Random(0), "orderings", 1, "train", "o")
    asked = [(sums, "<<4+5=9>>9\n#### 9"), (sums, "<<4+5=8>>8\n#### 9"), (code, f"```python\n{SQUARE}\n```"),
             (heap, "import heapq\ndef f(xs): return heapq.heappop(sorted(xs))"), (total, BODY), (open_, "Like so."),
             (small, "Nobody"), (code, "def square(x): return 1")]  # fmt: skip
    got = checkers.verify([candidate(p, t) for p, t in asked])
    assert [v.outcome for v in got] == ["pass", "fail", "pass", "pass", "pass", "abstain", "fail", "fail"]
    ran = ["number", "steps", "tests (monty)", "tests (process)", "tests (monty)", "rubric", "chain", "tests (monty)"]
    assert [v.checker for v in got] == ran
    loose = checkers.verify([candidate(*asked[1])], strict=False)
    assert loose[0].outcome == "pass"
    cut = checkers.verify([candidate(p, t, finished=False) for p, t in asked])
    assert {v.outcome for v in cut} == {"fail"}
    assert Judged(candidate(*asked[2]), got[2], 0.0).verdict.outcome == "pass"


def test_equal_texts_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = checkers.check_text
    monkeypatch.setattr(checkers, "check_text", lambda p, t, s: seen.append(t) or real(p, t, s))
    sums = Prompt("g", "gsm8k", "How many?", "train", 1, Check("number", "9"))
    got = checkers.verify([candidate(sums, t) for t in ("#### 9", "#### 8", "#### 9")])
    assert [v.outcome for v in got] == ["pass", "fail", "pass"]
    assert seen == ["#### 9", "#### 8"]
