"""Every exercise grades as it says: solutions pass, each known mistake gets its own hint, nothing is given away."""

import importlib.util
from contextlib import suppress
from pathlib import Path

import pytest

from llama3_lab.course import exercises
from llama3_lab.course.exercises import Exercise, check, table

FOLDER = Path(__file__).parent / "solutions"


def lesson(path: Path):
    spec = importlib.util.spec_from_file_location(f"solutions_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LESSONS = {p.stem: lesson(p) for p in sorted(FOLDER.glob("*.py"))}
SOLUTIONS = {id: answer for module in LESSONS.values() for id, answer in module.SOLUTIONS.items()}
WRONG = {id: answers for module in LESSONS.values() for id, answers in module.WRONG.items()}
ALL = exercises.exercises()
CASES = [(id, i) for id, answers in WRONG.items() for i in range(len(answers))]


def test_every_exercise_has_a_solution_and_wrong_answers():
    ids = {e.id for e in ALL}
    assert set(SOLUTIONS) == ids
    assert set(WRONG) == ids
    assert {e.id[:2] for e in ALL} >= {"08"}


@pytest.mark.parametrize("id", sorted(SOLUTIONS))
def test_the_solution_passes(id, capsys):
    check(id, SOLUTIONS[id])
    said = capsys.readouterr().out
    assert said.startswith(f"{id} right."), said


@pytest.mark.parametrize(("id", "i"), CASES, ids=[f"{id}-{i}-{WRONG[id][i][1]}" for id, i in CASES])
def test_a_known_mistake_gets_its_own_hint(id, i, capsys):
    answer, key = WRONG[id][i]
    assert exercises.find(id).grade(answer) == key
    capsys.readouterr()
    check(id, answer)
    assert capsys.readouterr().out.strip().endswith(f"{id} not yet: {exercises.find(id).hints[key]}")


@pytest.mark.parametrize("exercise", ALL, ids=[e.id for e in ALL])
def test_every_hint_is_reached_and_says_something_of_its_own(exercise):
    reached = {key for _, key in WRONG[exercise.id]}
    assert reached == set(exercise.hints), "every hint needs a wrong answer that reaches it, and the other way round"
    assert len(exercise.hints) >= 2 or exercise.kind == "predict"
    assert len(set(exercise.hints.values())) == len(exercise.hints)
    for text in (*exercise.hints.values(), exercise.after):
        assert text.strip() and "\n" not in text
        assert text.rstrip()[-1] in ".?!)`", f"{exercise.id}: {text!r} is no sentence"


@pytest.mark.parametrize("exercise", ALL, ids=[e.id for e in ALL])
def test_no_hint_gives_the_answer_away(exercise):
    answer = SOLUTIONS[exercise.id]
    if isinstance(answer, str) and len(answer) > 2:
        for hint in exercise.hints.values():
            assert answer.lower() not in hint.lower()


@pytest.mark.parametrize("notebook", exercises.notebooks())
def test_a_notebook_has_an_exercise_of_each_kind_numbered_from_one(notebook):
    of = exercises.of_notebook(notebook)
    assert {e.kind for e in of} == set(exercises.KINDS)
    assert [e.id for e in of] == [f"{notebook}.{i}" for i in range(1, len(of) + 1)]


@pytest.mark.parametrize("exercise", ALL, ids=[e.id for e in ALL])
@pytest.mark.parametrize("junk", [object(), 3.5, "no", [], {}, lambda *a, **k: 1 / 0, lambda: None])
def test_nothing_that_a_learner_gives_raises(exercise, junk, capsys):
    check(exercise.id, junk)
    assert capsys.readouterr().out.count(f"{exercise.id} ") >= 1


# -- the machinery, on an exercise of its own


def grade(answer):
    return None if answer(2) == 4 else "sum" if answer(2) == 2 else "far"


TOY = Exercise("99.1", "implement", "Square", 1, 2, 5, 1, grade,
               {"sum": "You add; multiply.", "far": "Try 2 first."}, "Squares are never negative.")  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(exercises, "exercises", lambda: (TOY,))


@pytest.mark.parametrize(
    ("answer", "words"),
    [(None, "99.1 no answer yet"), (..., "99.1 no answer yet"),
     (lambda x: x * x, "99.1 right. Squares are never negative."),
     (lambda x: x, "99.1 not yet: You add; multiply."), (lambda x: 0, "99.1 not yet: Try 2 first."),
     (lambda: 0, "99.1 not yet: your function raised TypeError: "),
     ("4", "99.1 not yet: the check of your answer raised TypeError: 'str' object is not callable"),
     (lambda x: {}[x], "99.1 not yet: your function raised KeyError: 2")],
)  # fmt: skip
def test_check_prints_one_line(toy, capsys, answer, words):
    check("99.1", answer)
    said = capsys.readouterr().out
    assert said.startswith(words)
    assert said.count("\n") == 1


def test_a_very_long_error_is_cut(toy, capsys):
    def loud(x):
        raise ValueError("x" * 5000 + "\nsecond line")

    check("99.1", loud)
    assert len(capsys.readouterr().out) < 300


def test_an_interrupt_is_the_learners_own(toy):
    def stopped(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("99.1", stopped)


def test_a_loop_that_never_ends_is_stopped_even_where_it_catches_everything(toy, capsys, monkeypatch):
    monkeypatch.setattr(exercises, "PATIENCE", 0.2)

    def endless(x):
        while True:
            with suppress(Exception):
                x += 1

    check("99.1", endless)
    assert capsys.readouterr().out.startswith("99.1 not yet: after 0.2 seconds there was no answer")
    check("99.1", lambda x: x * x)
    assert "right" in capsys.readouterr().out


def test_the_table_says_kind_difficulty_importance_and_minutes(toy, capsys):
    table("99")
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["kind", "difficulty", "importance", "minutes"]
    assert row.split() == ["99.1", "Square", "implement", "●○○", "●●○", "5"]
    assert row.index("●○○") == head.index("difficulty")


def test_what_is_not_there_is_said(toy):
    with pytest.raises(ValueError, match=r"no exercise '99.7'; there are: 99.1"):
        check("99.7", 1)
    with pytest.raises(ValueError, match="notebook '42' has no exercises; there are some in 99"):
        table("42")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"id": "3.1"}, "notebook and number"), ({"id": "03-1"}, "notebook and number"), ({"kind": "quiz"}, "kind is"),
     ({"difficulty": 4}, "difficulty is 4"), ({"minutes": 0}, "minutes is 0"), ({"objective": 7}, "objective is 7")],
)
def test_an_exercise_that_is_none_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Exercise(**{**{f: getattr(TOY, f) for f in TOY.__dataclass_fields__}, **change})


def test_two_exercises_of_one_id_are_refused(monkeypatch):
    class Lesson:
        EXERCISES = (TOY, TOY)

    monkeypatch.setattr(exercises.pkgutil, "iter_modules", lambda path: [Path("lesson")])
    monkeypatch.setattr(exercises.importlib, "import_module", lambda name: Lesson)
    with pytest.raises(ValueError, match=r"99.1 comes twice"):
        exercises.exercises.__wrapped__()
