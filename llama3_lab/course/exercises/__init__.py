"""check(), table(): exercises that are graded at once, with a hint for each known mistake.

One module a lesson, found by itself: its EXERCISES, and the seeded bugs that its diagnose exercises
are about. A grade is a function of the answer, so what a checker says is the same on every machine.
"""

from __future__ import annotations

import importlib
import pkgutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

Kind = Literal["predict", "implement", "diagnose", "design"]
PATIENCE = 20.0  # seconds for one check; the slowest right answer takes about two
KINDS: tuple[Kind, ...] = ("predict", "implement", "diagnose", "design")


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook.

    id: "03.2", notebook and number. difficulty, importance: 1 to 3. objective: which bullet of the
    notebook's "You will be able to" it serves, from 1. grade: None where the answer is right, else
    the key of a hint; it may raise on an answer that it cannot use. after: one sentence that teaches
    something more, shown with the right answer only.
    """

    id: str
    kind: Kind
    title: str
    difficulty: int
    importance: int
    minutes: int
    objective: int
    grade: Callable[[Any], str | None]
    hints: Mapping[str, str] = field(default_factory=dict)
    after: str = ""

    def __post_init__(self) -> None:
        notebook, _, number = self.id.partition(".")
        if not (len(notebook) == 2 and notebook.isdigit() and number.isdigit()):
            raise ValueError(f"exercise {self.id!r}: an id is notebook and number, like '03.2'")
        if self.kind not in KINDS:
            raise ValueError(f"exercise {self.id}: kind is {self.kind!r}; use one of {', '.join(KINDS)}")
        for name, value, most in (("difficulty", self.difficulty, 3), ("importance", self.importance, 3),
                                  ("minutes", self.minutes, 60), ("objective", self.objective, 6)):  # fmt: skip
            if not 1 <= value <= most:
                raise ValueError(f"exercise {self.id}: {name} is {value}; it goes from 1 to {most}")


def check(id: str, answer: Any) -> None:
    """Print whether the answer to exercise `id` is right, or a hint; the answer itself is never shown.

    None or ... is no answer yet. An answer that makes the checker fail, or runs for more than PATIENCE seconds, gets
    one line, no traceback.

    Raises:
        ValueError: if there is no such exercise.
    """
    exercise = find(id)
    if answer is None or answer is ...:
        print(f"{id} no answer yet")
        return
    try:
        with _patience(PATIENCE):
            key = exercise.grade(answer)
    except _TooLong:
        print(f"{id} not yet: after {PATIENCE:g} seconds there was no answer; is there a loop that never ends?")
        return
    except Exception as error:  # whatever a learner's function does, the notebook goes on
        whose = "your function" if callable(answer) else "the check of your answer"
        print(f"{id} not yet: {whose} raised {type(error).__name__}: {_line(error)}")
        return
    print(f"{id} right. {exercise.after}".rstrip() if key is None else f"{id} not yet: {exercise.hints[key]}")


def table(notebook: str) -> None:
    """Print the exercises of a notebook ("03"): kind, difficulty, importance, minutes.

    Raises:
        ValueError: if it has none.
    """
    rows = of_notebook(notebook)
    if not rows:
        raise ValueError(f"notebook {notebook!r} has no exercises; there are some in {', '.join(notebooks())}")
    width = max(len(e.title) for e in rows)
    print(f"{'':<5} {'':<{width}}  kind       difficulty  importance  minutes")
    for e in rows:
        print(f"{e.id:<5} {e.title:<{width}}  {e.kind:<9}  {_dots(e.difficulty):<10}  {_dots(e.importance):<10}"
              f"  {e.minutes:>7}")  # fmt: skip


def find(id: str) -> Exercise:
    """Return the exercise of that id; ValueError where there is none."""
    found = {e.id: e for e in exercises()}
    if id not in found:
        raise ValueError(f"there is no exercise {id!r}; there are: {', '.join(found)}")
    return found[id]


def of_notebook(notebook: str) -> list[Exercise]:
    """Return the exercises of a notebook ("03"), by number."""
    return [e for e in exercises() if e.id.startswith(f"{notebook}.")]


def notebooks() -> list[str]:
    """Return the numbers of the notebooks that have exercises."""
    return sorted({e.id[:2] for e in exercises()})


@cache
def exercises() -> tuple[Exercise, ...]:
    """Return all exercises of all lessons, by id.

    Raises:
        ValueError: if an id comes twice.
    """
    lessons = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    found = [e for lesson in lessons for e in lesson.EXERCISES]
    ids = [e.id for e in found]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"exercise {twice[0]} comes twice")
    return tuple(sorted(found, key=lambda e: (e.id[:2], int(e.id[3:]))))


class _TooLong(BaseException):
    """Raised out of a learner's function; no Exception, so that its own `except Exception` cannot hold it."""


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Raise _TooLong inside the block after so many seconds; where there are no such alarms, wait."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _dots(n: int) -> str:
    return "●" * n + "○" * (3 - n)


def _line(error: Exception) -> str:
    """Return an error's first line, at most 200 letters."""
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
