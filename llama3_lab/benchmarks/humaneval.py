"""HumanEval-style rows as prompts: the head of a function to complete, and hidden tests `check(candidate)`.

The answer may be the whole function, fenced or bare, or only the lines that continue the head. These sets are
for testing: every row is of the test split. Source: Chen et al. 2021.
"""

from __future__ import annotations

import re

from llama3_lab.benchmarks.code_blocks import complete, find_program, parse
from llama3_lab.benchmarks.program_checks import ProgramResult, check_program
from llama3_lab.benchmarks.sources import Row, Source, read_rows
from llama3_lab.records import Check, Prompt

SKILL = "humaneval"
HUB = Source("openai/openai_humaneval", "test")
_ENTRY = re.compile(r"\bcheck\((\w+)\)\s*\Z")
_ASK = "Complete this Python function. Answer with the whole function in one code block."


def load_humaneval(source: Source = HUB) -> list[Prompt]:
    """Return one prompt a row, in order; columns: task_id, prompt (the head), canonical_solution, test, entry_point.

    Raises:
        ValueError: naming the row, for a missing column or a test that is no Python.
    """
    return [to_prompt(row) for row in read_rows(source)]


def to_prompt(row: Row) -> Prompt:
    """Return a row as a prompt of the test split; level 1.

    Raises:
        ValueError: naming the row.
    """
    head, entry, test = row.text("prompt"), row.text("entry_point"), row.text("test")
    block = f"{test.strip()}\n\ncheck({entry})"
    if parse(block) is None or "def check(" not in test:
        raise ValueError(f"{row.where}: column 'test' is no Python with a function check(candidate)")
    solution = row.columns.get("canonical_solution") or "    pass\n"
    name = str(row.get("task_id")).replace("/", "-")
    text = f"{_ASK}\n\n```python\n{head.rstrip()}\n```"
    return Prompt(f"{SKILL}-test-{name}", SKILL, text, "test", 1, Check("tests", head + solution, (block,)))


def head_of(prompt: Prompt) -> str:
    """Return the head of the function that a prompt shows; "" where it shows none."""
    return prompt.text.partition("```python\n")[2].rpartition("\n```")[0]


def check(prompt: Prompt, text: str) -> ProgramResult:
    """Return what the tests say of an answer: a whole function, or a continuation of the head. No text raises."""
    head, entry = head_of(prompt), _ENTRY.search(prompt.check.items[-1] if prompt.check.items else "")
    if entry is None or not head:
        program = find_program(text)
    else:
        program = complete(head, text, entry[1])
    return check_program(program, prompt.check.items)
