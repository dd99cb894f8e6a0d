"""GPU runs: no file, one line; records come back whole or say what is wrong; the table's figures worked by hand."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.catalogue import GIB, find_gpu
from llama3_lab.paper.gpu_runs import (
    LABEL,
    NOT_MEASURED,
    Conditions,
    GpuCase,
    GpuRun,
    as_markdown,
    published,
    read_gpu_runs,
    table,
    to_text,
)
from llama3_lab.paper.memory import plan
from llama3_lab.paper.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
PEAKS = ROOT.parent / "shared" / "data" / "memory" / "published_peaks.csv"
RECIPE = Recipe(Architecture(2, 64, 192, 4, 2, 16, 512), seq=2048, micro_batch=4, lora_dropout=0.0)
MEASURED = GpuCase("sft", RECIPE, "measured", "", 20.0 * GIB, 33.0 * GIB, 1e15, 8192, 5, 2.0, 4096.0, 0.405, 16 * GIB,
                   30 * GIB, 0)  # fmt: skip
FULL = GpuCase("reward", replace(RECIPE, stage="reward", method="qlora"), "out of memory", "", 81.5 * GIB, 90.0 * GIB,
               1e15, 16384, before=0)  # fmt: skip
LATE = GpuCase("guard", replace(RECIPE, stage="sample"), "not reached", "the 25 minutes were used up", 1.0, 1.0, 1.0, 1)
CONDITIONS = Conditions(
    "NVIDIA Test 80GB", 79.0, 989.0, "9.0", "560.1", "13.0", 0.6, "sdpa", "default", "8b", 0, 25.0, 2, "2026-01-02",
    "abc", (("torch", "2.13.0"), ("triton", "")), (("optim", "adamw_torch"),))  # fmt: skip
RUN = GpuRun(LABEL, CONDITIONS, "FLOPs: so", 600.0, (MEASURED, FULL, LATE))


def written(folder: Path, text: str, name: str = "a.json") -> Path:
    (folder / name).write_text(text)
    return folder


# -- no run


def test_without_a_run_there_is_one_line(tmp_path):
    assert read_gpu_runs(tmp_path) == read_gpu_runs(tmp_path / "nowhere") == []
    assert table([]) == as_markdown([]) == NOT_MEASURED == "not measured: no GPU was at hand"


def test_the_projects_own_folder_can_be_read():
    folder = ROOT / "data" / "runs" / "gpu"
    assert (folder / "README.md").is_file()
    assert all(run.conditions.shape == "8b" for run in read_gpu_runs(folder))


# -- reading


def test_a_run_comes_back_whole(tmp_path):
    other = replace(RUN, conditions=replace(CONDITIONS, gpu="NVIDIA Other"))
    written(tmp_path, to_text(RUN), "b.json")
    written(tmp_path, to_text(other), "a.json")
    assert read_gpu_runs(tmp_path) == [other, RUN]
    held = json.loads(to_text(RUN))
    assert held["label"] == "random weights: memory and speed only"
    assert held["cases"][0]["recipe"]["lora_r"] == 16, "every field of the recipe is there"


def set_at(path: tuple[Any, ...], value: Any) -> str:
    data = json.loads(to_text(RUN))
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(("text", "why"), [
    ("{", "holds no JSON"),
    ("[]", "the whole must be an object with the fields of GpuRun"),
    (set_at(("owner",), "me"), "the whole: GpuRun has no field 'owner'"),
    (set_at(("cases", 1, "price"), 3), r"cases\[1\]: GpuCase has no field 'price'; it has stage, recipe"),
    (set_at(("cases", 0, "recipe", "model", "depth"), 3), r"cases\[0\].recipe.model: Architecture has no field 'depth"),
    (set_at(("cases", 0, "outcome"), "fine"), r"cases\[0\].outcome is 'fine'; it must be one of measured"),
    (set_at(("cases", 0, "peak"), "much"), r"cases\[0\].peak is 'much'; it must be of type int"),
    (set_at(("cases", 0, "recipe", "seq"), 0), r"cases\[0\].recipe: seq is 0; it must be a whole number"),
    (set_at(("conditions", "gib"), True), "conditions.gib is True; it must be of type float"),
    (set_at(("conditions", "versions"), [["torch"]]), r"conditions.versions\[0\] is \['torch'\]"),
    (set_at(("label",), "a trained 8B"), "label is 'a trained 8B'; a file of this folder says"),
])  # fmt: skip
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, text, why):
    with pytest.raises(ValueError, match=why) as caught:
        read_gpu_runs(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: ")
    assert "make it again with tools/measure_gpu.py" in str(caught.value)


def test_a_missing_field_is_named(tmp_path):
    data = json.loads(to_text(RUN))
    del data["conditions"]["driver"]
    with pytest.raises(ValueError, match="conditions: field 'driver' of Conditions is missing"):
        read_gpu_runs(written(tmp_path, json.dumps(data)))


# -- tables


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(first)]
    return line.split()


def test_errors_are_those_of_the_plan_against_what_was_measured():
    assert MEASURED.peak_error == pytest.approx(20 / 16 - 1)
    assert MEASURED.reserved_error == pytest.approx(33 / 30 - 1)
    assert FULL.peak_error is FULL.reserved_error is None


def test_measured_stands_beside_planned():
    text = table([RUN])
    assert cells(text, "sft     lora") == (
        ["sft", "lora", "2048", "4", "on", "16.00", "20.00", "+25.0%", "30.00", "33.00", "+10.0%", "4096", "40%"])
    assert cells(text, "reward")[5:] == ["out", "of", "memory", "81.50", "90.00"]
    assert "1 case not reached: the 25 minutes were used up" in text
    assert "FLOPs: so" in text
    assert text.startswith("NVIDIA Test 80GB (79.0 GiB; 989 TFLOP/s dense at 16 bits): random weights: memory and")
    assert "torch 2.13.0" in text
    assert "triton" not in text, "what is not installed is not listed"


def test_what_the_figures_do_not_say_is_said_under_them():
    cpu = replace(MEASURED, peak=None, reserved=None, mfu=None, before=None)
    assert "memory: not measured on a CPU" in table([replace(RUN, cases=(cpu,))])
    dirty = replace(MEASURED, before=GIB // 2)
    assert "1 cases began with up to 0.50 GiB in use" in table([replace(RUN, cases=(MEASURED, dirty))])
    assert "began with" not in table([RUN])
    odd = replace(MEASURED, why="adapters are float16")
    assert "sft lora 2048: adapters are float16" in table([replace(RUN, cases=(odd,))])
    assert "2 cases not reached" in table([replace(RUN, cases=(LATE, LATE))])


def test_markdown_has_the_same_cells_and_whole_rows():
    text = as_markdown([RUN])
    rows = [line for line in text.splitlines() if line.startswith("| sft | lora")]
    assert rows == ["| sft | lora | 2048 | 4 | on | 16.00 | 20.00 | +25.0% | 30.00 | 33.00 | +10.0% | 4096 | 40% |"]
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len({line.count("|") for line in block}) for block in blocks] == [1, 1]
    assert len(blocks[1]) == 2 + len(published())


# -- published figures


def test_published_figures_are_planned_where_their_conditions_are_known():
    for p in published():
        if p.recipe:
            assert plan(p.recipe, find_gpu(p.gpu)).peak / GIB == pytest.approx(p.gib, rel=0.01), p.what
    assert [p.source for p in published() if not p.recipe] == ["torchtune", "unsloth"]
    assert "fms-acceleration" in table([RUN])


@pytest.mark.skipif(not PEAKS.exists(), reason="the published peaks are not on this machine")
def test_published_figures_are_those_of_the_published_rows():
    with PEAKS.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["model"].endswith("3-8B") and r["method"] != "full"]
    assert len(rows) == 4
    ours = {(p.recipe.method, p.recipe.logits, p.recipe.micro_batch): p for p in published() if p.recipe}
    for row in rows:
        method = row["method"].partition("-")[0]
        logits = "chunked" if "FLCE" in row["fused_ce"] else "full"
        if mine := ours.get((method, logits, int(row["micro_batch"]))):
            assert mine.gib == pytest.approx(float(row["peak_gib"]), abs=0.051)
            low, high = mine.tokens_per_second
            assert not low or low - 1 <= float(row["tok_s"]) <= high
    assert {("lora", "chunked", 4), ("lora", "full", 4), ("qlora", "chunked", 4)} <= set(ours)


def test_no_torch_is_needed():
    code = "import sys, llama3_lab.paper.gpu_runs as g; g.table([]); print(*({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
