"""MBPP: short Python tasks as prompts; the tests are shown, and decide.

The sanitized file says no split: it follows from the task's number, as published (11 to 510 test, 511 to 600
validation, the rest train and few-shot examples). Source: Austin et al. 2021.
"""

from __future__ import annotations

from collections.abc import Iterable

from llama3_lab.benchmarks.code_blocks import find_program
from llama3_lab.benchmarks.program_checks import ProgramResult, check_program, read_suite
from llama3_lab.benchmarks.sources import Row, Source, read_rows, refuse_test
from llama3_lab.records import Check, Prompt, Split

SKILL = "mbpp"
HUB = Source("google-research-datasets/mbpp", "train", config="sanitized")
_TEST, _VALIDATION = range(11, 511), range(511, 601)


def split_of(task_id: int) -> Split:
    """Return the published split of a task by its number."""
    return "test" if task_id in _TEST else "validation" if task_id in _VALIDATION else "train"


def load_mbpp(source: Source = HUB, training: bool = False, splits: Iterable[Split] = ()) -> list[Prompt]:
    """Return one prompt a row, in order; columns: task_id, prompt (or text), code, test_list, test_imports.

    A task of a published test split is of the test split here, whatever the source says. splits: keep only these
    (default: all). training: the prompts may train, so that a row of the test split is refused.

    Raises:
        ValueError: naming the row, for a missing column, tests that are no Python, or a test row that would train.
    """
    chosen = set(splits)
    prompts = [to_prompt(row) for row in read_rows(source, training)]
    prompts = [p for p in prompts if not chosen or p.split in chosen]
    if not prompts:
        raise ValueError(f"{source.place}: no task of {', '.join(sorted(chosen))} in it; choose another split")
    if training:
        refuse_test(prompts)
    return prompts


def to_prompt(row: Row) -> Prompt:
    """Return a row as a prompt; level 1: the set has no levels.

    Raises:
        ValueError: naming the row.
    """
    task = row.get("task_id")
    if not str(task).strip().isdigit():
        raise ValueError(f"{row.where}: column 'task_id' is {task!r}; a whole number is needed")
    published = split_of(int(task))
    split: Split = "test" if "test" in (published, row.split) else published
    before, tests = _imports(row), tuple(t.strip() for t in row.texts("test_list"))
    try:
        read_suite([*before, *tests])
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None
    words = row.text("prompt" if "prompt" in row.columns else "text")
    shown = "\n".join(tests)
    text = f"{words.strip()}\nYour code should pass these tests:\n\n{shown}"
    check = Check("tests", row.text("code").replace("\r", ""), (*before, *tests))
    return Prompt(f"{SKILL}-{split}-{int(task):05d}", SKILL, text, split, 1, check)


def _imports(row: Row) -> tuple[str, ...]:
    """Return the imports of the tests: a list in the sanitized set, a text in the full one, or none."""
    name = "test_imports" if "test_imports" in row.columns else "test_setup_code"
    value = row.columns.get(name)
    if value is None or value == "":
        return ()
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return (value.strip(),)
    return row.texts(name)


def check(prompt: Prompt, text: str) -> ProgramResult:
    """Return what the tests say of the program in an answer. No text raises."""
    return check_program(find_program(text, read_suite(prompt.check.items).wanted), prompt.check.items)
