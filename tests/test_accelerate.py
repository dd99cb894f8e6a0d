"""Stages under `accelerate launch`: two CPU processes learn what one learns; a killed worker ends it; ready configs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from llama3_lab.models import load_policy, lora_config
from llama3_lab.pipeline import training
from llama3_lab.pipeline.launches import Job, _run, _why, command, launch, launched, read_job, write_job
from llama3_lab.pipeline.training import read_training, train_dpo, train_reward, train_sft
from llama3_lab.profiles import TINY, Dpo, Fit, Lora, Model, Reward, Sft
from llama3_lab.records import Check, Demonstration, PreferencePair, Prompt
from llama3_lab.store import RunFolder, digest_records

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "data" / "tiny_base"
CONFIGS = ROOT / "configs" / "accelerate"
TWO = CONFIGS / "two_cpu_processes.yaml"
SETTINGS = Model(threads=1)
FIT = Fit(learning_rate=2e-3, max_steps=6, per_device_train_batch_size=8, warmup_steps=1)
SFT, REWARD, DPO = Sft(FIT, Lora(8, 16)), Reward(FIT, Lora(8, 16)), Dpo(FIT, Lora(8, 16))


def prompt(i: int) -> Prompt:
    text = f"Ann has {i} apples and gets 5 more. How many apples does Ann have?"
    return Prompt(f"p{i}", "arithmetic", text, "train", 1, Check("number", str(i + 5)))


def right(i: int) -> str:
    return f"{i}+5={i + 5}\nAnswer: {i + 5}" + "!" * (i % 4)  # rows of several lengths, so that padding differs


DEMONSTRATIONS = [Demonstration(prompt(i), right(i), "written") for i in range(24)]
PAIRS = [PreferencePair(prompt(i), right(i), f"{i}-5={i}\nAnswer: 5", "better", "annotator", 2.0) for i in range(24)]


def by_metric(folder: Path) -> dict[str, tuple[float, ...]]:
    return {c.metric: c.values for c in read_training(folder).curves}


def workers(of: int) -> list[psutil.Process]:
    """The worker processes below a process, by rank."""
    found = {}
    for child in psutil.Process(of).children(recursive=True):
        try:
            rank = child.environ().get("RANK")
        except psutil.Error:
            continue
        if rank is not None:
            found[int(rank)] = child
    return [found[r] for r in sorted(found)]


def talking(processes: list[psutil.Process]) -> bool:
    """Whether every worker is connected to another: imports are over, the group is up."""
    try:
        return len(processes) == 2 and all(
            sum(c.status == "ESTABLISHED" for c in p.net_connections()) >= 2 for p in processes
        )
    except psutil.Error:
        return False


def kill_one_worker(rank: int, deadline: float = 60.0) -> None:
    until = time.monotonic() + deadline
    while time.monotonic() < until:
        found = workers(os.getpid())
        if talking(found):
            time.sleep(1.0)
            found[rank].send_signal(signal.SIGKILL)
            return
        time.sleep(0.05)


def make_sft(folder: RunFolder, how: Sft) -> None:
    def make(out: Path) -> None:
        launch(Job("sft", str(BASE), how, SETTINGS), DEMONSTRATIONS, out, TWO)

    folder.checkpoint("sft", "policy", "base", digest_records(DEMONSTRATIONS), make)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder in which a worker was killed half-way through the second stage, and which then went on."""
    path = tmp_path_factory.mktemp("run") / "run"
    made: list[str] = []
    with RunFolder(path, TINY) as folder:
        folder.once("written", Demonstration, lambda: DEMONSTRATIONS)
        long = replace(SFT, fit=replace(FIT, max_steps=100_000))
        killer = threading.Thread(target=kill_one_worker, args=(1,))
        killer.start()
        with pytest.raises(ValueError, match="worker 1 of 2 was killed by SIGKILL") as error:
            make_sft(folder, long)
        killer.join()
        assert "\n" not in str(error.value) and "the same call starts it again" in str(error.value)
        assert not list((path / "checkpoints").iterdir()) and not workers(os.getpid())
    with RunFolder(path, TINY) as folder:
        folder.once("written", Demonstration, lambda: made.append("again") or DEMONSTRATIONS)
        make_sft(folder, SFT)
    assert not made, "the stage that had finished was made again"
    return path


def same_as_alone(two: Path, alone: Path, tolerance: float) -> None:
    a, b = by_metric(two), by_metric(alone)
    assert a.keys() == b.keys()
    assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
    assert read_training(two).tokens == read_training(alone).tokens, "other rows, or rows twice"
    files = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()) for f in (two, alone)]
    assert files[0] == files[1]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        x, y = load_file(two / name), load_file(alone / name)
        assert {k: (v.shape, v.dtype) for k, v in x.items()} == {k: (v.shape, v.dtype) for k, v in y.items()}
    for name in ("config.json", "generation_config.json", "adapter/adapter_config.json", "tokenizer.json"):
        if (alone / name).exists():
            assert (two / name).read_bytes() == (alone / name).read_bytes(), name


def test_sft_after_a_killed_worker_is_that_of_one_process(run, tmp_path):
    train_sft(BASE, DEMONSTRATIONS, SFT, tmp_path / "sft", SETTINGS)
    two = run / "checkpoints" / "sft"
    same_as_alone(two, tmp_path / "sft", 1e-4)
    moved = max((load_file(BASE / "model.safetensors")[n] - w).abs().max()
                for n, w in load_file(tmp_path / "sft" / "model.safetensors").items())  # fmt: skip
    apart = max((load_file(two / "model.safetensors")[n] - w).abs().max()
                for n, w in load_file(tmp_path / "sft" / "model.safetensors").items())  # fmt: skip
    assert apart < 0.05 * moved


def test_a_reward_model_of_two_processes_is_that_of_one(tmp_path):
    launch(Job("reward", str(BASE), REWARD, SETTINGS), PAIRS, tmp_path / "two" / "rm", TWO)
    train_reward(BASE, PAIRS, REWARD, tmp_path / "one" / "rm", SETTINGS)
    same_as_alone(tmp_path / "two" / "rm", tmp_path / "one" / "rm", 1e-3)


def test_dpo_of_two_processes_is_that_of_one(run, tmp_path):
    parent = run / "checkpoints" / "sft"
    launched("dpo", TWO)(parent, PAIRS, DPO, tmp_path / "two" / "dpo", SETTINGS, seed=7)
    train_dpo(parent, PAIRS, DPO, tmp_path / "one" / "dpo", SETTINGS, seed=7)
    # The NLL term is a mean over a process's own tokens, so its weight on each pair differs a little.
    same_as_alone(tmp_path / "two" / "dpo", tmp_path / "one" / "dpo", 0.02)


def test_what_a_stage_refuses_comes_back_as_its_one_line(tmp_path):
    spoiled = [Demonstration(replace(prompt(1), split="test"), right(1), "written")] * 8
    one = tmp_path / "one.yaml"
    one.write_text((CONFIGS / "one_gpu.yaml").read_text().replace("use_cpu: false", "use_cpu: true"))
    with pytest.raises(ValueError, match="p1: a test prompt must never train") as error:
        launch(Job("sft", str(BASE), SFT, SETTINGS), spoiled, tmp_path / "sft", one)
    assert "\n" not in str(error.value) and not (tmp_path / "sft").exists()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(training._SftTrainer, "is_world_process_zero", lambda self: False)
    gathered: list[object] = []
    monkeypatch.setattr(training, "_gather", gathered.append)
    how = replace(SFT, fit=replace(FIT, max_steps=1))
    assert train_sft(BASE, DEMONSTRATIONS, how, tmp_path / "sft", SETTINGS).curves
    assert len(gathered) == 1, "shards become whole only where every process takes part"
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_launch_that_is_interrupted_leaves_no_process():
    begun, before = time.monotonic(), psutil.Process().children(recursive=True)
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        _run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert time.monotonic() - begun < 30, "it was waited for, not ended"
    assert not set(psutil.Process().children(recursive=True)) - set(before)


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_starts(tmp_path):
    how = replace(SFT, fit=replace(FIT, per_device_train_batch_size=5))
    with pytest.raises(ValueError, match="5 rows cannot be shared by 2 processes"):
        launch(Job("sft", str(BASE), how, SETTINGS), DEMONSTRATIONS, tmp_path / "sft", TWO)


def test_a_job_is_read_back_as_it_was_written(tmp_path):
    job = Job("dpo", str(BASE), DPO, SETTINGS, embeddings=False)
    write_job(job, PAIRS, tmp_path / "out", tmp_path)
    assert read_job(tmp_path) == (job, PAIRS, tmp_path / "out")
    (tmp_path / "job.json").write_text('{"stage": "dpo"}')
    with pytest.raises(ValueError, match="no job of write_job"):
        read_job(tmp_path)


def test_a_job_takes_its_own_settings_only():
    with pytest.raises(ValueError, match="stage is 'ppo'"):
        Job("ppo", "x", SFT, SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dpo takes settings of Dpo, not of Sft"):
        Job("dpo", "x", SFT, SETTINGS)


def test_a_config_that_is_none_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [")
    for path in (tmp_path / "x.yaml", tmp_path / "none.yaml"):
        with pytest.raises(ValueError, match=path.name):
            launch(Job("sft", str(BASE), SFT, SETTINGS), DEMONSTRATIONS, tmp_path / "out", path)


SUMMARY = """Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : {rank} (local_rank: 1)
  exitcode  : {code} (pid: 7)
"""


@pytest.mark.parametrize(
    ("said", "words"),
    [(SUMMARY.format(rank=3, code=-9), "x: worker 3 of 4 was killed by SIGKILL (out of memory, if nobody did it)"),
     (SUMMARY.format(rank=0, code=-11), "x: worker 0 of 4 was killed by SIGSEGV;"),
     ("[rank2]: RuntimeError: CUDA error\n" + SUMMARY.format(rank=2, code=1),
      "x: worker 2 of 4 failed: RuntimeError: CUDA error;"),
     ("", "x: worker 0 of 4 failed: exit code 1;")],
)  # fmt: skip
def test_a_failure_is_told_in_one_line(said, words):
    line = _why("x", 1, said, 4)
    assert line.startswith(words) and "\n" not in line


# -- FSDP2: its shards, on the CPU; training under it needs GPUs (docs/scaling.md says what was not measured)


def test_shards_of_fsdp2_become_whole_again(tmp_path):
    from peft import get_peft_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    policy = load_policy(BASE, SETTINGS)
    torch.manual_seed(0)
    model = get_peft_model(policy.model, lora_config(Lora(4, 8), "CAUSAL_LM", training.EMBEDDINGS)).eval()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        wanted = model(ids).logits
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in model.base_model.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert any(hasattr(p, "full_tensor") for p in model.parameters()), "nothing was sharded"
        training._gather(model)
        assert not any(hasattr(p, "full_tensor") for p in model.parameters())
        training._write(model, policy.tokenizer, tmp_path, SETTINGS)
    finally:
        torch.distributed.destroy_process_group()
    with torch.no_grad():
        again = load_policy(tmp_path, SETTINGS).model(ids).logits
        base = load_policy(BASE, SETTINGS).model(ids).logits
    assert (again - wanted).abs().max() < 1e-3 < 0.1 < (wanted - base).abs().max()


# -- the ready configs


def test_every_config_is_one_that_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    found = sorted(CONFIGS.glob("*.yaml"))
    assert {p.stem for p in found} == {"one_gpu", "several_gpus", "several_gpus_fsdp2", "several_nodes_fsdp2",
                                       "two_cpu_processes"}  # fmt: skip
    for path in found:
        config = load_config_from_file(str(path))
        assert config.num_processes % config.num_machines == 0
        assert (config.num_machines > 1) == (path.stem.startswith("several_nodes"))
        assert ("fsdp2" in path.stem) == (config.fsdp_config.get("fsdp_version") == 2)


def test_a_config_of_fsdp2_wraps_the_layers_that_a_llama_has():
    layers = type(load_policy(BASE, SETTINGS).model.model.layers[0]).__name__
    for path in CONFIGS.glob("*fsdp2.yaml"):
        assert yaml.safe_load(path.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"] == layers


def test_the_launchers_command_takes_every_config(tmp_path):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    for path in CONFIGS.glob("*.yaml"):
        words = command(tmp_path, path, "--machine_rank", "0")
        args, *_ = _validate_launch_command(launch_command_parser().parse_args(words[3:]))
        assert args.module and args.training_script == "llama3_lab.pipeline.launches"
        assert args.num_processes == yaml.safe_load(path.read_text())["num_processes"]
        assert args.multi_gpu or args.use_fsdp or args.num_processes == 1
