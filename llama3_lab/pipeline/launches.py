"""launch(): a stage of training.py in several processes, under `accelerate launch`, on one machine or on many.

The stage itself is not rewritten. A job is a folder with job.json and rows.jsonl; each process reads it, takes its
share of every batch (the global batch, the order of the rows and so the loss stay those of one process), and the first
alone writes. On one machine `launch` does it all; on several, write_job() on a disk that all can see, then on each
machine the command that command() returns (docs/scaling.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llama3_lab.pipeline.health import Training, read_training
from llama3_lab.profiles import Dpo, Model, Reward, Sft
from llama3_lab.records import Demonstration, PreferencePair
from llama3_lab.store import from_json, read_records, read_text, to_json, write_records, write_text

PARTS: dict[str, tuple[Any, Any]] = {
    "sft": (Sft, Demonstration), "reward": (Reward, PreferencePair), "dpo": (Dpo, PreferencePair),
}  # fmt: skip
DIED = re.compile(r"rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.S)  # torchrun's summary names the first to fail
PATIENCE = 20  # seconds that workers have to go before they are killed


@dataclass(frozen=True)
class Job:
    """What to train: a stage, the parent's folder (or hub id), the stage's settings, and the model's.

    how: Sft, Reward or Dpo, as the stage has it; DPO's seed is how.fit.seed. embeddings: of SFT, as in train_sft.
    """

    stage: Literal["sft", "reward", "dpo"]
    parent: str
    how: Any
    model: Model
    embeddings: bool = True

    def __post_init__(self) -> None:
        if self.stage not in PARTS:
            raise ValueError(f"stage is {self.stage!r}; use {', '.join(PARTS)}")
        if not isinstance(self.how, PARTS[self.stage][0]):
            raise ValueError(f"{self.stage} takes settings of {PARTS[self.stage][0].__name__}, "
                             f"not of {type(self.how).__name__}")  # fmt: skip


def launch(job: Job, rows: Sequence[Any], out: Path, config: Path) -> Training:
    """Train `job` on `rows` in the processes that accelerate's `config` asks for; return what the stage showed.

    `out` then holds what train_sft, train_reward or train_dpo write in one process. Where a worker fails or is
    killed, the others are ended, `out` is left as empty as it was, and the same call starts the stage again.

    Raises:
        ValueError: one line: a setting that cannot be used, what the stage refused, or which worker died of what.
    """
    count = processes(config)
    _check_shares(job, count, out)
    before = set(out.iterdir()) if out.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="llama3-lab-job-") as folder:
        write_job(job, rows, out, Path(folder))
        code, said = _run(command(Path(folder), config))
        if code == 0:
            return read_training(out)
        refused = sorted(Path(folder).glob("refused-*.txt"))
        reason = read_text(refused[0]) if refused else _why(_stage(out), code, said, count)
    for path in set(out.iterdir()) - before if before is not None else {out} if out.is_dir() else set():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    raise ValueError(reason)


def launched(stage: Literal["sft", "reward", "dpo"], config: Path) -> Callable[..., Training]:
    """Return what train_sft, train_reward or train_dpo is, in the processes of `config`: same arguments, same files."""

    def train(
        parent: Path, rows: Sequence[Any], how: Any, out: Path, settings: Model, seed: int | None = None,
        embeddings: bool = True,
    ) -> Training:  # fmt: skip
        full = how if seed is None else replace(how, fit=replace(how.fit, seed=seed))
        return launch(Job(stage, str(parent), full, settings, embeddings), rows, out, config)

    return train


def write_job(job: Job, rows: Sequence[Any], out: Path, folder: Path) -> None:
    """Write the job and its rows into `folder`, which every process must be able to see, as it must `out`."""
    parent = str(Path(job.parent).resolve()) if Path(job.parent).is_dir() else job.parent
    content = {"stage": job.stage, "parent": parent, "how": to_json(job.how), "model": to_json(job.model),
               "embeddings": job.embeddings, "out": str(out.resolve())}  # fmt: skip
    write_records(folder / "rows.jsonl", rows)
    write_text(folder / "job.json", json.dumps(content, indent=1) + "\n")


def command(folder: Path, config: Path, *more: str) -> list[str]:
    """Return the command that runs the job in `folder`. more: for accelerate, e.g. "--machine_rank", "1"."""
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *more,
            "-m", "llama3_lab.pipeline.launches", str(folder)]  # fmt: skip


def read_job(folder: Path) -> tuple[Job, list[Any], Path]:
    """Return the job, its rows, and the folder that it trains into; ValueError where one cannot be read."""
    try:
        raw = json.loads(read_text(folder / "job.json"))
        settings, record = PARTS[raw["stage"]]
        job = Job(raw["stage"], raw["parent"], from_json(settings, raw["how"]), from_json(Model, raw["model"]),
                  raw["embeddings"])  # fmt: skip
        return job, read_records(folder / "rows.jsonl", record), Path(raw["out"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: no job of write_job() ({error!r}); write it again") from None


def work(folder: Path) -> None:
    """Be one of a job's processes: the environment says which (RANK, WORLD_SIZE, LOCAL_RANK)."""
    job, rows, out = read_job(folder)
    _check_shares(job, int(os.environ.get("WORLD_SIZE", "1")), out)
    if os.environ.get("RANK", "0") != "0":
        os.environ["LLAMA3_LAB_PROGRESS"] = "0"  # one bar is enough
    import torch

    from llama3_lab.pipeline.training import train_dpo, train_reward, train_sft

    if job.model.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    parent = Path(job.parent)
    if job.stage == "sft":
        train_sft(parent, rows, job.how, out, job.model, job.embeddings)
    elif job.stage == "reward":
        train_reward(parent, rows, job.how, out, job.model)
    else:
        train_dpo(parent, rows, job.how, out, job.model, job.how.fit.seed)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _stage(out: Path) -> str:
    return out.name.removesuffix(".partial")


def processes(config: Path) -> int:
    """Return how many processes the config asks for; ValueError where it cannot be read."""
    import yaml

    try:
        return int(yaml.safe_load(read_text(config))["num_processes"])
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{config}: not a config of accelerate with num_processes ({type(error).__name__}); "
                         "take one of configs/accelerate/") from None  # fmt: skip


def _check_shares(job: Job, processes: int, out: Path) -> None:
    rows = job.how.fit.per_device_train_batch_size
    if rows % processes:
        raise ValueError(f"{_stage(out)}: a batch of {rows} rows cannot be shared by {processes} processes; "
                         "set fit.per_device_train_batch_size to a multiple")  # fmt: skip


def _run(words: list[str]) -> tuple[int, str]:
    """Run a command in a process group of its own; return its exit code and what it wrote on standard error."""
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, env=env, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:  # Ctrl-C, or a notebook's kernel that was stopped
                _end(process)
        errors.seek(0)
        return code, errors.read()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a launcher and its workers: politely, so that it ends them itself, then by force."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _why(stage: str, code: int, said: str, processes: int) -> str:
    """Return one line about a launch that failed: which worker, of what, and what to do."""
    again = "nothing was kept of this stage; the same call starts it again"
    found = DIED.search(said[said.rfind("Root Cause") :])
    if found and int(found[2]) < 0:
        name = signal.Signals(-int(found[2])).name
        hint = " (out of memory, if nobody did it)" if name == "SIGKILL" else ""
        return f"{stage}: worker {found[1]} of {processes} was killed by {name}{hint}; {again}"
    lines = [line.strip() for line in said.splitlines() if re.match(r"(\[rank\d+\]: )?\w*(Error|Exception)\b", line)]
    last = re.sub(r"^\[rank\d+\]: ", "", lines[0])[:300] if lines else f"exit code {found[2] if found else code}"
    return f"{stage}: worker {found[1] if found else 0} of {processes} failed: {last}; {again}"


def main() -> int:
    """Run one process of the job named on the command line; return its exit code."""
    folder = Path(sys.argv[1])
    try:
        work(folder)
    except ValueError as error:
        rank = int(os.environ.get("RANK", "0"))
        write_text(folder / f"refused-{rank:05}.txt", " ".join(str(error).split()))
        print(f"llama3-lab: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
