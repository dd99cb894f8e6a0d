"""Build notebooks/*.ipynb from notebooks/src/*.py: convert, execute every cell, drop what differs by machine.

    python tools/build_notebooks.py              # all; what `make notebooks` runs
    python tools/build_notebooks.py 08_the_loop  # one
    python tools/build_notebooks.py --check      # execute nothing; say what is not as it should be

One way only, from source to notebook. The same sources and figures give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
WIDGETS = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")
CHECKED = "nbval-check-output"  # the tag of cells whose text is exact on every machine
MAX_CODE_CELLS, MAX_LINES, MAX_LINES_TAUGHT = 30, 12, 20
SECONDS = 600  # for one cell
MACHINE = re.compile(
    re.escape(str(ROOT))
    + r"|(?<![\w.:/])/(?:home|root|Users|tmp|private|mnt|opt|usr|var)/[\w.-]|[A-Z]:\\Users|\b0x[0-9a-f]{9,}"
)


def convert(source: Path) -> Any:
    """Return the notebook of a percent-format file, not executed; a cell's id follows from its text."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })  # fmt: skip
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        text = f"{cell.cell_type}\n{cell.source}"
        seen[text] += 1
        cell.id = hashlib.sha256(f"{seen[text]}\n{text}".encode()).hexdigest()[:12]
    return notebook


def execute(notebook: Any, folder: Path) -> None:
    """Execute every cell in order in a fresh kernel whose working folder is `folder`.

    Raises:
        CellExecutionError: if a cell fails.
    """
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True,
        store_widget_state=False, extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    ).execute()  # fmt: skip


def clean(notebook: Any) -> None:
    """Drop widget state (a widget shows with a kernel only; its text stays), timing and the kernel's version."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = nbformat.from_dict({"name": "python"})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        for output in cell.get("outputs", ()):
            for kind in WIDGETS:
                output.get("data", {}).pop(kind, None)


def checked_changes(before: Any, after: Any) -> list[str]:
    """Return which checked cells show something else than before, though their code is the same."""
    old = {c.source: c for c in before.cells if c.cell_type == "code" and CHECKED in c.metadata.get("tags", [])}
    code = [c for c in after.cells if c.cell_type == "code"]
    return [f"code cell {n}: its checked output differs from the one before" for n, c in enumerate(code, 1)
            if c.source in old and old[c.source].outputs != c.outputs]  # fmt: skip


def build(source: Path) -> Path:
    """Convert, execute and write one notebook; return its path. Says which checked outputs are new."""
    notebook, path = convert(source), NOTEBOOKS / f"{source.stem}.ipynb"
    execute(notebook, NOTEBOOKS)
    clean(notebook)
    nbformat.validate(notebook)
    if path.is_file():
        changes = checked_changes(nbformat.read(path, as_version=4), notebook)
        print(*(f"{path.name}: {c}" for c in changes), sep="\n", end="\n" if changes else "")
    temporary = path.with_suffix(".partial")
    temporary.write_text(nbformat.writes(notebook).rstrip("\n") + "\n")
    temporary.replace(path)
    return path


def problems(source: Path, path: Path) -> list[str]:
    """Return what is wrong with a notebook and its source, one line each; nothing is executed."""
    if not path.is_file() or not source.is_file():
        return [f"{(path if source.is_file() else source).name}: missing"]
    twin, notebook = convert(source), nbformat.read(path, as_version=4)
    found = [f"{path.name}: differs from its source: {d}; run make notebooks" for d in _differences(twin, notebook)]
    found += [f"{path.name}: {p}" for p in [*_shape(notebook), *_outputs(notebook)]]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append(f"{path.name}: its kernel is not called python3")
    return found


def _differences(twin: Any, notebook: Any) -> Iterator[str]:
    if len(twin.cells) != len(notebook.cells):
        yield f"{len(twin.cells)} cells in the source, {len(notebook.cells)} in the notebook"
    for n, (a, b) in enumerate(zip(twin.cells, notebook.cells, strict=False), 1):
        if (a.cell_type, a.source.strip()) != (b.cell_type, b.source.strip()):
            yield f"cell {n}"
        elif a.metadata.get("tags", []) != b.metadata.get("tags", []):
            yield f"tags of cell {n}"


def _shape(notebook: Any) -> Iterator[str]:
    code = [c for c in notebook.cells if c.cell_type == "code"]
    if len(code) > MAX_CODE_CELLS:
        yield f"{len(code)} code cells; at most {MAX_CODE_CELLS}"
    for n, cell in enumerate(code, 1):
        limit = MAX_LINES_TAUGHT if "taught" in cell.metadata.get("tags", []) else MAX_LINES
        if (lines := len(cell.source.strip().splitlines())) > limit:
            yield f"code cell {n} has {lines} lines; at most {limit}"
        if cell.execution_count != n:
            yield f"code cell {n} was executed as number {cell.execution_count}; execute all, in order"


def _outputs(notebook: Any) -> Iterator[str]:
    if "widgets" in notebook.metadata:
        yield "holds saved widget state"
    for n, cell in enumerate(notebook.cells, 1):
        texts = [cell.source]
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if output.output_type == "error":
                yield f"cell {n} shows an error: {output.ename}"
            if any(kind in data for kind in WIDGETS):
                yield f"cell {n} shows a widget whose state is not saved"
            texts += [output.get("text", ""), *(str(v) for k, v in data.items() if k.startswith("text/"))]
        if hit := next((m for t in texts if (m := MACHINE.search(t))), None):
            yield f"cell {n} holds a path or an address of one machine: {hit[0]!r}"


def main(argv: list[str] | None = None) -> int:
    """Build or check; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="e.g. 08_the_loop; default: all")
    parser.add_argument("--check", action="store_true", help="execute nothing")
    args = parser.parse_args(argv)
    os.environ.update(LLAMA3_LAB_PROGRESS="0", HF_HUB_OFFLINE="1", PYTHONHASHSEED="0")
    scratch = tempfile.TemporaryDirectory()  # the committed score begins with the first notebook, not with a learner's
    os.environ["LLAMA3_LAB_PREDICTIONS"] = os.path.join(scratch.name, "predictions.json")
    stems = {p.stem for p in [*NOTEBOOKS.glob("src/*.py"), *(NOTEBOOKS.glob("*.ipynb") if args.check else ())]}
    if unknown := set(args.names) - stems:
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(stems))}")
    wrong = 0
    for stem in sorted(args.names or stems):
        source, start = NOTEBOOKS / "src" / f"{stem}.py", time.perf_counter()
        try:
            path = NOTEBOOKS / f"{stem}.ipynb" if args.check else build(source)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"{stem}: a cell failed, nothing was written\n{error}", file=sys.stderr)
            wrong += 1
            continue
        found = problems(source, path)
        print(*found or [f"{path.name}: fine, {time.perf_counter() - start:.0f} s"], sep="\n")
        wrong += bool(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
