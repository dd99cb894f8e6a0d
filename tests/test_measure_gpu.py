"""The GPU's measurement, on a CPU at a small shape: the path, the order, the budget, no memory left, the records."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import os
import subprocess
import sys
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gpu_cases
import measure_gpu
import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from llama3_lab import profiles
from llama3_lab.models import quiet
from llama3_lab.paper import scale, weights
from llama3_lab.paper.catalogue import GIB, MIB, Gpu
from llama3_lab.paper.gpu_runs import read_gpu_runs, to_text
from llama3_lab.paper.memory import plan
from llama3_lab.pipeline import training

ROOT = Path(__file__).resolve().parents[1]
CARD = Gpu("test", 80.0)
TINY, EIGHT = measure_gpu.SHAPES["tiny"], measure_gpu.SHAPES["8b"]
QLORA = importlib.util.find_spec("bitsandbytes") is not None
HOW = gpu_cases.How("cpu", "sdpa", 0, TINY.warm_up, TINY.steps, math.inf, 0.0)
DRY = ["--device", "cpu", "--shape", "tiny"]
ALL = measure_gpu.cases


def tiny_cases(*wanted: tuple[str, str, int, int, bool]):
    """The cases of the tiny shape with that stage, method, length, rows and checkpointing."""
    found = {(c.stage, c.recipe.method, c.recipe.seq, c.recipe.micro_batch, c.recipe.checkpointing): c
             for c in ALL(TINY, CARD, "", "sdpa")}  # fmt: skip
    return [found[key] for key in wanted]


SFT, OFF, GUARD = ("sft", "lora", 32, 1, True), ("sft", "lora", 32, 1, False), ("guard", "lora", 32, 1, False)


@pytest.fixture(scope="module", autouse=True)
def environment():
    """What the command sets for itself ends with these tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


# -- what is measured


def test_every_case_that_was_asked_for_is_there_once():
    found = ALL(EIGHT, CARD, "", "sdpa")
    keys = [(c.stage, c.recipe.method, c.recipe.seq, c.recipe.micro_batch, c.recipe.checkpointing) for c in found]
    assert len(set(keys)) == len(keys)
    trains = ("sft", "reward", "dpo")
    for stage in measure_gpu.STAGES:
        for method in ("lora", "qlora"):
            sizes = [(1024, 1), (2048, 1), (4096, 1), (8192, 1), (1024, 4), (2048, 4)]
            assert {(stage, method, *size, stage in trains) for size in sizes} <= set(keys)
    assert [k for k in keys if k[0] in trains and not k[4]] == [("sft", "lora", 2048, 1, False)]
    assert len(keys) == 61
    assert all(c.recipe.model.parameters() > 8e9 for c in found)


def test_the_most_telling_cases_come_first():
    found = ALL(EIGHT, CARD, "bitsandbytes is not installed", "sdpa")
    first = [(c.stage, c.recipe.method, c.recipe.seq) for c in found[:5]]
    assert first == [(stage, "lora", 2048) for stage in measure_gpu.STAGES]
    assert {c.recipe.seq for c in found[:11]} == {2048}
    assert Counter(c.outcome for c in found) == {"not reached": 31, "not measured": 30}
    assert {c.why for c in found if c.recipe.method == "qlora"} == {"bitsandbytes is not installed"}


def test_flops_are_counted_by_hand():
    m = TINY.model
    per_layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 192  # weights of a layer's matrices
    attention = 4 * 2 * 4 * 16 * (32 * 33 // 2)
    body, output = 2 * 2 * per_layer * 32 + attention, 2 * 512 * 64 * 32
    adapters = 6 * 2 * 16 * (sum(a + b for a, b in m.linear_shapes.values())) * 32
    sft, reward, dpo, guard = (measure_gpu.step(c.stage, c.recipe) for c in tiny_cases(
        SFT, ("reward", "lora", 32, 1, True), ("dpo", "lora", 32, 1, True), GUARD))  # fmt: skip
    assert sft == (2 * (body + output) + adapters, 32)
    assert reward == (2 * (2 * (body + 2 * 64 * 32) + adapters), 64), "a pair is two rows; its head has one output"
    assert dpo == (2 * sft[0], 64), "the reference is no part of a step"
    assert guard == (body + 2 * 64 * 32 + 2 * 512 * 64, 32)
    off = tiny_cases(OFF)[0]
    assert measure_gpu.step("sft", off.recipe) == sft, "recomputation is no work of the model"


def test_sampling_counts_the_tokens_that_it_writes():
    (case,) = tiny_cases(("sample", "lora", 16, 2, False))
    flops, tokens = measure_gpu.step("sample", case.recipe)
    assert tokens == 2 * TINY.new_tokens
    once = scale.forward_flops(TINY.model, 15)  # the last token is written, and not read
    assert flops / 2 == pytest.approx(once - 2 * 512 * 64 * (12 - 1), rel=0.01), "one output layer for the prompt"


def test_a_guard_keeps_no_cache():
    (case,) = tiny_cases(GUARD)
    planned = plan(case.recipe, CARD)
    assert case.planned_peak == pytest.approx(planned.peak - planned.parts["kv cache"])
    assert case.planned_reserved < planned.reserved - GIB / 2, "nor is CUDA's context counted"


# -- cards


@pytest.mark.parametrize(("name", "capability", "tflops", "workspace"), [
    ("NVIDIA H200", (9, 0), 989, 32), ("NVIDIA H100 80GB HBM3", (9, 0), 989, 32), ("NVIDIA H100 PCIe", (9, 0), 756, 32),
    ("NVIDIA A100-SXM4-80GB", (8, 0), 312, 8.125), ("NVIDIA A100-PCIE-40GB", (8, 0), 312, 8.125),
    ("NVIDIA GeForce RTX 4090", (8, 9), 165, 8.125), ("NVIDIA RTX 6000 Ada Generation", (8, 9), 364, 8.125),
    ("NVIDIA L40S", (8, 9), 362, 8.125), ("NVIDIA A10G", (8, 6), 70, 8.125),
    ("NVIDIA H100 NVL", (9, 0), 0, 32), ("NVIDIA B200", (10, 0), 0, 32), ("NVIDIA GH200 480GB", (9, 0), 0, 32),
])  # fmt: skip
def test_cards_are_found_by_the_drivers_name_or_have_no_known_speed(name, capability, tflops, workspace):
    card = measure_gpu.card_of(name, 77.7, capability)
    assert (card.tflops, card.gib, card.workspace) == (tflops, 77.7, workspace * MIB)


@pytest.mark.parametrize(("gpu", "file"), [
    ("NVIDIA H200", "nvidia-h200.json"), ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb.json"),
    ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090.json"),
])  # fmt: skip
def test_a_file_is_named_for_its_card(gpu, file):
    assert measure_gpu.file_name(gpu) == file


# -- the model


@pytest.mark.parametrize("key", [SFT, ("reward", "lora", 32, 1, True)])
def test_the_model_is_llamas_with_values_everywhere(key):
    (case,) = tiny_cases(key)
    model, again = gpu_cases.new_model(case, HOW), gpu_cases.new_model(case, HOW)
    kind = LlamaForSequenceClassification if case.stage == "reward" else LlamaForCausalLM
    plain = kind(model.config)  # made the usual way
    assert type(model) is kind
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in model.parameters()) == weights.parameters(case.recipe)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    for (name, a), (_, b) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(a, b), name
        assert a.dtype == b.dtype == torch.float32
    spread = model.model.layers[0].mlp.up_proj.weight.float().std().item()
    assert spread == pytest.approx(gpu_cases.SPREAD, rel=0.05)
    assert model.model.norm.weight.float().unique().tolist() == [1.0]
    assert model.config.rope_parameters["rope_type"] == "llama3"


def test_the_full_shape_is_llama_31_8bs_to_the_unit():
    config = gpu_cases.config_of(EIGHT.model, "sdpa")
    with torch.device("meta"), quiet():
        model = LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == EIGHT.model.parameters()
    assert config.rope_parameters["factor"] == 8.0


@pytest.mark.skipif(not QLORA, reason="bitsandbytes is not installed")
def test_qlora_puts_the_layers_matrices_into_4_bits_and_nothing_else():
    (case,) = tiny_cases(("sft", "qlora", 32, 1, True))
    model = gpu_cases.new_model(case, HOW)
    four = {n.rpartition(".")[2] for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert four == set(TINY.model.linear_shapes)
    assert type(model.lm_head) is torch.nn.Linear
    up = model.model.layers[0].mlp.up_proj.weight
    assert up.numel() == 64 * 192 // 2, "two weights a byte"
    assert (up.quant_state.quant_type, up.quant_state.nested) == ("nf4", True)


def test_several_rows_are_padded_and_one_is_not():
    one, two = tiny_cases(SFT, ("sft", "lora", 32, 2, True))
    assert {len(r) for r in gpu_cases._rows(one.recipe, HOW, 0)} == {32}
    assert [len(r) for r in gpu_cases._rows(two.recipe, HOW, 0)] == [32, 31] * 3
    assert {len(r) for r in gpu_cases._rows(two.recipe, HOW, 1)} == {31}
    assert (one.recipe.packing, two.recipe.packing) == (True, False)


def test_settings_are_those_of_the_stages_that_a_run_trains():
    (case,) = tiny_cases(SFT)
    fit = replace(profiles.EIGHT_B.sft.fit, per_device_train_batch_size=1, micro_batch=1, seed=0)
    settings = replace(profiles.EIGHT_B.model, device="cpu")
    theirs, ours = training._arguments(fit, Path("out"), settings), gpu_cases.arguments(case.recipe, HOW, "out")
    assert {k for k in theirs | ours if theirs.get(k) != ours.get(k)} == {"max_steps", "warmup_steps"}
    assert not (profiles.EIGHT_B.sft.embeddings or profiles.EIGHT_B.reward.embeddings), "else they train in full too"


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_step_reads_its_rows_once(monkeypatch, stage):
    """No reference runs beside DPO's policy, and each step reads as many rows as are counted."""
    read = []

    def forward(self, input_ids, *given, real=LlamaModel.forward, **more):
        read.append(input_ids.numel())
        return real(self, input_ids, *given, **more)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    (case,) = tiny_cases((stage, "lora", 16, 2, True))
    assert gpu_cases.attempt(case, HOW).outcome == "measured"
    assert read == [case.step_tokens] * (TINY.warm_up + TINY.steps)


# -- a dry run


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """A run of eight cases by the command itself: its status, what it printed, and the folder it wrote to."""
    folder = tmp_path_factory.mktemp("gpu")
    few = [SFT, ("reward", "lora", 32, 1, True), ("dpo", "lora", 32, 1, True), ("sample", "lora", 32, 1, False), GUARD,
           ("sft", "qlora", 32, 1, True), OFF, ("dpo", "lora", 16, 2, True)]  # fmt: skip
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_gpu, "cases", lambda shape, card, missing, attention: [
            c for c in ALL(shape, card, missing, attention)
            if (c.stage, c.recipe.method, c.recipe.seq, c.recipe.micro_batch, c.recipe.checkpointing) in few])
        patch.setattr("builtins.print", lambda *a, **k: printed.append(k.get("sep", " ").join(map(str, a))))
        status = measure_gpu.main([*DRY, "--out", str(folder / "cpu.json")])
    return status, "\n".join(printed), folder


def test_a_dry_run_goes_the_whole_way(dry):
    status, printed, folder = dry
    (run,) = read_gpu_runs(folder)
    assert status == 0
    assert len(run.cases) == 8
    for case in run.cases:
        if case.recipe.method == "qlora" and not QLORA:
            assert (case.outcome, case.why) == ("not measured", "bitsandbytes is not installed")
            continue
        assert (case.outcome, case.why, case.steps) == ("measured", "", TINY.steps), "and trained what is planned"
        assert case.tokens_per_second == pytest.approx(case.step_tokens / case.seconds)
        assert case.peak is case.reserved is case.mfu is case.before is None, "not measured on a CPU"
    assert to_text(run) == (folder / "cpu.json").read_text()
    assert printed.splitlines()[-1].startswith("unsloth"), "the table is what is printed last"
    assert "memory: not measured on a CPU" in printed


def test_a_dry_run_says_how_it_was_made(dry):
    (run,) = read_gpu_runs(dry[2])
    c = run.conditions
    assert run.label == "random weights: memory and speed only"
    assert "row_flops" in run.counting
    assert (c.shape, c.seed, c.attention, c.minutes) == ("tiny", 0, "sdpa", 25.0)
    assert dict(c.versions)["torch"] == torch.__version__
    assert dict(c.settings)["gradient_checkpointing_kwargs"] == "{'use_reentrant': False}"
    assert time.strptime(c.date, "%Y-%m-%d")


def test_only_a_whole_run_on_a_card_is_kept_unasked(dry):
    (run,) = read_gpu_runs(dry[2])
    asked = argparse.Namespace(out=None, device="cuda", shape="8b", only=())
    on_card = replace(run, conditions=replace(run.conditions, gpu="NVIDIA H200"))
    assert measure_gpu._place(asked, on_card) == ROOT / "data" / "runs" / "gpu" / "nvidia-h200.json"
    for name, value in (("device", "cpu"), ("shape", "tiny"), ("only", ["sft"])):
        other = argparse.Namespace(**{**vars(asked), name: value})
        assert measure_gpu._place(other, run) is None
        assert measure_gpu._place(argparse.Namespace(**{**vars(other), "out": Path("x")}), run) == Path("x")


# -- on a card, as far as that can be shown without one


@pytest.fixture
def card(monkeypatch):
    """A card's calls, each noted by name: what they return is made up, and that they exist is not."""
    calls: list[str] = []

    def told(name, value):
        def call(*_, **__):
            calls.append(name)
            return value

        monkeypatch.setattr(torch.cuda, name, call)

    properties = argparse.Namespace(total_memory=140 * GIB)
    for name, value in {
        "is_available": True, "get_device_name": "NVIDIA H200", "get_device_capability": (9, 0),
        "is_bf16_supported": True, "get_device_properties": properties, "mem_get_info": (139 * GIB, 140 * GIB),
        "synchronize": None, "memory_allocated": 0, "max_memory_allocated": 20 * GIB, "max_memory_reserved": 22 * GIB,
        "reset_peak_memory_stats": None, "empty_cache": None,
    }.items():  # fmt: skip
        told(name, value)
    return calls


def test_memory_is_counted_over_the_timed_steps_only(card, monkeypatch):
    def three_steps(case, how, clock):
        card.clear()
        more = True
        while more:
            clock.start()
            card.append("step")
            more = clock.stop()
        card.append("end")
        return ""

    monkeypatch.setattr(gpu_cases, "_guard", three_steps)
    (case,) = tiny_cases(GUARD)
    done = gpu_cases.attempt(case, replace(HOW, device="cuda", tflops=989.0))
    around = ["synchronize", "step", "synchronize"]
    begun = ["synchronize", "reset_peak_memory_stats", "step", "synchronize"]
    assert card[: card.index("end")] == [*around, *begun, *around], "one warm-up, then two timed steps"
    assert (done.peak, done.reserved, done.before, done.steps) == (20 * GIB, 22 * GIB, 0, 2)
    assert done.mfu == pytest.approx(case.step_flops / done.seconds / 989e12)
    assert card[-1] == "empty_cache", "what is free goes back before the next case"


def test_a_run_on_a_card_writes_its_file_after_each_case(card, monkeypatch, tmp_path, capsys):
    written = []

    def measured(case, how):
        written.append(sorted(f.name for f in tmp_path.iterdir()))
        return replace(case, outcome="measured", steps=5, seconds=2.0, tokens_per_second=case.step_tokens / 2,
                       mfu=0.5, peak=20 * GIB, reserved=22 * GIB, before=0)  # fmt: skip

    monkeypatch.setattr(gpu_cases, "attempt", measured)
    monkeypatch.setattr(measure_gpu, "RUNS", tmp_path)
    monkeypatch.setattr(measure_gpu, "cases", lambda *given: ALL(*given)[:2])
    assert measure_gpu.main([]) == 0
    assert written == [[], ["nvidia-h200.json"]]
    (run,) = read_gpu_runs(tmp_path)
    c = run.conditions
    assert (c.gpu, c.gib, c.tflops, c.capability, c.context_gib, c.shape) == ("NVIDIA H200", 140, 989, "9.0", 1, "8b")
    assert [case.stage for case in run.cases] == ["sft", "reward"]
    planned = plan(run.cases[0].recipe, measure_gpu.card_of("NVIDIA H200", 140.0, (9, 0)))
    assert run.cases[0].planned_peak == planned.peak
    assert f"peak 20.00 GiB (planned {planned.peak / GIB:.2f})" in capsys.readouterr().out


def test_a_card_without_bf16_is_one_line(card, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert measure_gpu.main([]) == 2
    assert "has no bf16" in capsys.readouterr().err


# -- what goes wrong


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
])  # fmt: skip
def test_memory_that_is_out_is_a_result_and_nothing_stays(monkeypatch, error):
    made = []

    def step(self, model, *_, **__):
        made.append(weakref.ref(model))
        raise error

    case, following = tiny_cases(SFT, GUARD)
    with monkeypatch.context() as patch:
        patch.setattr(gpu_cases.Sft, "training_step", step)
        done = gpu_cases.attempt(case, HOW)
    error.__traceback__ = None  # the test holds the error; a real one goes with its case
    gc.collect()
    assert (done.outcome, done.why, done.seconds) == ("out of memory", "", None)
    assert [model() for model in made] == [None], "its memory must be free for the next case"
    assert gpu_cases.attempt(following, HOW).outcome == "measured", "and the next case runs"


def test_a_measured_model_goes_with_its_case(monkeypatch):
    made = []

    def watched(case, how, real=gpu_cases.new_model):
        model = real(case, how)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(gpu_cases, "new_model", watched)
    for case in tiny_cases(SFT, ("reward", "lora", 32, 1, True), GUARD):
        assert gpu_cases.attempt(case, HOW).outcome == "measured"
    assert [model() for model in made] == [None] * 3


def test_another_failure_is_recorded_and_the_rest_goes_on(monkeypatch, capsys):
    def broken(case, how, clock):
        raise TypeError("no such thing\nand more")

    monkeypatch.setattr(gpu_cases, "_sample", broken)
    monkeypatch.setattr(measure_gpu, "cases", lambda *_: tiny_cases(("sample", "lora", 32, 1, False), GUARD))
    assert measure_gpu.main(DRY) == 1
    printed = capsys.readouterr().out
    assert "1 case failed: TypeError: no such thing" in printed
    assert "and more" not in printed
    assert "2/2 guard lora, 1 × 32: " in printed


def test_a_card_that_is_lost_ends_the_measuring_not_the_program(monkeypatch, capsys):
    def lost(case, how):
        raise gpu_cases.CardLost("RuntimeError: CUDA error: unspecified launch failure")

    monkeypatch.setattr(gpu_cases, "attempt", lost)
    monkeypatch.setattr(measure_gpu, "cases", lambda *_: tiny_cases(SFT, GUARD))
    assert measure_gpu.main(DRY) == 1
    printed = capsys.readouterr().out
    assert "1/2 sft lora, 1 × 32: failed: the card stopped answering" in printed
    assert "2/2 guard lora, 1 × 32: not reached: the card stopped answering" in printed


# -- the budget


def test_what_the_budget_left_out_is_not_reached(monkeypatch, capsys):
    monkeypatch.setattr(measure_gpu, "cases", lambda *_: tiny_cases(SFT, GUARD))
    assert measure_gpu.main([*DRY, "--minutes", "0.0001"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not reached: the 0.0001 minutes were used up") == 3, "two lines, and one under the table"
    assert "2 cases not reached" in printed


def test_no_case_is_begun_that_may_end_too_late(monkeypatch, capsys):
    """One case took 40 of 60 seconds; another that long would not fit."""
    clock = [0.0]

    def slow(case, how):
        clock[0] += 40
        return replace(case, outcome="measured", steps=1, seconds=1.0, tokens_per_second=1.0)

    monkeypatch.setattr(gpu_cases, "attempt", slow)
    monkeypatch.setattr(measure_gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(measure_gpu, "cases", lambda *_: tiny_cases(SFT, OFF, GUARD))
    args = measure_gpu.read_arguments([*DRY, "--minutes", "1"])
    assert [c.outcome for c in measure_gpu.measure(args, 0.0).cases] == ["measured", "not reached", "not reached"]
    capsys.readouterr()


@pytest.mark.parametrize("key", [SFT, GUARD])
def test_the_deadline_stops_a_case_between_steps(monkeypatch, key):
    late = replace(HOW, deadline=time.monotonic() - 1)
    (case,) = tiny_cases(key)
    done = gpu_cases.attempt(case, late)
    assert (done.outcome, done.why) == ("not reached", "the time was up before a step could be timed")
    done = gpu_cases.attempt(case, replace(late, warm_up=0))
    assert (done.outcome, done.steps) == ("measured", 1), "one step was timed, and no second one begun"


# -- the command line


@pytest.mark.parametrize(("argv", "why"), [
    (["--minutes", "0"], "--minutes is 0; give more than 0"),
    (["--minutes", "nan"], "--minutes is nan"),
    (["--device", "cpu"], "--shape 8b needs a GPU; a dry run on a CPU is --device cpu --shape tiny"),
    (["--only", "train"], "invalid choice: 'train'"),
])  # fmt: skip
def test_a_wrong_command_line_is_said(argv, why, capsys):
    with pytest.raises(SystemExit) as caught:
        measure_gpu.main(argv)
    assert caught.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_there_is_one_line(capsys):
    assert measure_gpu.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "add --device cpu --shape tiny" in err


def test_a_table_of_a_folder_that_is_not_there_is_one_line(capsys, tmp_path):
    assert measure_gpu.main(["--table", "--out", str(tmp_path / "x")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert measure_gpu.main(["--table", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "not measured: no GPU was at hand\n"


@pytest.mark.parametrize("argument", ["--help", "--table"])
def test_help_and_table_load_no_torch(argument):
    code = ("import sys; sys.path.insert(0, 'tools'); import measure_gpu\n"
            f"try: measure_gpu.main(['{argument}'])\nexcept SystemExit: pass\n"
            "print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_one_card_is_seen_and_no_network():
    seen = {"CUDA_VISIBLE_DEVICES": "2,3"}
    measure_gpu._set_environment(seen)
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["HF_HUB_OFFLINE"]) == ("2", "1")
    fresh: dict[str, str] = {}
    measure_gpu._set_environment(fresh)
    assert fresh["CUDA_VISIBLE_DEVICES"] == "0"
