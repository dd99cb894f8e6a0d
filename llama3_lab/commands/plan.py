"""`llama3-lab plan`: what a recipe needs on a card, where the bytes go, what it costs, what to change if it fails."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from llama3_lab.paper.advice import Change
    from llama3_lab.paper.costs import Costs
    from llama3_lab.paper.memory import Plan
    from llama3_lab.paper.recipe import Recipe

BAR = 30  # columns of the largest bar


def add(commands: Any) -> None:
    """Define the sub-command. commands: what `ArgumentParser.add_subparsers` returned."""
    from llama3_lab.paper import recipe as r

    parser = commands.add_parser("plan", help="does it fit on one GPU? peak memory by part, time and cost")
    text, number = parser.add_argument, _adder(parser)
    text("--model", required=True, metavar="NAME", help="e.g. 8b, llama-3.2-1b, mistral-7b, or a config.json")
    text("--stage", default="sft", metavar="NAME", help=_names(r.Stage))
    text("--method", default="lora", metavar="NAME", help=_names(r.Method))
    text("--gpu", default="24GB", metavar="NAME", help="its memory, like 24GB, or a name, like H100")
    number("--seq", 2048, "tokens a row, prompt and answer together")
    number("--micro-batch", 1, "rows a step on the card; pairs, for reward and dpo")
    number("--lora-r", 16, "rank of the adapters")
    text("--lora-targets", default="all-linear", metavar="LIST", help="e.g. q_proj,v_proj; default: all-linear")
    text("--lora-dropout", default=0.05, type=float, metavar="P", help="of the adapters' inputs (0.05)")
    text("--checkpointing", action=argparse.BooleanOptionalAction, default=True, help="run layers again (default)")
    text("--packing", action=argparse.BooleanOptionalAction, default=True, help="rows without padding (default)")
    text("--logits", default="chunked", metavar="NAME", help=_names(r.Logits) + " (default chunked)")
    text("--optimizer", default="adamw", metavar="NAME", help=_names(r.Optimizer) + " (default adamw)")
    text("--kernels", default="auto", metavar="NAME", help=_names(r.Kernels) + " (default auto)")
    text("--attention", default="flash", metavar="NAME", help=_names(r.Attention) + "; flash also stands for sdpa")
    text("--reference", default="auto", metavar="NAME", help="of dpo: " + _names(r.Reference))
    number("--prompt", 0, "of sampling: tokens of the prompt")
    number("--samples", 1, "of sampling: answers to each prompt")
    text("--shared-prompt", action="store_true", help="of sampling: answers share their prompt's cache")
    number("--examples", 10_000, "rows, or pairs, or answers, that time and cost are for")
    text("--fit", action="store_true", help="find the largest micro-batch and the longest rows that fit")
    text("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(do=show)


def _adder(parser: argparse.ArgumentParser) -> Any:
    def add_number(name: str, default: int, what: str) -> None:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what} ({default})")

    return add_number


def _names(kind: Any) -> str:
    return " · ".join(get_args(kind))


def show(args: argparse.Namespace) -> int:
    """Print the plan; ValueError, one line, for an unknown model or GPU, or a number or name that cannot be."""
    from llama3_lab.paper.advice import advice
    from llama3_lab.paper.catalogue import find_gpu, find_model
    from llama3_lab.paper.costs import costs
    from llama3_lab.paper.memory import fit, plan
    from llama3_lab.paper.recipe import Recipe, read_targets

    name, model = find_model(args.model)
    gpu = find_gpu(args.gpu)
    same = ("stage", "method", "seq", "micro_batch", "lora_r", "lora_dropout", "checkpointing", "packing", "logits",
            "optimizer", "kernels", "attention", "reference", "prompt", "samples", "shared_prompt")  # fmt: skip
    recipe = Recipe(model, lora_targets=read_targets(args.lora_targets), **{n: getattr(args, n) for n in same})
    planned, found = plan(recipe, gpu), costs(recipe, gpu, args.examples)
    fitted = fit(recipe, gpu) if args.fit else None
    changes = advice(recipe, gpu)
    if args.json:
        print(json.dumps(as_json(name, planned, found, changes, fitted), indent=1))
    else:
        print(as_text(name, planned, found, changes, fitted))
    return 0


Fitted = tuple["Plan | None", "Plan | None"] | None


def as_json(name: str, planned: Plan, found: Costs | None, changes: list[Change], fitted: Fitted) -> dict[str, Any]:
    """Return the plan for programs; sizes in GiB. parts add up to the peak allocated; reserved is a wider margin."""
    from llama3_lab.paper import weights
    from llama3_lab.paper.memory import PARTS

    recipe = {k: v for k, v in asdict(planned.recipe).items() if k != "model"}
    out = {
        "model": name, "parameters": weights.parameters(planned.recipe),
        "trained": weights.trained(planned.recipe) if planned.recipe.trains else 0,
        "gpu": planned.gpu.name, "gpu_gib": planned.gpu.gib, "recipe": recipe,
        "peak_allocated_gib": _gib(planned.peak), "reserved_gib": _gib(planned.reserved),
        "static_gib": _gib(planned.static), "fits": planned.fits, "tight": planned.tight,
        "parts": {part: _gib(planned.parts.get(part, 0.0)) for part in PARTS},
        "phase": planned.phase, "phases": {phase: _gib(size) for phase, size in planned.phases.items()},
        "costs": asdict(found) if found else None,
        "changes": [{"setting": c.setting, "price": c.price, "peak_allocated_gib": _gib(c.plan.peak),
                     "fits": c.plan.fits} for c in changes],
    }  # fmt: skip
    if fitted:
        batch, length = fitted
        out["fit"] = {"micro_batch": batch.recipe.micro_batch if batch else None,
                      "seq": length.recipe.seq if length else None}  # fmt: skip
    return out


def as_text(name: str, planned: Plan, found: Costs | None, changes: list[Change], fitted: Fitted) -> str:
    """Return the plan for people: what is run, the parts with bars, the verdict, time and cost, and what to change."""
    lines = [*_head(name, planned.recipe), "", *_parts(planned), "", *_verdict(planned)]
    if fitted:
        lines += ["", *_fitted(planned, fitted)]
    lines += ["", _price(planned, found) if found else "time and cost: name a card, like --gpu H100"]
    if changes:
        lines += ["", "To make it fit, change first what costs least:"]
        lines += [f"  {c.setting:<26} {_gib(c.plan.peak):7.2f} GiB  {c.price}" for c in changes]
        if not changes[-1].plan.fits:
            lines += ["Even then it does not fit: take a larger card, a smaller model, or several cards."]
    elif not planned.fits:
        lines += ["", "No setting helps: take a larger card, a smaller model, or several cards."]
    width = max(50, shutil.get_terminal_size((100, 24)).columns)
    return "\n".join(w for line in lines for w in (textwrap.wrap(line, width, subsequent_indent="  ",
                     drop_whitespace=False) if len(line) > width else [line]))  # fmt: skip


def _head(name: str, r: Recipe) -> list[str]:
    from llama3_lab.paper import weights

    what = f"{name}: {weights.parameters(r):,} weights"
    if not r.trains:
        return [f"{what}; sampling {r.rows} rows at once, up to {r.seq:,} tokens each"]
    unit = ("pair" if r.rows > r.micro_batch else "row") + ("s" if r.micro_batch > 1 else "")
    first = f"{what}, {weights.trained(r):,} of them trained" if r.method == "full" else (
        f"{what}, and {weights.trained(r):,} in adapters of rank {r.lora_r}")  # fmt: skip
    kernels = "fused kernels" if r.fused else "plain kernels"
    return [first, f"{r.stage}, {r.method}; {r.micro_batch} {unit} of {r.seq:,} tokens; {r.logits} logits; "
            f"{'checkpointing' if r.checkpointing else 'no checkpointing'}; {r.optimizer}; {kernels}"]  # fmt: skip


def _parts(planned: Plan) -> list[str]:
    top = max(planned.parts.values())
    rows = [f"  {part:<12}{_gib(size):8.2f} GiB  {'█' * max(1, round(BAR * size / top))}"
            for part, size in planned.parts.items()]  # fmt: skip
    return [f"At the peak ({planned.phase}):", *rows]


def _verdict(planned: Plan) -> list[str]:
    card, says = planned.gpu, "fits"
    if planned.tight:
        says = "fits, but tightly: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    elif not planned.fits:
        says = "does not fit"
    note = [] if card.bf16 or not planned.recipe.trains else [
        f"{card.name} has no bfloat16: the bytes are those of float16, which needs a loss scaler"]  # fmt: skip
    return [f"peak allocated  {_gib(planned.peak):7.2f} GiB", f"reserved, about {_gib(planned.reserved):7.2f} GiB",
            f"{card.name:<16}{card.gib:7.2f} GiB: {says}", *note]  # fmt: skip


def _fitted(planned: Plan, fitted: tuple[Plan | None, Plan | None]) -> list[str]:
    (batch, length), r = fitted, planned.recipe
    first = f"largest micro-batch at {r.seq:,} tokens: " + (str(batch.recipe.micro_batch) if batch else "none fits")
    return [first, f"longest rows at micro-batch {r.micro_batch}: " + (
        f"{length.recipe.seq:,} tokens" if length else "none fit")]  # fmt: skip


def _price(planned: Plan, found: Costs) -> str:
    low, high = found.hours
    money = f", {found.usd[0]:.2f} to {found.usd[1]:.2f} USD at assumed rents" if found.usd[1] else ""
    r = planned.recipe
    what = "pairs" if r.rows > r.micro_batch else "rows" if r.trains else "answers"
    return f"{found.examples:,} {what}: {low:.2g} to {high:.2g} hours on one {planned.gpu.name}{money}"


def _gib(size: float) -> float:
    return round(size / 2**30, 3)
