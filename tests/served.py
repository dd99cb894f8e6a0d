"""What several tests share: a small policy that knows the chat format, and `transformers serve` on loopback."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama3_lab.pipeline.prompts import draw_prompts
from llama3_lab.profiles import Fit, Lora, Model, Sft
from llama3_lab.records import Demonstration
from llama3_lab.world.corpus import ideal

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "data" / "tiny_base"
SETTINGS = Model(threads=1)
needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in ("fastapi", "uvicorn", "openai")),
    reason="the extra transformers[serving] is not installed (llama3-lab[serve])",
)


def small_policy(out: Path, steps: int = 30) -> Path:
    """Train the base on right answers just long enough that it answers in the chat format; return the folder."""
    from llama3_lab.pipeline.training import train_sft

    rows = [Demonstration(p, ideal(p), "written") for p in draw_prompts(60, "train", 0, "served")]
    fit = Fit(learning_rate=4e-3, max_steps=steps, per_device_train_batch_size=16, warmup_steps=3)
    train_sft(BASE, rows, Sft(fit, Lora()), out, SETTINGS)
    return out


@dataclass
class Running:
    """A server that runs: its address, and its process, which is the leader of its group."""

    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(folder: Path, port: int, log: Path, deadline: float = 90.0) -> Running:
    """Start `transformers serve` for a folder and wait until it is well."""
    tool = Path(sys.executable).with_name("transformers")
    words = [str(tool), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=env, start_new_session=True)
    running = Running(f"http://127.0.0.1:{port}", process)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + deadline
    while time.monotonic() < until and process.poll() is None:
        try:
            with opener.open(f"{running.url}/health", timeout=2):
                return running
        except OSError:
            time.sleep(0.1)
    running.kill()
    raise AssertionError(f"transformers serve did not come up: {log.read_text()[-2000:]}")


@contextmanager
def served(folder: Path, port: int, log: Path) -> Iterator[Running]:
    """A running server inside the block."""
    running = start(folder, port, log)
    try:
        yield running
    finally:
        running.kill()
