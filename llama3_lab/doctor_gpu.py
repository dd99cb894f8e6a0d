"""The doctor's looks at a profile for a GPU: the card, what fits on it, packages, and the disk. Needs no GPU.

find_card() asks CUDA; everything else is told what card there is. Sizes follow from the architecture: 2 bytes a weight.
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llama3_lab.findings import Finding, free_disk_gb, there
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.weights import adapter_weights
from llama3_lab.placement import (
    LOOSER,
    TRAINED,
    Placement,
    Stage,
    architecture_for,
    card_of,
    place,
    recipe_for,
    trainings,
    weights_bytes,
    whole_modules,
)
from llama3_lab.profiles import Profile

GB = 1e9
HALF, FULL = 2, 4  # bytes of a 16-bit weight, and of an adapter's
ANSWERS_GB = 0.2  # of a run: answers, verdicts and scores, beside its checkpoints
ON_A_MACHINE = "use a machine with an NVIDIA GPU, or --profile tiny, which needs none"


@dataclass(frozen=True)
class Card:
    """A GPU as CUDA reports it. bf16: of its own, not emulated."""

    name: str
    total_bytes: int
    bf16: bool


def find_card(device: str = "cuda") -> Card | None:
    """Return the GPU that `device` ("cuda", "cuda:1") names, or None where there is no such."""
    import torch

    number = device.partition(":")[2]
    index = int(number) if number.isdigit() else 0
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    told = torch.cuda.get_device_properties(index)
    return Card(told.name, told.total_memory, torch.version.hip is not None or told.major >= 8)


def cuda_build() -> str:
    """Return the CUDA version that torch was built for; "" for a CPU build."""
    import torch

    return torch.version.cuda or torch.version.hip or ""


def gpu_findings(profile: Profile, card: Card | None, build: str, model: Architecture | None) -> Iterator[Finding]:
    """Yield what there is to say about a card for a profile: there or not, bfloat16, each stage's place, packages.

    build: the CUDA version that torch was built for, "" for a CPU build. model: None, where its shape is not known.
    """
    placed = None
    if card is None:
        yield _no_card(profile, build)
    else:
        yield Finding("gpu", "PASS", f"{card.name}, {card.total_bytes / 2**30:.1f} GiB; torch for CUDA {build}")
        yield _bf16(profile, card)
        placed = (yield from _placement(profile, card, model)) if model else None
    if (placed.method if placed else profile.model.method) == "qlora":
        yield _bitsandbytes()
    yield _attention(profile)


def _no_card(profile: Profile, build: str) -> Finding:
    wanted = f"profile {profile.name} wants {profile.model.device}"
    after = f"what fits on which card: llama3-lab plan --profile {profile.name} --gpu 24GB"
    if not build:
        return Finding("gpu", "FAIL", f"none: torch is a CPU build, {wanted}",
                       f"install a CUDA build of torch, or use --profile tiny; {after}")  # fmt: skip
    return Finding("gpu", "FAIL", f"none that torch (CUDA {build}) can use, {wanted}",
                   f"see whether `nvidia-smi` lists it, else {ON_A_MACHINE}; {after}")  # fmt: skip


def _bf16(profile: Profile, card: Card) -> Finding:
    if card.bf16 or profile.model.dtype != "bfloat16":
        return Finding("bfloat16", "PASS", "the card has it" if card.bf16 else f"not needed: {profile.model.dtype}")
    return Finding("bfloat16", "WARN", f"{card.name} has none of its own, so that PyTorch emulates it, slowly",
                   "take a card of the Ampere generation or later")  # fmt: skip


def _placement(profile: Profile, card: Card, model: Architecture) -> Generator[Finding, None, Placement | None]:
    """Yield one finding a stage; return the placement, or None where there is none."""
    try:
        placed = place(profile, replace(card_of(card.name, card.total_bytes), bf16=card.bf16), model)
    except ValueError as error:
        found, _, remedy = str(error).partition("; ")
        yield Finding("placement", "FAIL", found, remedy or "change it with --set")
        return None
    yield Finding("placement", "PASS", placed.reason)
    for at in placed.stages:
        wanted = getattr(profile, at.stage).fit.max_length if at.stage in TRAINED else at.seq
        if at.seq < wanted:
            yield Finding(at.stage, "WARN", at.reason, "longer rows are cut: take a larger GPU for whole ones")
        elif at.plan.tight:
            yield Finding(at.stage, "WARN", at.reason, LOOSER)
        else:
            yield Finding(at.stage, "PASS", at.reason)
    return placed


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _bitsandbytes() -> Finding:
    if importlib.util.find_spec("bitsandbytes") is None:
        return Finding("bitsandbytes", "FAIL", "not installed, and QLoRA needs it",
                       "run: pip install -c constraints.txt -e '.[qlora]', or --set model.method=lora")  # fmt: skip
    return Finding("bitsandbytes", "PASS", f"{_version('bitsandbytes')}, for QLoRA".lstrip(", "))


def _attention(profile: Profile) -> Finding:
    """Say which attention will be used; as models.attention_of decides."""
    wanted, installed = profile.model.attention, importlib.util.find_spec("flash_attn") is not None
    usable = installed and profile.model.device.startswith("cuda") and profile.model.dtype == "bfloat16"
    if wanted == "flash_attention_2" and not usable:
        why = "flash-attn is not installed" if not installed else "it needs device cuda and dtype bfloat16"
        return Finding("attention", "FAIL", f"flash_attention_2: {why}", "--set model.attention=sdpa")
    if wanted == "eager":
        return Finding("attention", "WARN", "eager holds every score of every row", "--set model.attention=sdpa")
    if wanted != "sdpa" and usable:
        return Finding("attention", "PASS", f"flash_attention_2 (flash-attn {_version('flash_attn')})")
    return Finding("attention", "PASS", "sdpa, PyTorch's own" + ("" if installed else "; flash-attn is not installed"))


def run_bytes(profile: Profile, model: Architecture) -> float:
    """Return what a run writes, in bytes: every policy and reward model merged in 16 bits, and its adapter beside it.

    With model.keep=adapters the adapters only. A round's DPO runs, and their average, are models of their own; answers
    and scores are small beside them.
    """
    alone = profile.model.keep == "adapters" and profile.model.method != "qlora"
    merged = {stage: weights_bytes(_written(profile, stage, model)) for stage in TRAINED}
    merged["reward"] += HALF * (model.width - model.parts()["output"])  # one output in the vocabulary's place
    mean = profile.dpo.runs * FULL * adapter_weights(recipe_for(profile, "dpo", model, "lora", 1, 1))  # side by side
    total = float(profile.rounds * (mean if alone else merged["dpo"]))  # the averages
    for stage, times in trainings(profile).items():
        whole = HALF * sum(whole_modules(profile, stage, model))
        adapter = FULL * adapter_weights(recipe_for(profile, stage, model, "lora", 1, 1))
        total += times * ((0 if alone else merged[stage]) + adapter + whole)
    return total + ANSWERS_GB * GB


def _written(profile: Profile, stage: Stage, model: Architecture) -> Architecture:
    """Return the shape of what a stage writes: an SFT that unties weights writes both tables."""
    return architecture_for(profile, "dpo" if stage == "sft" else stage, model)


def disk_findings(profile: Profile, model: Architecture, cache: Path, missing: int, runs: Path) -> Iterator[Finding]:
    """Yield whether the disks hold what is downloaded and what a run writes. missing: bytes still to download.

    Where both go to one disk, it must hold both.
    """
    writes = run_bytes(profile, model) / GB
    load, free_cache, free_runs = missing / GB, free_disk_gb(cache), free_disk_gb(runs)
    shared = there(cache).stat().st_dev == there(runs).stat().st_dev
    if missing:
        found = f"{load:.1f} GB to download into {cache}, {free_cache:.1f} GB free"
        ok = load <= free_cache
        yield Finding("hub cache", "PASS" if ok else "FAIL", found,
                      "" if ok else "free some space, or set HF_HOME to a folder with room")  # fmt: skip
    need = writes + (load if shared else 0.0)
    found = f"{free_runs:.1f} GB free for {runs}/, a run of {profile.rounds} rounds writes about {writes:.0f}"
    found += f", and {load:.1f} are downloaded to the same disk" if shared and missing else ""
    ok = need <= free_runs
    yield Finding("disk", "PASS" if ok else "FAIL", found,
                  "" if ok else "choose a larger disk with run --out, or fewer rounds with run --rounds")  # fmt: skip

