"""train_sft(), train_reward(), train_dpo(): one stage each, LoRA through PEFT and TRL. Only here is TRL known.

A stage reads a parent's folder and writes `out/adapter` (the adapter), `out` (the merged model and
its tokenizer) and `out/training.json` (curves, health, seconds, tokens). Same rows, settings, seed
and number of threads give the same weights, whatever ran before in the process.

What is set against TRL's defaults, which assume a GPU: no bf16 unless the profile says so, no
checkpointing, learning rates from the profile. Rows are handed over as token ids.

Under `accelerate launch` (launches.py) each process takes its share of every batch, and only the first writes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from llama3_lab import profiles
from llama3_lab.models import (
    Policy,
    load_policy,
    lora_config,
    merge_16_bit,
    new_reward_model,
    prepare_special_rows,
    quiet,
    save_special_rows,
    stop_ids,
    token_logprobs,
    write_parent,
)
from llama3_lab.pipeline.collating import (
    Halves,
    Rows,
    comparison_margins,
    comparison_rows,
    demonstration_rows,
    preference_rows,
)
from llama3_lab.pipeline.health import Training, check, read_training
from llama3_lab.pipeline.pairs import strong, triples
from llama3_lab.progress import bar
from llama3_lab.records import Curve, Demonstration, PreferencePair
from llama3_lab.special_tokens import LOOK_ALIKES

__all__ = ["MaskingCollator", "Training", "read_training", "train_dpo", "train_guard", "train_reward", "train_sft"]
# Name in our curves: name in TRL's logs.
METRICS = {
    "loss": "loss", "preference loss": "loss/preference", "nll": "loss/nll",
    "reward margin": "margin", "implicit reward margin": "rewards/margins", "accuracy": "accuracy",
    "implicit accuracy": "rewards/accuracies", "chosen logp": "logps/chosen", "rejected logp": "logps/rejected",
    "chosen reward": "rewards/chosen", "token accuracy": "mean_token_accuracy",
}  # fmt: skip
EMBEDDINGS = ("embed_tokens", "lm_head")
REWARD_MODULES_TO_SAVE = ("score", "embed_tokens")
MASKED_IN_DPO = (*LOOK_ALIKES, "<|end_of_text|>")  # headers and ends of turn or text


def train_sft(
    parent: Path, demonstrations: Sequence[Demonstration], how: profiles.Sft, out: Path, settings: profiles.Model,
    embeddings: bool = True,
) -> Training:  # fmt: skip
    """Finetune the pre-trained base on demonstrations: loss on the answer and its <|eot_id|> only (§4.1.3).

    The base's untrained special rows are prepared first, unless `how.special_rows` is off. `embeddings`: they and
    the output layer train in full, as a base needs; without, LoRA alone trains, as in DPO.

    Raises:
        ValueError: if there is nothing to train on, a row cannot be used, or the loss is not finite.
    """
    started = time.perf_counter()
    _require(demonstrations, out, "demonstrations")
    policy = load_policy(parent, settings, four_bit=settings.method == "qlora")
    prepared = prepare_special_rows(policy.model, policy.tokenizer, how.fit.seed) if how.special_rows else []
    rows = demonstration_rows(policy.tokenizer, demonstrations, how.fit.max_length)
    trained = _train_rows(policy, rows, how, out, settings, EMBEDDINGS if embeddings else (), started)
    _keep_rows(policy.model, [] if embeddings else prepared, out)
    return trained


def train_guard(policy: Policy, rows: Rows, how: profiles.Sft, out: Path, settings: profiles.Model) -> Training:
    """Finetune a base as a guard: SFT on questions and their assessments, encoded already (safety.guard; §5.4.7).

    policy: from `safety.guard.new_guard`; its untrained rows are prepared here, unless `how.special_rows` is off.
    rows: from `safety.guard.guard_rows`; loss on the assessment only.

    Raises:
        ValueError: if there is nothing to train on, or the loss is not finite.
    """
    started = time.perf_counter()
    _require(rows.columns["input_ids"], out, "conversations")
    if how.special_rows:
        prepare_special_rows(policy.model, policy.tokenizer, how.fit.seed)
    # Its vocabulary is larger than its parent's: an adapter would have nothing to stand on.
    merged = replace(settings, method="lora", keep="merged")
    return _train_rows(policy, rows, how, out, merged, EMBEDDINGS, started)


def _train_rows(
    policy: Policy, rows: Rows, how: profiles.Sft, out: Path, settings: profiles.Model, whole: Sequence[str],
    started: float,
) -> Training:  # fmt: skip
    """SFT on encoded rows; the modules named in `whole` train in full beside LoRA."""
    with quiet():
        trainer = _SftTrainer(
            policy.model, args=SFTConfig(**_arguments(how.fit, out, settings), max_length=None, packing=False,
                                         loss_type="nll", dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Dataset.from_dict(rows.columns), processing_class=policy.tokenizer,
            peft_config=lora_config(how.lora, "CAUSAL_LM", whole),
            callbacks=[_Progress(_stage(out), "SFT")])  # fmt: skip
    return _finish(trainer, policy.tokenizer, rows, out, started, settings)


def train_reward(
    parent: Path, pairs: Sequence[PreferencePair], how: profiles.Reward, out: Path, settings: profiles.Model
) -> Training:
    """Train a reward model on the pre-trained base: Bradley–Terry, by default without margin (§4.1.2).

    Pairs below `how.min_strength` are left out; edited > chosen > rejected makes three comparisons.

    Raises:
        ValueError: if no pair is strong enough, a row cannot be used, pad is end-of-text, or the
            loss is not finite.
    """
    started = time.perf_counter()
    kept = strong(pairs, how.min_strength)
    comparisons, margins = triples(kept), comparison_margins(kept, how.margins)
    _require(comparisons, out, f"pairs rated {how.min_strength!r} or more")
    reward = new_reward_model(parent, settings, how.fit.seed, four_bit=settings.method == "qlora")
    tokenizer = reward.tokenizer
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, *stop_ids(tokenizer)):
        raise ValueError(
            f"{parent}: pad token {tokenizer.pad_token!r} also ends texts, and a reward is read at the last token that "
            "is no pad; give the tokenizer a pad token of its own"
        )
    prepared = prepare_special_rows(reward.model, tokenizer, how.fit.seed)
    rows = comparison_rows(tokenizer, comparisons, how.fit.max_length, margins)
    with quiet():
        trainer = _RewardTrainer(
            reward.model, args=RewardConfig(**_arguments(how.fit, out, settings), max_length=None,
                                            center_rewards_coefficient=None, disable_dropout=True),
            train_dataset=Dataset.from_dict(rows.columns), processing_class=tokenizer,
            peft_config=lora_config(how.lora, "SEQ_CLS", REWARD_MODULES_TO_SAVE[: 2 if how.embeddings else 1]),
            callbacks=[_Progress(_stage(out), "reward model")])  # fmt: skip
    trained = _finish(trainer, tokenizer, rows, out, started, settings)
    _keep_rows(reward.model, [] if how.embeddings else prepared, out)
    return trained


def train_dpo(
    parent: Path, pairs: Sequence[PreferencePair], how: profiles.Dpo, out: Path, settings: profiles.Model, seed: int
) -> Training:
    """Train a new adapter on the policy in `parent` by DPO, with an NLL term on the chosen (§4.1.4).

    The reference is the parent: its log-probabilities are taken once, before the new adapter is
    there. An edited answer stands for the chosen one. With `how.mask_special`, header and end tokens
    of both answers are left out of every log-probability. `seed` takes the place of how.fit.seed.

    Raises:
        ValueError: if there are no pairs, a row cannot be used, or the loss is not finite.
    """
    started = time.perf_counter()
    _require(pairs, out, "pairs")
    policy = load_policy(parent, settings, four_bit=settings.method == "qlora")
    tokenizer = policy.tokenizer
    rows = preference_rows(tokenizer, pairs, how.fit.max_length)
    masked = tuple(tokenizer.convert_tokens_to_ids(t) for t in MASKED_IN_DPO) if how.mask_special else ()
    nll = how.nll_weight != 0
    columns = {**rows.columns, **_reference(policy, rows, masked)}
    with quiet():
        trainer = _DpoTrainer(
            policy.model, ref_model=None,
            args=DPOConfig(**_arguments(how.fit, out, settings, seed, False), beta=how.beta, max_length=None,
                           loss_type=["sigmoid", "sft"] if nll else ["sigmoid"],
                           loss_weights=[1.0, how.nll_weight] if nll else [1.0], label_smoothing=0.0,
                           precompute_ref_log_probs=False, disable_dropout=True),
            data_collator=MaskingCollator(pad_token_id=tokenizer.pad_token_id, masked=masked),
            train_dataset=Dataset.from_dict(columns), processing_class=tokenizer,
            peft_config=lora_config(how.lora, "CAUSAL_LM"), callbacks=[_Progress(_stage(out), "DPO")])  # fmt: skip
    trainer.precompute_ref_logps = True  # they are in the columns; TRL's own way hashes and caches on disk
    return _finish(trainer, tokenizer, rows, out, started, settings)


def _reference(policy: Policy, rows: Rows, masked: tuple[int, ...]) -> dict[str, list[float]]:
    """Return the parent's log-probabilities of both answers, under the names that TRL reads."""
    prompts, n = rows.columns["prompt_ids"], len(rows)
    both = zip(prompts * 2, rows.columns["chosen_ids"] + rows.columns["rejected_ids"], strict=True)
    logps = token_logprobs(policy, list(both), masked)
    return {"ref_chosen_logps": logps[:n], "ref_rejected_logps": logps[n:]}


@dataclass
class MaskingCollator(DataCollatorForPreference):
    """TRL's collator for pairs; the ids in `masked` are cleared from both answers' completion mask.

    The tokens are still read; only their log-probabilities no longer count (§4.1.4: header and end
    tokens are in both answers, and would be pushed up and down at once).
    """

    masked: tuple[int, ...] = ()

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return input_ids, attention_mask and completion_mask; chosen rows first, then rejected."""
        batch = super().torch_call(examples)
        special = torch.isin(batch["input_ids"], torch.tensor(self.masked, dtype=torch.long))
        batch["completion_mask"] = batch["completion_mask"].masked_fill(special, 0)
        return batch


class _Stage:
    """What all three trainers do another way than TRL: nothing is sent home.

    TRL reports each training to its makers' server; a stage here needs no network.
    """

    def _send_telemetry(self) -> None:
        return None


class _InHalves(_Stage):
    """Batches are drawn at random, and read in two halves, the shorter rows first, for one optimizer step.

    That saves a quarter of the time, which was padding. Whole batches of like lengths would save a third, but they
    are batches of one skill here, and SFT learned less from them (EXPERIMENTS.md).
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Halves:
        rows, args = train_dataset or self.train_dataset, self.args  # type: ignore[attr-defined]
        columns = [rows[name] for name in rows.column_names if name.endswith("_ids")]
        lengths = [max(map(len, row)) for row in zip(*columns, strict=True)]
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return Halves(lengths, batch, args.data_seed)


class _SftTrainer(_InHalves, SFTTrainer): ...


class _RewardTrainer(_InHalves, RewardTrainer): ...


class _DpoTrainer(_Stage, DPOTrainer):
    """TRL's trainer on rows that are token ids already; it logs the loss in its two parts."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, **more)
        chosen_BT = inputs["completion_mask"].chunk(2)[0][:, 1:]
        metrics = self._metrics["train"]
        nll = -metrics["logps/chosen"][-1] * len(chosen_BT) / max(1, int(chosen_BT.sum()))
        weight = dict(zip(self.loss_types, self.loss_weights, strict=True)).get("sft", 0.0)
        metrics["loss/nll"].append(nll)
        metrics["loss/preference"].append(loss.item() - weight * nll)
        return loss


class _Progress(TrainerCallback):
    """Moves our bar, and stops a training whose loss is not finite."""

    def __init__(self, stage: str, kind: str) -> None:
        self.stage, self.kind = stage, kind
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = bar(state.max_steps, f"{self.stage}: {self.kind}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise ValueError(
                f"{self.stage}: the loss is {logs['loss']} at step {state.global_step} of {state.max_steps}; "
                f"lower fit.learning_rate (it is {args.learning_rate})"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def _stage(out: Path) -> str:
    """Return the stage's name: its folder's, without the mark of a folder in the making."""
    return Path(out).name.removesuffix(".partial")


def _require(rows: Sequence[Any], out: Path, what: str) -> None:
    if not rows:
        raise ValueError(f"{_stage(out)}: no {what} to train on; draw more prompts, or look at the round's funnel")


def _arguments(
    fit: profiles.Fit, out: Path, settings: profiles.Model, seed: int | None = None, halves: bool = True
) -> dict[str, Any]:
    """Return the settings that the three trainers share, each one that matters said out loud."""
    seed = fit.seed if seed is None else seed
    share = fit.per_device_train_batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    parts = _parts(fit.micro_batch, share, 2 if halves and share % 2 == 0 else 1, _stage(out))
    bf16 = settings.dtype == "bfloat16"
    return {
        "output_dir": str(out), "seed": seed, "data_seed": seed, "use_cpu": settings.device == "cpu", "bf16": bf16,
        "learning_rate": fit.learning_rate, "max_steps": fit.max_steps, "warmup_steps": fit.warmup_steps,
        "lr_scheduler_type": "linear", "optim": "adamw_torch", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "adam_beta2": fit.adam_beta2, "per_device_train_batch_size": share // parts,
        "gradient_accumulation_steps": parts,
        "gradient_checkpointing": settings.checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "logging_steps": 1, "logging_nan_inf_filter": False, "report_to": [],
        "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True, "dataloader_num_workers": 0,
        "dataloader_pin_memory": False, "dataloader_drop_last": False, "push_to_hub": False,
    }  # fmt: skip


def _parts(micro_batch: int, share: int, without: int, stage: str) -> int:
    """Return in how many passes a process reads its share of a batch; `without`, where no micro-batch is set."""
    if micro_batch and share % micro_batch:
        raise ValueError(f"{stage}: fit.micro_batch={micro_batch} does not divide a batch of {share}; take a divisor")
    return share // micro_batch if micro_batch else without


def _keep_rows(model: Any, ids: Sequence[int], out: Path) -> None:
    """Write the prepared rows beside the adapter that was trained over them, where they are not in it."""
    if ids and (out / "adapter").is_dir() and os.environ.get("RANK", "0") == "0":
        save_special_rows(model, ids, out / "adapter")


def _sort_modules(file: Path) -> None:
    """Put the adapter's module names in order: PEFT writes sets, whose order changes from process to process."""
    config = json.loads(file.read_text())
    for key in ("target_modules", "modules_to_save"):
        if config.get(key):
            config[key] = sorted(config[key])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _finish(
    trainer: Any, tokenizer: Any, rows: Rows, out: Path, started: float, settings: profiles.Model
) -> Training:
    """Train; the first process writes adapter, merged model and training.json; return the last."""
    trainer.remove_callback(PrinterCallback)
    for p in (p for p in trainer.model.parameters() if p.requires_grad):
        p.data = p.data.float()  # in 16 bits small steps would be rounded away, and AdamW's moments with them
    with quiet():
        trainer.train()
    _gather(trainer.model)
    if first := trainer.is_world_process_zero():
        _write(trainer.model, tokenizer, out, settings)
    log = [row for row in trainer.state.log_history if "loss" in row]
    curves = tuple(
        Curve(_stage(out), name, tuple(row["step"] for row in log), tuple(float(row[key]) for row in log))
        for name, key in METRICS.items() if log and key in log[0]
    )  # fmt: skip
    health = check(_stage(out), curves, rows.cut, rows.answers, "margin" in rows.columns)
    training = Training(curves, health, round(time.perf_counter() - started, 2), int(log[-1]["num_tokens"]))
    if first:
        (out / "training.json").write_text(json.dumps(asdict(training), indent=1) + "\n")
    trainer.accelerator.wait_for_everyone()
    return training


def _gather(model: Any) -> None:
    """Put whole parameters in the place of the shards that FSDP2 leaves to each process; all processes take part."""
    for module in model.modules():
        for name, shard in list(module.named_parameters(recurse=False)):
            if hasattr(shard, "full_tensor"):
                module.register_parameter(name, torch.nn.Parameter(shard.full_tensor().cpu(), shard.requires_grad))


def _write(model: Any, tokenizer: Any, out: Path, settings: profiles.Model) -> None:
    """Write the adapter and the tokenizer, and the merged model or the name of the adapter's parent."""
    for name, p in model.named_parameters():
        if p.requires_grad and "lora_" not in name:
            p.data = p.data.to(getattr(torch, settings.dtype))
    with quiet():
        # The parent's name, not its path: a path of this machine would make equal adapters differ.
        config = model.peft_config["default"]
        parent = config.base_model_name_or_path or ""
        config.base_model_name_or_path = Path(parent).name
        model.save_pretrained(out / "adapter")
        (out / "adapter" / "README.md").unlink(missing_ok=True)
        _sort_modules(out / "adapter" / "adapter_config.json")
        tokenizer.save_pretrained(out)
        if settings.method == "qlora":
            merged = merge_16_bit(model, parent, out / "adapter", settings)
        elif settings.keep == "adapters":
            return write_parent(out, parent, model.get_base_model())
        else:
            merged = model.merge_and_unload()
        if getattr(merged, "generation_config", None) is not None:
            merged.generation_config.eos_token_id = stop_ids(tokenizer)
        merged.save_pretrained(out)
    return None
