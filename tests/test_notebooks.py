"""Every notebook agrees with its source, was executed in order, and holds nothing of one machine."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import build_notebooks
import nbformat
import pytest
from build_notebooks import CHECKED, NOTEBOOKS, checked_changes, clean, convert, problems
from nbformat.v4 import new_output

from llama3_lab.course import exercises

STEMS = sorted({p.stem for p in [*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("src/*.py")]})
LESSONS = [s for s in STEMS if s[:2] != "00"]  # 00 is the map
SECTIONS = ("You will be able to", "Predict first", "At 8B", "What this did not show", "Exercises", "Recap")
SOURCE = "# %% [markdown]\n# # Title\n\n# %%\n1 + 1\n\n# %% tags=[\"taught\"]\nprint(2)\n"


@pytest.mark.parametrize("stem", STEMS)
def test_notebook_is_as_it_should_be(stem):
    assert problems(NOTEBOOKS / "src" / f"{stem}.py", NOTEBOOKS / f"{stem}.ipynb") == []


def test_there_are_notebooks():
    assert len(STEMS) >= 2


@pytest.fixture
def pair(tmp_path):
    """A source and its notebook as if executed, and a function that writes the notebook after a change."""
    source, path = tmp_path / "a.py", tmp_path / "a.ipynb"
    source.write_text(SOURCE)
    notebook = convert(source)
    for n, cell in enumerate([c for c in notebook.cells if c.cell_type == "code"], 1):
        cell.execution_count = n

    def write() -> list[str]:
        path.write_text(nbformat.writes(notebook))
        return problems(source, path)

    return notebook, write, source


def test_a_faithful_notebook_has_no_problem(pair):
    assert pair[1]() == []


def html(text: str):
    return new_output("display_data", data={"text/html": text})


BREAKS = {
    "differs from its source: cell 2": lambda nb: nb.cells[1].update(source="1 + 2"),
    "tags of cell 3": lambda nb: nb.cells[2].metadata.update(tags=[]),
    "3 cells in the source, 2 in the notebook": lambda nb: nb.cells.pop(),
    "code cell 2 was executed as number None": lambda nb: nb.cells[2].update(execution_count=None),
    "code cell 1 was executed as number 7": lambda nb: nb.cells[1].update(execution_count=7),
    "cell 2 shows an error: ValueError": lambda nb: nb.cells[1].outputs.append(
        new_output("error", ename="ValueError", evalue="x", traceback=[])),
    "'/home/a'": lambda nb: nb.cells[1].outputs.append(new_output("stream", name="stdout", text="in /home/ann/x")),
    "0x7f0123456789": lambda nb: nb.cells[1].outputs.append(html("object at 0x7f0123456789")),
    "widget whose state is not saved": lambda nb: nb.cells[1].outputs.append(
        new_output("display_data", data={build_notebooks.WIDGETS[0]: {"model_id": "1"}})),
    "holds saved widget state": lambda nb: nb.metadata.update(widgets={}),
    "its kernel is not called python3": lambda nb: nb.metadata.kernelspec.update(name="mine"),
}  # fmt: skip


@pytest.mark.parametrize("words", BREAKS)
def test_a_broken_notebook_is_found_out(pair, words):
    notebook, write, _ = pair
    BREAKS[words](notebook)
    assert any(words in p for p in write())


@pytest.mark.parametrize(("lines", "tags", "wrong"), [(12, "other", False), (13, "other", True), (20, "taught", False),
                                                      (21, "taught", True)])  # fmt: skip
def test_a_cell_has_its_ceiling(tmp_path, lines, tags, wrong):
    source, path = tmp_path / "a.py", tmp_path / "a.ipynb"
    source.write_text(f'# %% tags=["{tags}"]\n' + "x = 1\n" * lines)
    notebook = convert(source)
    notebook.cells[0].execution_count = 1
    path.write_text(nbformat.writes(notebook))
    assert any("lines; at most" in p for p in problems(source, path)) is wrong


def test_a_page_of_a_web_address_is_no_machine_path(pair):
    notebook, write, _ = pair
    notebook.cells[1].outputs.append(html("https://example.org/home/page and 3/usr"))
    assert write() == []


def test_a_missing_half_is_named(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    assert problems(tmp_path / "a.py", tmp_path / "a.ipynb") == ["a.ipynb: missing"]


def test_ids_follow_from_the_text_and_stay_when_a_cell_is_put_before(tmp_path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text(SOURCE)
    two.write_text("# %%\n0\n\n" + SOURCE)
    ids, later = [c.id for c in convert(one).cells], [c.id for c in convert(two).cells]
    assert later[1:] == ids == [c.id for c in convert(one).cells]
    one.write_text("# %%\nx\n\n# %%\nx\n")
    assert len({c.id for c in convert(one).cells}) == 2


def test_what_differs_by_machine_is_dropped(pair):
    notebook, write, _ = pair
    notebook.metadata.update(widgets={"state": {}}, language_info={"name": "python", "version": "3.11.7"})
    notebook.cells[1].metadata["execution"] = {"iopub.status.busy": "2026"}
    notebook.cells[1].outputs.append(
        new_output("display_data", data={build_notebooks.WIDGETS[0]: {"model_id": "1"}, "text/plain": "Box()"})
    )
    clean(notebook)
    assert write() == []
    assert notebook.metadata.language_info == {"name": "python"}
    assert notebook.cells[1].metadata == {}
    assert notebook.cells[1].outputs[0].data == {"text/plain": "Box()"}


def test_two_builds_give_the_same_bytes_and_a_failing_cell_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(build_notebooks, "NOTEBOOKS", tmp_path)
    (tmp_path / "src").mkdir()
    source, path = tmp_path / "src" / "a.py", tmp_path / "a.ipynb"
    source.write_text(SOURCE + "\n# %%\nimport os\nprint(os.environ['LLAMA3_LAB_PROGRESS'])\n")
    assert build_notebooks.main([]) == 0
    first = path.read_bytes()
    assert b'"2"' in first or b"2\\n" in first
    assert build_notebooks.main([]) == 0
    assert path.read_bytes() == first
    source.write_text(SOURCE + "\n# %%\n1 / 0\n")
    assert build_notebooks.main([]) == 1
    assert path.read_bytes() == first
    assert build_notebooks.main(["--check"]) == 1
    assert not list(Path(tmp_path).glob("*.partial"))


# -- a lesson: its objectives, its exercises, what it must have


def source(stem: str) -> str:
    return (NOTEBOOKS / "src" / f"{stem}.py").read_text()


def objectives(text: str) -> list[str]:
    """The bullets of "You will be able to"."""
    part = text.split("# ## You will be able to", 1)[1].split("\n# ##", 1)[0].split("\n# %%", 1)[0]
    return re.findall(r"^# - (.+)$", part, re.M)


def test_objectives_are_counted_as_they_stand():
    text = "# ## You will be able to\n#\n# - do one,\n#   in two lines;\n# - do two.\n#\n# ## Next\n#\n# - no\n"
    assert objectives(text) == ["do one,", "do two."]


@pytest.mark.parametrize("stem", LESSONS)
def test_every_objective_has_an_exercise(stem):
    there, served = objectives(source(stem)), {e.objective for e in exercises.of_notebook(stem[:2])}
    assert 4 <= len(there) <= 6
    assert served == set(range(1, len(there) + 1)), "an objective without exercise, or an exercise without objective"


@pytest.mark.parametrize("stem", LESSONS)
def test_every_exercise_stands_in_its_notebook(stem):
    text, ids = source(stem), [e.id for e in exercises.of_notebook(stem[:2])]
    assert re.findall(r'^check\("([\d.]+)", ', text, re.M) == ids
    assert f'table("{stem[:2]}")' in text
    for id in ids:
        assert re.search(rf"^# \*\*{re.escape(id)}\b", text, re.M), f"the question of {id} is not announced in bold"


def test_every_exercise_belongs_to_a_notebook_that_is_there():
    assert set(exercises.notebooks()) <= {s[:2] for s in LESSONS}


@pytest.mark.parametrize("stem", LESSONS)
def test_a_lesson_has_its_parts(stem):
    text = source(stem)
    assert [s for s in SECTIONS if f"# ## {s}\n" not in text] == []
    keys = set(re.findall(r'predict\("([\w.-]+)"', text))
    assert keys and all(k.startswith(f"{stem[:2]}.") for k in keys)
    assert "score(" in text, "a prediction that is never scored"
    assert "explore(" in text, "no widget"
    assert "views.describe(" in text or "describe_" in text, "no figure has its text twin printed"
    assert text.count(CHECKED) >= 3, "fewer than three cells whose text is exact"
    assert 'tags=["taught"]' in text


# -- what nbval makes of a notebook, and what a second build changes

TINY = """# %% tags=["nbval-check-output"]
print("three is", 3)

# %%
import time
print(time.time_ns())
"""


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder with one small notebook, built; and a function that builds it again and returns it."""
    monkeypatch.setattr(build_notebooks, "NOTEBOOKS", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text(TINY)

    def build():
        assert build_notebooks.main([]) == 0
        return nbformat.read(tmp_path / "a.ipynb", 4)

    return tmp_path, build


def test_a_second_build_changes_no_source_and_no_checked_output(workshop, capsys):
    _, build = workshop
    one, two = build(), build()
    assert [c.source for c in one.cells] == [c.source for c in two.cells]
    assert one.cells[0] == two.cells[0]
    assert one.cells[1].outputs != two.cells[1].outputs, "a cell without the tag may differ"
    assert checked_changes(one, two) == []
    assert "differs from" not in capsys.readouterr().out


def test_a_checked_output_that_changes_is_said(workshop, capsys):
    folder, build = workshop
    before = build()
    before.cells[0].outputs[0].text = "three is 4\n"
    nbformat.write(before, folder / "a.ipynb")
    capsys.readouterr()
    assert checked_changes(before, build()) == ["code cell 1: its checked output differs from the one before"]
    assert "a.ipynb: code cell 1: its checked output differs" in capsys.readouterr().out


def test_a_checked_cell_with_another_text_makes_the_run_fail(workshop):
    folder, build = workshop
    whole = build()
    for name, cell, text in (("checked", 0, "three is 4\n"), ("free", 1, "then\n")):
        altered = copy.deepcopy(whole)
        altered.cells[cell].outputs[0].text = text
        nbformat.write(altered, folder / f"{name}.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--nbval-lax", "--nbval-current-env",
         "--nbval-cell-timeout", "60", "."], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTEST_ADDOPTS": ""})  # fmt: skip
    passed = re.findall(r"^PASSED \W*(\w+)\.ipynb", done.stdout, re.M)
    failed = re.findall(r"^FAILED \W*(\w+)\.ipynb", done.stdout, re.M)
    assert done.returncode == 1, done.stdout[-3000:]
    assert (sorted(passed), failed) == (["a", "a", "checked", "free", "free"], ["checked"])
