"""place(): method, micro-batch and row length of each stage for the GPU that is there, each with its reason. No torch.

The recipe is that of pipeline/training.py: adapters on every linear layer of every block, no dropout, AdamW, 16-bit
weights under autocast, rows padded, plain kernels, TRL's fused output layer (logits in tiles), DPO's reference taken
beforehand. What trains is fp32. Sampling reads merged weights of 16 bits, whatever the method. Not placed: scoring,
measuring, the guard, and QLoRA's merge.

What the planner does not know is added here. Modules that train in full beside LoRA (PEFT's modules_to_save: the
embedding, and in SFT the output layer), n weights, all fp32:

    4 n    the copy that trains, beside the frozen original; of tied weights two copies, for PEFT unties them
    4 n    its gradient: the output layer's from the loss on, the embedding's at the very end of the backward pass
    8 n    AdamW's two states, and 4 n for a moment in its step
    4 + 2  bytes of each weight of the output layer, in the loss: the sum of its gradient, and autocast's copy of it

And where a batch is read in parts, gradients wait from part to part: they are there in every phase. Not counted: with
the embedding in fp32 the layers' inputs are fp32 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from llama3_lab.paper import activations, weights
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.catalogue import GIB, Gpu, find_gpu
from llama3_lab.paper.memory import CONTEXT_GIB, Plan, plan
from llama3_lab.paper.recipe import Recipe
from llama3_lab.profiles import Fit, Profile

Stage = Literal["sft", "reward", "dpo", "sample"]
Method = Literal["lora", "qlora"]
TRAINED: tuple[Stage, ...] = ("sft", "reward", "dpo")
UNITS: dict[Stage, str] = {"sft": "row", "reward": "pair", "dpo": "pair", "sample": "prompt"}
SHORTEST, STEP = 256, 64  # tokens a row: shorter ones are not worth training on; lengths tried
SMALLER = "meta-llama/Llama-3.2-1B"
LOOSER = "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, so that freed memory is used again"
WHOLE = "whole modules"  # the part of a plan that is added here
HALF = 2  # bytes of a bf16 weight
FULL = 4  # of a weight that trains
LOSS_SUM = FULL + HALF  # bytes of an output weight in the loss: its gradient's sum, and autocast's copy


@dataclass(frozen=True)
class StagePlace:
    """A stage's place on the card. micro_batch: rows read at once (pairs, for reward and dpo; for sample: prompts,
    each with its k answers, which share it). seq: tokens a row, prompt and answer together. batch: what one step takes
    on this card, a multiple of micro_batch. plan: its bytes, whole modules included. reason: one line."""

    stage: Stage
    method: Method
    micro_batch: int
    seq: int
    batch: int
    plan: Plan
    reason: str


@dataclass(frozen=True)
class Placement:
    """All stages of a profile on a card, without sampling where a server does it. method: of every training stage."""

    model: str
    gpu: Gpu
    stages: tuple[StagePlace, ...]
    method: Method
    reason: str


def place(profile: Profile, gpu: Gpu, model: Architecture, world_size: int = 1) -> Placement:
    """Return where each stage goes: LoRA where all fit at full length, else QLoRA; the largest micro-batch that fits.

    Rows are shortened only where not one fits. What the profile sets stays: model.method, fit.micro_batch. world_size:
    cards, each with the whole model and an equal share of the batch.

    Raises:
        ValueError: one line: for a profile that runs on a CPU, a setting that cannot be, and where nothing fits.
    """
    if profile.model.device == "cpu":
        raise ValueError(f"profile {profile.name} runs on a CPU; nothing to place")
    if profile.model.method not in ("auto", "lora", "qlora"):
        raise ValueError(f"model.method is {profile.model.method!r}; use auto, lora or qlora")
    asks = {stage: _Ask(profile, stage, gpu, model, world_size) for stage in TRAINED}
    method, reason = _method(profile, asks)
    stages = [_stage(ask, method) for ask in asks.values()]
    if profile.sampling.by != "server":
        trained = _with_length(profile, stages[0].seq)
        stages.append(_stage(_Ask(trained, "sample", gpu, model, world_size), "lora"))
    return Placement(profile.model.source, gpu, tuple(stages), method, reason)


def _with_length(profile: Profile, seq: int) -> Profile:
    """Return the profile with rows of SFT as long as they have become: a prompt and its answer are no longer."""
    return replace(profile, sft=replace(profile.sft, fit=replace(profile.sft.fit, max_length=seq)))


def settle(profile: Profile, placement: Placement) -> Profile:
    """Return the profile with the placement's choices filled in: method, micro-batches, lengths, prompts at once."""
    found = {p.stage: p for p in placement.stages}

    def fitted(part: Any, stage: Stage) -> Any:
        at = found[stage]
        return replace(part, fit=replace(part.fit, micro_batch=at.micro_batch, max_length=at.seq))

    return replace(
        profile, model=replace(profile.model, method=placement.method), sft=fitted(profile.sft, "sft"),
        reward=fitted(profile.reward, "reward"), dpo=fitted(profile.dpo, "dpo"),
        sampling=replace(profile.sampling, batch_prompts=found["sample"].micro_batch) if "sample" in found
        else profile.sampling,
    )  # fmt: skip


def card_of(name: str | None, total_bytes: int) -> Gpu:
    """Return the catalogue's card of CUDA's device name, with the memory that the device reports; else one of no speed.

    Raises:
        ValueError: if `total_bytes` is not above 0.
    """
    if total_bytes <= 0:
        raise ValueError(f"a GPU with {total_bytes} bytes of memory; give more than 0")
    gib = total_bytes / GIB
    try:
        known = find_gpu((name or "").replace("Generation", ""))
    except ValueError:
        return Gpu(name or f"GPU of {gib:.1f} GiB", gib)
    return replace(known, gib=gib)


def as_text(placement: Placement) -> str:
    """Return the card, one line a stage with its reason, and notes: where one is tight, where bfloat16 is missing."""
    card = placement.gpu
    head = f"{placement.model} on {card.name} ({card.gib:.1f} GiB): {placement.reason}"
    notes = [f"  tight   {LOOSER}"] if any(p.plan.tight for p in placement.stages) else []
    notes += [] if card.bf16 else [f"  bf16    {card.name} has none of its own: PyTorch emulates it, slowly"]
    return "\n".join([head, *(f"  {p.stage:<8}{p.reason}" for p in placement.stages), *notes])


def weights_bytes(model: Architecture) -> int:
    """Return the bytes of a model's 16-bit weights: what is downloaded, and what a policy takes on a disk."""
    return HALF * model.parameters()


def trainings(profile: Profile) -> dict[Stage, int]:
    """Return how often a run trains each stage: the first policy and its sibling, and then each round's."""
    paper, rounds = profile.order == "paper", profile.rounds
    each = (1 + profile.evaluation.control) if paper else 0
    return {"sft": 2 + rounds * each, "reward": rounds, "dpo": rounds * profile.dpo.runs}


def architecture_for(profile: Profile, stage: Stage, model: Architecture) -> Architecture:
    """Return what a stage loads: SFT that trains embedding and output layer leaves tied weights untied behind it."""
    unties = model.tied and profile.sft.embeddings
    return replace(model, tied=False) if unties and stage in ("dpo", "sample") else model


def whole_modules(profile: Profile, stage: str, model: Architecture) -> tuple[int, int]:
    """Return the weights of the embedding and of the output layer that a stage trains in full; 0 where it does not.

    The reward model's head, which trains too, is in the planner's own count.
    """
    table = model.vocabulary * model.width
    if stage == "sft" and profile.sft.embeddings:
        return table, table
    return (table if stage == "reward" and profile.reward.embeddings else 0), 0


def recipe_for(
    profile: Profile, stage: Stage, model: Architecture, method: Method, micro_batch: int, seq: int
) -> Recipe:
    """Return what training.py and candidates.py do, as the planner's recipe; a sample's micro_batch counts answers."""
    lora = {"sft": profile.sft.lora, "reward": profile.reward.lora, "dpo": profile.dpo.lora}
    attention: Literal["flash", "eager"] = "eager" if profile.model.attention == "eager" else "flash"
    shape = architecture_for(profile, stage, model)
    if stage == "sample":
        prompt, k = max(1, seq - profile.sampling.max_new_tokens), profile.sampling.k
        return Recipe(shape, "sample", method, seq, micro_batch * k, kernels="plain", attention=attention,
                      prompt=prompt, samples=k, shared_prompt=True)  # fmt: skip
    return Recipe(
        shape, stage, method, seq, micro_batch, lora[stage].r, lora_dropout=0.0, kernels="plain", packing=False,
        checkpointing=profile.model.checkpointing, logits="chunked", optimizer="adamw", attention=attention,
        reference="precomputed" if stage == "dpo" else "auto", adapter_dtype="fp32",
        dtype="fp32" if profile.model.dtype == "float32" and method == "lora" else "bf16",
    )  # fmt: skip


def needed_gib(planned: Plan) -> float:
    """Return the GiB that must be on the card: the peak, and CUDA's own context."""
    return planned.peak / GIB + CONTEXT_GIB


def with_whole(planned: Plan, embedding: int, output: int, accumulates: bool) -> Plan:
    """Return the plan with so many weights trained in full; with gradients that wait where a batch is read in parts.

    Its part "whole modules" is by how much they raise the peak. Where that moves the peak to another phase, the other
    parts stay those of the phase before.
    """
    n, recipe = embedding + output, planned.recipe
    still, waiting = (FULL + 2 * FULL) * n, FULL * n if accumulates else 0  # copy and states; gradients
    own = weights.gradient_bytes(recipe) if accumulates else 0.0  # the adapters'
    inside = still + (waiting or FULL * output)
    added = {
        "logits": still + waiting + LOSS_SUM * output + own,
        "last norm": inside + own,
        "last layer": inside + own,
        "first layer": inside + own / recipe.model.layers,  # all but this layer's are in the planner's count
        "embedding": still + FULL * n + (FULL * embedding if accumulates else 0),
        "optimizer step": still + 2 * FULL * n,
    }
    moved = _moved(planned, added, WHOLE if n else "gradients")
    return replace(moved, static=moved.static + still)


def _moved(planned: Plan, added: Mapping[str, float], part: str) -> Plan:
    """Return the plan with bytes added to its phases; what the peak rises (or falls) by is counted under `part`."""
    phases = {name: size + added.get(name, 0.0) for name, size in planned.phases.items()}
    worst = max(phases, key=lambda name: phases[name])
    rise = phases[worst] - planned.peak
    parts = {**planned.parts, part: planned.parts.get(part, 0.0) + rise}
    return replace(planned, phase=worst, parts=parts, phases=phases, reserved=planned.reserved + rise)


def stage_plan(profile: Profile, recipe: Recipe, gpu: Gpu, batch: int) -> Plan:
    """Return the bytes of a stage's recipe (`recipe_for`). batch: what a step takes on this card, in its own unit."""
    planned = plan(recipe, gpu)
    if recipe.trains:
        whole = whole_modules(profile, recipe.stage, recipe.model)
        return with_whole(planned, *whole, accumulates=recipe.micro_batch < batch)
    each = replace(recipe, seq=recipe.prompt, prompt=0)  # the planner reads a prompt once for each of its answers
    once = replace(each, micro_batch=recipe.rows // recipe.samples, samples=1, shared_prompt=False)
    twice = activations.forward_only(each) - activations.forward_only(once)
    return _moved(planned, {"reading the prompt": -twice}, "activations")


@dataclass(frozen=True)
class _Ask:
    """A stage that wants a place."""

    profile: Profile
    stage: Stage
    gpu: Gpu
    model: Architecture
    world_size: int

    @property
    def fit(self) -> Fit | None:
        return None if self.stage == "sample" else getattr(self.profile, self.stage).fit

    @property
    def share(self) -> int:
        """What one step takes on this card."""
        if not self.fit:
            return self.profile.sampling.batch_prompts
        whole = self.fit.per_device_train_batch_size
        if self.world_size < 1 or whole % self.world_size:
            raise ValueError(f"{self.stage}.fit.per_device_train_batch_size is {whole}; {self.world_size} processes "
                             "cannot share it evenly: choose a multiple")  # fmt: skip
        return whole // self.world_size

    @property
    def seq(self) -> int:
        """The length that is wanted; a sample's is that of SFT's rows, with room for a prompt whatever the cap."""
        if self.fit:
            return self.fit.max_length
        return max(self.profile.sft.fit.max_length, self.profile.sampling.max_new_tokens + STEP)

    def plan(self, method: Method, micro_batch: int, seq: int) -> Plan:
        recipe = recipe_for(self.profile, self.stage, self.model, method, micro_batch, seq)
        return stage_plan(self.profile, recipe, self.gpu, self.share)

    def kind(self, method: Method) -> str:
        return method if self.fit else "16-bit"

    def words(self, count: int, seq: int) -> str:
        unit = UNITS[self.stage] + ("s" if count > 1 else "")
        answers = "" if self.fit else f", {self.profile.sampling.k} answers each,"
        return f"{count} {unit} of {seq:,} tokens{answers}"


def _fits(ask: _Ask, method: Method, micro_batch: int, seq: int) -> bool:
    return ask.plan(method, micro_batch, seq).fits


def _method(profile: Profile, asks: Mapping[Stage, _Ask]) -> tuple[Method, str]:
    """Return the method of all training stages, and why."""
    chosen = profile.model.method
    if chosen != "auto":
        return chosen, f"{chosen}, as model.method says"
    for ask in asks.values():
        if not (tried := ask.plan("lora", 1, ask.seq)).fits:
            return "qlora", (f"qlora: with 16-bit weights {ask.words(1, ask.seq)} in {ask.stage} needs "
                             f"{needed_gib(tried):.1f} GiB")  # fmt: skip
    return "lora", "lora: every stage fits with 16-bit weights"


def _stage(ask: _Ask, method: Method) -> StagePlace:
    seq, cut = _length(ask, method)
    sizes = [n for n in range(ask.share, 0, -1) if ask.share % n == 0]
    fixed = ask.fit.micro_batch if ask.fit else 0
    if fixed:
        return _fixed(ask, method, seq, sizes)
    size = next(n for n in sizes if _fits(ask, method, n, seq))
    larger = [n for n in sizes if n > size]
    more = "; that is the whole batch" if ask.fit else "; no more are asked for"
    if larger:
        more = f"; {larger[-1]} would need {needed_gib(ask.plan(method, larger[-1], seq)):.1f}"
    return _placed(ask, method, size, seq, more + cut)


def _placed(ask: _Ask, method: Method, size: int, seq: int, more: str) -> StagePlace:
    planned = ask.plan(method, size, seq)
    verb = "needs" if size == 1 else "need"
    sizes = f"{needed_gib(planned):.1f} of {ask.gpu.gib:.1f} GiB"
    reason = f"{ask.kind(method)}: {ask.words(size, seq)} {verb} {sizes}{more}"
    reason += "; tight" if planned.tight else ""
    return StagePlace(ask.stage, method, size, seq, ask.share, planned, reason)


def _fixed(ask: _Ask, method: Method, seq: int, sizes: list[int]) -> StagePlace:
    """Place a micro-batch that a person has set, or refuse it."""
    size, where = ask.fit.micro_batch if ask.fit else 0, f"{ask.stage}.fit.micro_batch"
    if size not in sizes:
        raise ValueError(f"{where} is {size}; it must divide the batch on this card, {ask.share}: use one of "
                         f"{', '.join(map(str, reversed(sizes)))}, or 0 for the planner's choice")  # fmt: skip
    if not (tried := ask.plan(method, size, seq)).fits:
        raise ValueError(f"{where} is {size}; {ask.words(size, seq)} need {needed_gib(tried):.1f} GiB, and "
                         f"{ask.gpu.name} has {ask.gpu.gib:.1f}: lower it, or 0 for the planner's choice")  # fmt: skip
    return _placed(ask, method, size, seq, f"; {where} is set")


def _length(ask: _Ask, method: Method) -> tuple[int, str]:
    """Return the tokens a row, and what to say where rows had to be shortened; ValueError where none fits."""
    wanted = ask.seq
    tried = ask.plan(method, 1, wanted)
    if tried.fits:
        return wanted, ""
    cut = f"; rows shortened from {wanted:,} tokens, where one would need {needed_gib(tried):.1f}"
    least = min(SHORTEST, wanted) if ask.fit else wanted
    for seq in range((wanted - 1) // STEP * STEP, least - 1, -STEP):
        if _fits(ask, method, 1, seq):
            return seq, cut
    raise ValueError(_nothing(ask, method, least))


def _nothing(ask: _Ask, method: Method, least: int) -> str:
    """Say that a stage fits in no way, and the ways out."""
    part = getattr(ask.profile, ask.stage, None)
    ways = ["a larger GPU"]
    if not ask.fit:
        ways.insert(0, "a server (--set sampling.by=server)")
    if getattr(part, "embeddings", False):
        ways.insert(0, f"--set {ask.stage}.embeddings=false")
    if ask.fit and method == "lora" and ask.profile.model.method == "lora":
        ways.insert(0, "--set model.method=qlora")
    if ask.profile.model.path != SMALLER:
        ways.insert(0, f"a smaller model (--set model.path={SMALLER})")
    return (f"profile {ask.profile.name}: {ask.stage} does not fit on {ask.gpu.name}: {ask.kind(method)} with "
            f"{ask.words(1, least)} needs {needed_gib(ask.plan(method, 1, least)):.1f} of {ask.gpu.gib:.1f} GiB; take "
            f"{', or '.join(ways)}")  # fmt: skip
