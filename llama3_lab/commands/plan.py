"""`llama3-lab plan`: what a recipe needs on a card, where the bytes go, what it costs, what to change if it fails.

With --profile: where each of its stages goes on the card, why, how long it takes and what that costs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from llama3_lab.paper.advice import Change
    from llama3_lab.paper.costs import Costs
    from llama3_lab.paper.memory import Plan
    from llama3_lab.paper.recipe import Recipe
    from llama3_lab.placement import Placement, StagePlace
    from llama3_lab.profiles import Profile

BAR = 30  # columns of the largest bar
SAME = ("stage", "method", "seq", "micro_batch", "lora_r", "lora_dropout", "checkpointing", "packing", "logits",
        "optimizer", "kernels", "attention", "reference", "prompt", "samples", "shared_prompt")  # fmt: skip


def add(commands: Any) -> None:
    """Define the sub-command. commands: what `ArgumentParser.add_subparsers` returned."""
    from llama3_lab.paper import recipe as r

    parser = commands.add_parser("plan", help="does it fit on one GPU? peak memory by part, time and cost")
    text, number = parser.add_argument, _adder(parser)
    text("--model", metavar="NAME", help="e.g. 8b, llama-3.2-1b, mistral-7b, or a config.json")
    text("--profile", metavar="NAME", help="in place of a model: all stages of a profile, e.g. 8b or 1b")
    text("--set", action="append", default=[], metavar="PART.NAME=VALUE", dest="settings",
         help="of --profile: change a setting, e.g. --set sft.max_length=2048; may be repeated")  # fmt: skip
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
    parser.set_defaults(do=show, default_of=parser.get_default)


def _adder(parser: argparse.ArgumentParser) -> Any:
    def add_number(name: str, default: int, what: str) -> None:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what} ({default})")

    return add_number


def _names(kind: Any) -> str:
    return " · ".join(get_args(kind))


def show(args: argparse.Namespace) -> int:
    """Print the plan; ValueError, one line, for an unknown model or GPU, or a number or name that cannot be."""
    if args.profile:
        return _show_profile(args)
    if args.settings:
        raise ValueError("--set changes a profile's settings; name it with --profile")
    if not args.model:
        raise ValueError("which model? give --model, e.g. --model 8b, or --profile 8b; see llama3-lab plan --help")
    from llama3_lab.paper.advice import advice
    from llama3_lab.paper.catalogue import find_gpu, find_model
    from llama3_lab.paper.costs import costs
    from llama3_lab.paper.memory import fit, plan
    from llama3_lab.paper.recipe import Recipe, read_targets

    name, model = find_model(args.model)
    gpu = find_gpu(args.gpu)
    recipe = Recipe(model, lora_targets=read_targets(args.lora_targets), **{n: getattr(args, n) for n in SAME})
    planned, found = plan(recipe, gpu), costs(recipe, gpu, args.examples)
    fitted = fit(recipe, gpu) if args.fit else None
    changes = advice(recipe, gpu)
    if args.json:
        print(json.dumps(as_json(name, planned, found, changes, fitted), indent=1))
    else:
        print(as_text(name, planned, found, changes, fitted))
    return 0


def _show_profile(args: argparse.Namespace) -> int:
    """Print where a profile's stages go; its settings come from the profile and --set, none from the other options."""
    from llama3_lab import placement
    from llama3_lab.doctor_hub import shape_of
    from llama3_lab.paper.catalogue import find_gpu
    from llama3_lab.profiles import Profile, get_profile, override
    from llama3_lab.typed_json import from_json, to_json

    given = [n for n in ("model", *SAME, "lora_targets", "examples", "fit") if getattr(args, n) != args.default_of(n)]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} is not for --profile, which has its own; use --set")
    profile = get_profile(args.profile)
    for setting in args.settings:
        profile = override(profile, setting)
    from_json(Profile, to_json(profile))  # "model.method: must be one of …"
    if profile.model.device == "cpu":
        print(json.dumps({"profile": profile.name, "stages": []}) if args.json
              else f"profile {profile.name} runs on a CPU; nothing to place")  # fmt: skip
        return 0
    placed = placement.place(profile, find_gpu(args.gpu), shape_of(profile))
    if args.json:
        print(json.dumps(profile_json(profile, placed), indent=1))
    else:
        print("\n".join([placement.as_text(placed), "", *_hours(profile, placed)]))
    return 0


def profile_json(profile: Profile, placed: Placement) -> dict[str, Any]:
    """Return a profile's placement for programs; sizes in GiB, costs of one run of each stage."""
    from llama3_lab.placement import needed_gib, trainings

    stages = [
        {"stage": p.stage, "method": p.method, "micro_batch": p.micro_batch, "seq": p.seq, "batch": p.batch,
         "needed_gib": round(needed_gib(p.plan), 3), "peak_allocated_gib": _gib(p.plan.peak), "tight": p.plan.tight,
         "parts": {part: _gib(size) for part, size in p.plan.parts.items()}, "phase": p.plan.phase,
         "times": trainings(profile).get(p.stage, profile.rounds),
         "costs": asdict(found) if (found := _stage_costs(profile, p)) else None, "reason": p.reason}
        for p in placed.stages
    ]  # fmt: skip
    return {"profile": profile.name, "model": placed.model, "gpu": placed.gpu.name, "gpu_gib": placed.gpu.gib,
            "method": placed.method, "reason": placed.reason, "stages": stages}  # fmt: skip


def _stage_costs(profile: Profile, p: StagePlace) -> Costs | None:
    """Return what one run of a stage takes: its steps' rows or pairs; of sampling, the answers of one round."""
    from llama3_lab.paper.costs import costs

    if p.stage == "sample":
        return costs(p.plan.recipe, p.plan.gpu, profile.data.train_prompts * profile.sampling.k)
    fit = getattr(profile, p.stage).fit
    return costs(p.plan.recipe, p.plan.gpu, fit.max_steps * fit.per_device_train_batch_size)


def _hours(profile: Profile, placed: Placement) -> Sequence[str]:
    """Return a line of time and cost for each stage, where the card's speed is known."""
    from llama3_lab.placement import trainings

    lines, times = [], trainings(profile)
    for p in placed.stages:
        if not (found := _stage_costs(profile, p)):
            return ["time and cost: name a card, like --gpu H100"]
        what = "candidates of one round" if p.stage == "sample" else f"one training (of {times[p.stage]} in a run)"
        lines.append(f"  {p.stage:<8}{what}, {_price(p.plan, found).removesuffix(' at assumed rents')}")
    return ["Expected time, and cost at assumed rents:", *lines]


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
