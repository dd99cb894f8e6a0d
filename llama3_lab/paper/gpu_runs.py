"""GpuRun: what tools/measure_gpu.py measured on a card, beside the planner's figures and published ones. No torch.

One file of data/runs/gpu/ is one run on one card, as JSON of these records. Weights are random: the files tell about
memory and speed, and about nothing else. Where the folder holds no file, there is one line to say: NOT_MEASURED.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from llama3_lab.paper.catalogue import GIB, find_gpu, find_model
from llama3_lab.paper.memory import CONTEXT_GIB, plan
from llama3_lab.paper.recipe import ATTENTION, Logits, Method, Recipe, Stage

NOT_MEASURED = "not measured: no GPU was at hand"
LABEL = "random weights: memory and speed only"
CPU = "not measured on a CPU"
LEFT_OVER = 64 * 2**20  # bytes that may be in use before a case begins without a word about it
Outcome = Literal["measured", "out of memory", "not measured", "not reached", "failed"]


@dataclass(frozen=True)
class GpuCase:
    """One recipe, tried on a card.

    stage: what it is for; a guard is measured as it is used, by reading B questions, so its recipe is one of reading.
    outcome, why: what came of it, and where it was not measured, why. planned_peak, planned_reserved: the planner's
    bytes when the case was made, CUDA's context not counted in. step_flops, step_tokens: of one step, by the
    package's own counting (GpuRun.counting). steps: timed ones; seconds: their median. tokens_per_second: tokens that
    a step reads, padding included; in sampling, those that it writes. mfu: share of the card's peak, None where that is
    not known. peak, reserved: bytes by torch.cuda.max_memory_allocated and max_memory_reserved over the timed steps,
    None on a CPU. before: bytes in use before the model was made; many tell of a case that left something behind.
    """

    stage: Stage
    recipe: Recipe
    outcome: Outcome
    why: str
    planned_peak: float
    planned_reserved: float
    step_flops: float
    step_tokens: int
    steps: int = 0
    seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    peak: int | None = None
    reserved: int | None = None
    before: int | None = None

    @property
    def peak_error(self) -> float | None:
        """The planned peak against the measured one, as a share: above 0 where the plan is too high."""
        return self.planned_peak / self.peak - 1 if self.peak else None

    @property
    def reserved_error(self) -> float | None:
        """The same of what PyTorch reserved."""
        return self.planned_reserved / self.reserved - 1 if self.reserved else None


@dataclass(frozen=True)
class Conditions:
    """Where and how a run was made.

    gpu: the name that the driver gives. gib: memory that a program sees. tflops: the dense 16-bit peak that MFU is
    taken of, 0 where the catalogue does not know the card. context_gib: what was in use on the card before anything
    was made: CUDA's context, and other programs' memory. commit: "" where the code lay in no repository. versions: name
    and version, "" for what is not installed. settings: of the trainers, name and value. minutes: the time budget.
    """

    gpu: str
    gib: float
    tflops: float
    capability: str
    driver: str
    cuda: str
    context_gib: float | None
    attention: str
    allocator: str
    shape: str
    seed: int
    minutes: float
    warm_up: int
    date: str
    commit: str
    versions: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class GpuRun:
    """A run on one card. label: always LABEL. counting: how FLOPs were counted. seconds: of the whole run."""

    label: str
    conditions: Conditions
    counting: str
    seconds: float
    cases: tuple[GpuCase, ...]

    def __post_init__(self) -> None:
        if self.label != LABEL:
            raise ValueError(f"label is {self.label!r}; a file of this folder says {LABEL!r}")


@dataclass(frozen=True)
class Published:
    """What others measured on one card: GiB and tokens a second, low and high (0 where not published).

    recipe: for the planner; None where the conditions were not published in full.
    """

    what: str
    gpu: str
    gib: float
    tokens_per_second: tuple[float, float]
    source: str
    recipe: Recipe | None = None


# -- published figures


def published() -> tuple[Published, ...]:
    """Return published peaks of an 8B model on one card: SFT; of reward models and DPO none has full conditions."""
    lora, qlora, unknown = (3844, 3892), (4009, 4160), (0, 0)
    rows: list[tuple[Method, Logits, int, float, tuple[float, float]]] = [
        ("lora", "chunked", 4, 23.2, lora), ("lora", "chunked", 8, 31.3, lora), ("lora", "chunked", 16, 47.4, lora),
        ("lora", "full", 4, 35.1, unknown), ("lora", "full", 8, 55.0, unknown),
        ("qlora", "chunked", 4, 13.4, qlora), ("qlora", "chunked", 8, 21.4, qlora),
        ("qlora", "chunked", 16, 37.2, qlora), ("qlora", "chunked", 32, 69.0, qlora),
    ]  # fmt: skip
    model = find_model("8b")[1]
    out = [
        Published(f"sft {method}, {n} × 4096, {logits} logits", "A100-80GB", gib, speed, "fms-acceleration",
                  Recipe(model, "sft", method, 4096, n, lora_targets=ATTENTION, logits=logits))
        for method, logits, n, gib, speed in rows
    ]  # fmt: skip
    return (
        *out,
        Published("sft lora, 2 × 2048, flags not published", "RTX 4090", 16.2, (3083, 3083), "torchtune"),
        Published("sft qlora, 2 × 2048 at most, reserved, in GB", "T4", 7.92, unknown, "unsloth"),
    )


# -- reading and writing


def to_text(run: GpuRun) -> str:
    """Return a run as the text of its file."""
    return json.dumps(asdict(run), indent=1, allow_nan=False) + "\n"


def read_gpu_runs(folder: Path) -> list[GpuRun]:
    """Return the runs of a folder, in the order of their files' names; none where there is no such folder.

    Raises:
        ValueError: one line, naming the file and the place in it that cannot be read.
    """
    out = []
    for path in sorted(folder.glob("*.json")):
        try:
            out.append(_record(GpuRun, json.loads(path.read_text(encoding="utf-8")), ""))
        except (OSError, ValueError) as error:
            why = "holds no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else error
            raise ValueError(f"{path}: {why}; make it again with tools/measure_gpu.py, or take it away") from None
    return out


def _record(cls: Any, data: Any, where: str) -> Any:
    """Return a frozen record of the mapping that `asdict` made of it; every name and type is checked."""
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'the whole'} must be an object with the fields of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    if unknown := [name for name in data if name not in known]:
        raise ValueError(f"{where or 'the whole'}: {cls.__name__} has no field {unknown[0]!r}; it has "
                         f"{', '.join(known)}")  # fmt: skip
    if missing := [name for name in known if name not in data]:
        raise ValueError(f"{where or 'the whole'}: field {missing[0]!r} of {cls.__name__} is missing")
    values = {name: _value(hints[name], data[name], f"{where}.{name}".strip(".")) for name in known}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where or 'the whole'}: {error}") from None


def _value(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _record(kind, data, where)
    if origin is types.UnionType:
        return None if data is None else _value(args[0], data, where)
    if origin is tuple and isinstance(data, list) and (args[-1] is Ellipsis or len(data) == len(args)):
        kinds = [args[0]] * len(data) if args[-1] is Ellipsis else args
        return tuple(_value(k, d, f"{where}[{i}]") for i, (k, d) in enumerate(zip(kinds, data, strict=True)))
    if origin is Literal and data in args and isinstance(data, str):
        return data
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    if kind in (str, int, bool) and type(data) is kind:
        return data
    wanted = ", ".join(map(str, args)) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise ValueError(f"{where} is {data!r:.40}; it must be {'one of ' if origin is Literal else 'of type '}{wanted}")


# -- tables

HEAD = ("stage", "method", "length", "rows", "checkpointing", "peak GiB", "planned", "error",
        "reserved GiB", "planned", "error", "tokens/s", "MFU")  # fmt: skip
PUBLISHED_HEAD = ("published by", "card", "what", "GiB", "planned", "error", "tokens/s")


def table(runs: Sequence[GpuRun]) -> str:
    """Return measured beside planned as plain text, then what others published; NOT_MEASURED without a run."""
    if not runs:
        return NOT_MEASURED
    parts = []
    for run in runs:
        parts += [*about(run), "", _plain([HEAD, *_rows(run)]), *_notes(run), ""]
    parts += [OTHERS, "", _plain([PUBLISHED_HEAD, *_published_rows()])]
    return "\n".join(parts)


def as_markdown(runs: Sequence[GpuRun]) -> str:
    """Return the same as Markdown; NOT_MEASURED without a run."""
    if not runs:
        return NOT_MEASURED
    parts = []
    for run in runs:
        first, *more = about(run)
        parts += [f"**{first}**", "", *(f"{line}  " for line in more), "", _pipes([HEAD, *_rows(run)]), ""]
        parts += [f"{note}  " for note in _notes(run)] + [""]
    return "\n".join([*parts, OTHERS, "", _pipes([PUBLISHED_HEAD, *_published_rows()])])


OTHERS = ("Published by others, on conditions of their own; planned by the same planner where all are known. The first "
          "nine: rows packed, checkpointing, fused kernels, FlashAttention 2, rank 16 on attention's matrices only:")


def about(run: GpuRun) -> list[str]:
    """Return the lines over a run's table: the card, the label, the conditions."""
    c = run.conditions
    versions = ", ".join(f"{name} {version}" for name, version in c.versions if version)
    peak = f"{c.tflops:.0f} TFLOP/s dense at 16 bits" if c.tflops else "its peak FLOP/s are not known here"
    card = f"{c.gpu} ({c.gib:.1f} GiB; {peak})" if c.gib else c.gpu
    driver = ", ".join(f"{name} {value}" for name, value in (("driver", c.driver), ("CUDA", c.cuda)) if value)
    return [
        f"{card}: {run.label}",
        f"shape {c.shape}, attention {c.attention}, seed {c.seed}, {c.date}, commit {c.commit or 'unknown'}, "
        f"{run.seconds / 60:.1f} of {c.minutes:g} minutes",
        ", ".join(part for part in (driver, versions) if part),
        run.counting,
    ]


def _rows(run: GpuRun) -> list[tuple[str, ...]]:
    out: list[tuple[str, ...]] = []
    for case in run.cases:
        r = case.recipe
        first = (case.stage, r.method, str(r.seq), str(r.micro_batch), "on" if r.checkpointing else "off")
        if case.outcome != "measured":
            planned = (case.outcome, _gib(case.planned_peak), "", "", _gib(case.planned_reserved), "", "", "")
            out.append((*first, *planned))
            continue
        speed = f"{case.tokens_per_second:.0f}" if case.tokens_per_second else ""
        share = f"{case.mfu:.0%}" if case.mfu is not None else "–"
        out.append((*first, _gib(case.peak), _gib(case.planned_peak), _share(case.peak_error), _gib(case.reserved),
                    _gib(case.planned_reserved), _share(case.reserved_error), speed, share))  # fmt: skip
    return out


def _notes(run: GpuRun) -> list[str]:
    """Return the lines under a table: why cases have no figures, and what may be wrong with some that have."""
    reasons: dict[str, int] = {}
    for case in run.cases:
        if case.why and case.outcome != "measured":
            reasons[f"{case.outcome}: {case.why}"] = reasons.get(f"{case.outcome}: {case.why}", 0) + 1
    notes = [f"{n} cases {reason}" if n > 1 else f"1 case {reason}" for reason, n in reasons.items()]
    notes += [f"{c.stage} {c.recipe.method} {c.recipe.seq}: {c.why}" for c in run.cases
              if c.why and c.outcome == "measured"]  # fmt: skip
    if any(c.outcome == "measured" and c.peak is None for c in run.cases):
        notes.append(f"memory: {CPU}")
    if dirty := [c for c in run.cases if (c.before or 0) > LEFT_OVER]:
        most = max(c.before or 0 for c in dirty) / GIB
        notes.append(f"{len(dirty)} cases began with up to {most:.2f} GiB in use: their peaks are too high by as much")
    if run.cases and run.conditions.gib:
        notes.append(f"planned figures are without CUDA's context ({CONTEXT_GIB:g} GiB by the planner, "
                     f"{run.conditions.context_gib or 0:.2f} GiB in use here at the start)")  # fmt: skip
    return notes


def _published_rows() -> list[tuple[str, ...]]:
    out: list[tuple[str, ...]] = []
    for p in published():
        planned = plan(p.recipe, find_gpu(p.gpu)).peak / GIB if p.recipe else 0.0
        low, high = p.tokens_per_second
        speed = "" if not low else f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"
        error = _share(planned / p.gib - 1) if planned else ""
        out.append((p.source, p.gpu, p.what, f"{p.gib:g}", f"{planned:.1f}" if planned else "", error, speed))
    return out


def _gib(amount: float | None) -> str:
    return "–" if amount is None else f"{amount / GIB:.2f}"


def _share(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"


def _plain(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _pipes(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
