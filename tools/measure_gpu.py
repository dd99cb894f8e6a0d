"""make gpu: memory and speed of one GPU at the full 8B shape, with random weights, beside the planner's prediction.

    python tools/measure_gpu.py                              # up to 25 minutes; writes data/runs/gpu/<card>.json
    python tools/measure_gpu.py --table                      # what was recorded; needs no GPU
    python tools/measure_gpu.py --shape tiny                 # the same path on the card in a minute; writes nothing
    python tools/measure_gpu.py --device cpu --shape tiny    # a dry run without a card; memory is not measured

Nothing is downloaded. Every case is recorded, whatever came of it: "out of memory" and "not reached" (the time was
used up) are results too. The file is written anew after each case.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from llama3_lab.paper import scale
from llama3_lab.paper.architecture import Architecture, llama3
from llama3_lab.paper.catalogue import GIB, MIB, Gpu, find_gpu
from llama3_lab.paper.costs import row_flops
from llama3_lab.paper.gpu_runs import LABEL, Conditions, GpuCase, GpuRun, read_gpu_runs, table, to_text
from llama3_lab.paper.memory import CONTEXT_GIB, FRAGMENTS, plan
from llama3_lab.paper.recipe import Method, Recipe, Stage
from llama3_lab.profiles import EIGHT_B
from llama3_lab.store import write_text

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "data" / "runs" / "gpu"
STAGES: tuple[Stage, ...] = ("sft", "reward", "dpo", "sample", "guard")
METHODS: tuple[Method, ...] = ("lora", "qlora")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "triton", "flash-attn")
HOPPER, HOPPER_WORKSPACE = 9, 32 * MIB  # from this compute capability on cuBLAS's workspace is larger (PyTorch)
COUNTING = (
    "FLOPs: llama3_lab.paper.costs.row_flops without recomputation (with LoRA a backward pass costs one forward pass, "
    "for frozen matrices get no weight gradients; 6 for an adapter's weight and token; attention's causal half); a "
    "reward model, a guard and the reading of a prompt without the output layer; sampling: scale.decode_flops"
)


@dataclass(frozen=True)
class Shape:
    """A model, the four lengths it is measured at, tokens of an answer in sampling, and steps: timed, before, in all.

    wide: rows of the larger micro-batch, at the two shortest lengths. The second length is the one measured first.
    """

    name: str
    model: Architecture
    lengths: tuple[int, int, int, int]
    new_tokens: int
    wide: int = 4
    warm_up: int = 2
    steps: int = 5


TINY = Architecture(layers=2, width=64, ffn=192, heads=4, kv_heads=2, head_dim=16, vocabulary=512)
SHAPES = {
    "8b": Shape("8b", llama3("8b"), (1024, 2048, 4096, 8192), new_tokens=64),
    "tiny": Shape("tiny", TINY, (16, 32, 64, 128), new_tokens=4, wide=2, warm_up=1, steps=2),
}


# -- the cases, and what is expected of each


def cases(shape: Shape, card: Gpu, missing: str, attention: str) -> list[GpuCase]:
    """Return all cases, the most telling first; each "not reached" yet. missing: why QLoRA cannot be had, "" if it can.

    First every stage at the second length, LoRA before QLoRA; one without checkpointing; then the other lengths, the
    longest last; then the larger micro-batch.
    """
    short, first, long, longest = shape.lengths
    order = [(first, 1, True), (first, 1, False), (short, 1, True), (long, 1, True), (longest, 1, True),
             (short, shape.wide, True), (first, shape.wide, True)]  # fmt: skip
    out = []
    for seq, rows, checkpointing in order:
        for method in METHODS if checkpointing else METHODS[:1]:
            for stage in STAGES if checkpointing else STAGES[:1]:
                recipe = recipe_of(stage, method, shape, (seq, rows, checkpointing), attention)
                out.append(_case(stage, recipe, card, missing if method == "qlora" else ""))
    return out


def recipe_of(stage: Stage, method: Method, shape: Shape, size: tuple[int, int, bool], attention: str) -> Recipe:
    """Return the planner's recipe of a case: what tools/gpu_cases.py does, in the planner's words.

    size: length, rows, checkpointing. Several rows are padded, as real ones are; one alone is not. A guard's recipe is
    that of reading: here it is used, not trained.
    """
    seq, rows, checkpointing = size
    trains = stage in ("sft", "reward", "dpo")
    return Recipe(
        shape.model, stage if trains else "sample", method, seq, rows, lora_r=EIGHT_B.sft.lora.r, lora_dropout=0.0,
        checkpointing=checkpointing and trains, logits="chunked", optimizer="adamw", kernels="plain",
        attention="eager" if attention == "eager" else "flash", adapter_dtype="fp32" if method == "lora" else "bf16",
        packing=rows == 1, reference="precomputed",
        prompt=seq - shape.new_tokens if stage == "sample" else 0)  # fmt: skip


def _case(stage: Stage, recipe: Recipe, card: Gpu, missing: str) -> GpuCase:
    peak, reserved = planned(stage, recipe, card)
    flops, tokens = step(stage, recipe)
    return GpuCase(stage, recipe, "not measured" if missing else "not reached", missing, peak, reserved, flops, tokens)


def planned(stage: Stage, recipe: Recipe, card: Gpu) -> tuple[float, float]:
    """Return the planner's peak and reserved bytes, CUDA's context taken off; a guard keeps no keys and values."""
    found = plan(recipe, card)
    cache = found.parts.get("kv cache", 0.0) if stage == "guard" else 0.0
    return found.peak - cache, found.reserved - CONTEXT_GIB * GIB - cache * (1 + FRAGMENTS)


def step(stage: Stage, recipe: Recipe) -> tuple[float, int]:
    """Return one step's FLOPs, and the tokens it reads or, in sampling, writes; see COUNTING."""
    model, rows = recipe.model, recipe.rows
    headless = replace(model, vocabulary=1)
    if recipe.trains:
        counted = replace(recipe, checkpointing=False, model=headless if stage == "reward" else model)
        return row_flops(counted) * rows, recipe.tokens
    output = 2.0 * model.vocabulary * model.width  # at a row's last position only
    if stage == "guard":
        return (scale.forward_flops(headless, recipe.seq) + output) * rows, recipe.tokens
    written = sum(scale.decode_flops(model, context) for context in range(recipe.prompt + 1, recipe.seq))
    return (scale.forward_flops(headless, recipe.prompt) + output + written) * rows, rows * (recipe.seq - recipe.prompt)


# -- the card, and the conditions


def card_of(name: str, gib: float, capability: tuple[int, int]) -> Gpu:
    """Return the catalogue's card of that name with the memory that it really has; a nameless one where it has none."""
    workspace = HOPPER_WORKSPACE if capability[0] >= HOPPER else Gpu("", gib).workspace
    try:
        return replace(find_gpu(re.sub(r"\s+Generation$", "", name)), gib=gib, workspace=workspace)
    except ValueError:
        return Gpu(name, gib, workspace=workspace)


def file_name(gpu: str) -> str:
    """Return the name of a card's file: "NVIDIA H200" gives nvidia-h200.json."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def no_qlora() -> str:
    """Return why QLoRA cannot be measured, "" where it can."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return "bitsandbytes is not installed"
    except Exception as error:  # it loads a library of the card's; whatever that raises, the other cases can run
        return f"bitsandbytes cannot be loaded ({type(error).__name__})"
    return ""


def conditions(device: str, card: Gpu, attention: str, shape: Shape, args: argparse.Namespace) -> Conditions:
    """Return where and how the run is made."""
    import gpu_cases
    import torch

    on_card = device == "cuda"
    how = gpu_cases.How(device, attention, args.seed, shape.warm_up, shape.steps, math.inf, card.tflops)
    recipe = recipe_of("sft", "lora", shape, (shape.lengths[1], 1, True), attention)
    settings = {**gpu_cases.arguments(recipe, how, ""), "lora_alpha": EIGHT_B.sft.lora.alpha}
    free, total = torch.cuda.mem_get_info() if on_card else (0, 0)
    allocator = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "default"
    return Conditions(
        card.name if not on_card else torch.cuda.get_device_name(), card.gib if on_card else 0.0, card.tflops,
        ".".join(map(str, torch.cuda.get_device_capability())) if on_card else "", _driver() if on_card else "",
        torch.version.cuda or "", (total - free) / GIB if on_card else None, attention, allocator, shape.name,
        args.seed, args.minutes, shape.warm_up, datetime.date.today().isoformat(), _commit(),
        (("python", platform.python_version()), *((p, _version(p)) for p in PACKAGES)),
        tuple(sorted((k, str(v)) for k, v in settings.items() if k != "output_dir")))  # fmt: skip


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _asked(*command: str) -> str:
    """Return the first line that a program prints; "" where it is not there or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines and not done.returncode else ""


def _driver() -> str:
    return _asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _commit() -> str:
    commit = _asked("git", "rev-parse", "HEAD")
    changed = commit and _asked("git", "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if changed else commit


# -- the run


def ready(device: str) -> tuple[Gpu, str]:
    """Return the card, and the attention that is installed for it: FlashAttention 2, else PyTorch's own.

    Raises:
        ValueError: if there is no card, or it has no bf16.
    """
    import torch
    from transformers.utils import is_flash_attn_2_available

    if device == "cpu":
        return Gpu("CPU", 1.0), "sdpa"
    if not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else "sees no GPU"
        raise ValueError(f"PyTorch {torch.__version__} {built}; run this on a machine with an NVIDIA GPU, or for a dry "
                         "run add --device cpu --shape tiny")  # fmt: skip
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{name} has no bf16, which profile 8b needs; take a card of Ampere or later")
    card = card_of(name, torch.cuda.get_device_properties(0).total_memory / GIB, capability)
    return card, "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def measure(args: argparse.Namespace, started: float) -> GpuRun:
    """Try every case until the time is used up; print a line for each, and write the file after each.

    started: by time.monotonic, when the program began; the budget counts from there.
    """
    import gpu_cases

    card, found = ready(args.device)
    attention = found if args.attention == "auto" else args.attention
    shape, ends = SHAPES[args.shape], started + 60 * args.minutes
    how = gpu_cases.How(args.device, attention, args.seed, shape.warm_up, shape.steps, ends, card.tflops)
    todo = cases(shape, card, no_qlora(), attention)
    todo = [case for case in todo if not args.only or case.stage in args.only]
    run = GpuRun(LABEL, conditions(args.device, card, attention, shape, args), COUNTING, 0.0, tuple(todo))
    out = _place(args, run)
    longest, lost = 0.0, ""
    for i, case in enumerate(todo):
        if case.outcome == "not measured":
            continue
        began = time.monotonic()
        if lost or began + longest >= ends:
            todo[i] = replace(case, why=lost or f"the {args.minutes:g} minutes were used up")
        else:
            try:
                todo[i] = gpu_cases.attempt(case, how)
            except gpu_cases.CardLost as error:
                lost = f"the card stopped answering ({error})"
                todo[i] = replace(case, outcome="failed", why=lost)
            longest = max(longest, time.monotonic() - began)
        run = replace(run, seconds=round(time.monotonic() - started, 1), cases=tuple(todo))
        print(line(todo[i], i + 1, len(todo)), flush=True)
        if out:
            write_text(out, to_text(run))
    return run


def line(case: GpuCase, number: int, of: int) -> str:
    """Return what is said when a case is done."""
    r = case.recipe
    rest = case.outcome if not case.why else f"{case.outcome}: {case.why}"
    if case.outcome == "measured":
        peak = f", peak {case.peak / GIB:.2f} GiB (planned {case.planned_peak / GIB:.2f})" if case.peak else ""
        rest = f"{case.tokens_per_second or 0:.0f} tokens/s{peak}{'; ' + case.why if case.why else ''}"
    off = "" if r.checkpointing or not r.trains else ", no checkpointing"
    return f"{number}/{of} {case.stage} {r.method}, {r.micro_batch} × {r.seq}{off}: {rest}"


def _place(args: argparse.Namespace, run: GpuRun) -> Path | None:
    """Return the file to write: --out; else the card's own for the full shape on a card; else none."""
    if args.out:
        return args.out
    whole = args.device == "cuda" and args.shape == "8b" and not args.only
    return RUNS / file_name(run.conditions.gpu) if whole else None


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's settings; ends the program where they make no sense."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="8b")
    parser.add_argument("--minutes", type=float, default=25.0, help="time budget (default: %(default)g)")
    parser.add_argument("--attention", choices=("auto", "sdpa", "flash_attention_2", "eager"), default="auto")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=(), metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: data/runs/gpu/<card>.json")
    parser.add_argument("--table", action="store_true", help="only print what data/runs/gpu (or --out FOLDER) holds")
    args = parser.parse_args(argv)
    if not (args.minutes > 0 and math.isfinite(args.minutes)):
        parser.error(f"--minutes is {args.minutes:g}; give more than 0")
    if args.device == "cpu" and args.shape != "tiny" and not args.table:
        parser.error(f"--shape {args.shape} needs a GPU; a dry run on a CPU is --device cpu --shape tiny")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or print what was measured; the table comes last. Return 2 for wrong input, 1 if a case failed."""
    started = time.monotonic()
    args = read_arguments(argv)
    try:
        if args.table:
            print(table(read_gpu_runs(_folder(args.out or RUNS))))
            return 0
        _set_environment(os.environ)
        run = measure(args, started)
    except (ValueError, OSError) as error:
        print(f"measure_gpu: error: {error}", file=sys.stderr)
        return 2
    print("", table([run]), sep="\n")
    return 1 if any(case.outcome == "failed" for case in run.cases) else 0


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; --table reads data/runs/gpu, or the folder that --out names")
    return path


def _set_environment(environment: Any) -> None:
    """Set what must be set before torch is loaded: one card, no network, no chatter."""
    seen = environment.get("CUDA_VISIBLE_DEVICES", "0")
    environment["CUDA_VISIBLE_DEVICES"] = seen.split(",")[0]  # with several, transformers would split the batch
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        environment[name] = "1"
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    sys.exit(main())
