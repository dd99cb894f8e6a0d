"""docs/scaling.md: its figures are the planner's, its examples parse, and what they name is there."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from llama3_lab import cli

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "scaling.md").read_text()
BLOCKS = [(m[1], m[2]) for m in re.finditer(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)]
TABLE = TEXT.split("<!-- plan:begin -->")[1].split("<!-- plan:end -->")[0]
ROWS = [line.split("|")[1:-1] for line in TABLE.splitlines() if line.startswith("| `--")]
TASK_KEYS = {"name", "num_nodes", "resources", "workdir", "file_mounts", "envs", "setup", "run"}  # of SkyPilot, some


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_blocks_are_those_that_are_tested():
    assert {name for name, _ in BLOCKS} == {"console", "python", "bash", "yaml"}
    assert TEXT.count("```") == 2 * len(BLOCKS), "a block that is not closed, or without a language"
    assert len(blocks("python")) >= 3 and len(blocks("yaml")) >= 2 and len(ROWS) >= 8


@pytest.mark.parametrize("row", ROWS, ids=[r[0].strip(" `") for r in ROWS])
def test_a_figure_is_what_the_planner_says(row, capsys):
    words, peak, fits, hours = (cell.strip() for cell in row)
    assert cli.main(["plan", *shlex.split(words.strip("`")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"{found['peak_allocated_gib']:.1f}" == peak
    assert ("yes" if found["fits"] else "no") == fits
    low, high = found["costs"]["hours"]
    assert hours == f"{low:.2g} to {high:.2g}" and found["costs"]["examples"] == 10_000


@pytest.mark.parametrize("code", blocks("python"))
def test_python_compiles_and_imports_what_there_is(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


def test_the_job_of_the_docs_is_one_that_a_worker_reads(tmp_path, monkeypatch):
    from llama3_lab.pipeline.launches import read_job

    monkeypatch.chdir(tmp_path)
    (code,) = [c for c in blocks("python") if "write_job(" in c]
    exec(compile(code, "docs/scaling.md", "exec"), {})
    job, rows, out = read_job(Path("jobs/sft-1"))
    assert job.stage == "sft" and len(rows) == 400 and out == (tmp_path / "jobs" / "sft-1" / "out").resolve()


def shell() -> list[str]:
    tasks = [yaml.safe_load(b) for b in blocks("yaml")]
    return [*blocks("bash"), *(t[part] for t in tasks for part in ("setup", "run") if part in t)]


@pytest.mark.parametrize("script", shell())
def test_shell_parses(script):
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    for line in re.findall(r"bash -c '(.*?)'", script, re.S):
        assert subprocess.run(["bash", "-n"], input=line, text=True, capture_output=True).returncode == 0
    for option in re.findall(r"^#SBATCH (.*)$", script, re.M):
        assert re.fullmatch(r"--[a-z-]+=\S+", option), option


def test_broken_shell_would_be_found():
    assert subprocess.run(["bash", "-n"], input="if true; then\n", text=True, capture_output=True).returncode


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_skypilot_task_has_its_parts(text):
    task = yaml.safe_load(text)
    assert set(task) <= TASK_KEYS and {"name", "resources", "run"} <= set(task)
    assert re.fullmatch(r"[A-Z0-9-]+:\d+", task["resources"]["accelerators"])
    assert isinstance(task.get("num_nodes", 1), int)


@pytest.mark.parametrize("script", shell())
def test_accelerate_takes_the_words_of_the_examples(script, monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    joined = script.replace("\\\n", " ")
    for line in re.findall(r"accelerate launch (.*?)(?:'|$)", joined, re.M):
        words = [re.sub(r"^\$(SLURM_NODEID|SKYPILOT_NODE_RANK)$", "1", w) for w in shlex.split(line)]
        args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert args.training_script == "llama3_lab.pipeline.launches" and args.module
        assert int(args.machine_rank) == 1 and args.num_machines == 2


def test_every_file_that_is_named_is_there():
    named = re.findall(r"(?:configs/accelerate/|`)(\w+\.yaml)", TEXT)
    assert named and all((ROOT / "configs" / "accelerate" / n).is_file() for n in named)
    assert (ROOT / "tools" / "lm_eval_tasks" / "llama3_lab.yaml").is_file()


def test_console_lines_are_commands_that_parse():
    known = cli._parser()
    for line in [line for block in blocks("console") for line in block.splitlines()]:
        words = shlex.split(line.removeprefix("$ "))
        assert line.startswith("$ ") and words[0] in ("llama3-lab", "lm_eval")
        if words[0] == "llama3-lab":
            known.parse_args(words[1:])


def test_what_was_not_measured_is_named():
    last = TEXT[TEXT.index("## Not measured here") :]
    for word in ("FSDP2", "vLLM", "several machines", "several GPUs", "llama.cpp", "70B"):
        assert word in last, word
