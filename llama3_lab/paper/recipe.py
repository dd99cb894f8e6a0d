"""Recipe: what is trained (or sampled) and how, as far as it decides about memory. No torch.

The switches have the names that transformers, PEFT and TRL give them, where they have one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from llama3_lab.paper.architecture import Architecture

Stage = Literal["sft", "reward", "dpo", "sample", "guard"]
Method = Literal["full", "lora", "qlora"]
Logits = Literal["full", "chunked"]
Optimizer = Literal["adamw", "adamw_fused", "adamw_8bit", "sgd"]
Kernels = Literal["auto", "fused", "plain"]
Attention = Literal["flash", "eager"]
Reference = Literal["auto", "adapter off", "second model", "precomputed"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
EVERY_LINEAR = (*ATTENTION, *FFN)


@dataclass(frozen=True)
class Recipe:
    """One way to train or sample a model.

    seq: tokens a row, prompt and answer together. micro_batch: rows a step on the card; of a reward model and of
    DPO, pairs, so that each counts two rows. logits: "full" holds the whole vocabulary's logits of every token,
    "chunked" a few rows' at a time (Liger, TRL's chunked loss). optimizer: "adamw" is PyTorch's default, many
    tensors at a time; "adamw_fused" its one kernel; "adamw_8bit" bitsandbytes'. kernels: "fused" for norms and
    loss as Liger, Unsloth or FOAK have them; "plain" for what transformers and PyTorch do; "auto" means fused
    with checkpointing and plain without. attention: "flash" also stands for PyTorch's own (sdpa). dtype: of
    the weights, 16-bit or fp32 (then with autocast, so a 16-bit copy comes on top). adapter_dtype: PEFT makes
    adapters fp32. autocast: whether 16-bit autocast is on (the Trainer's bf16=True). packing: rows full, no padding
    mask. upcast: of QLoRA, whether embeddings, norms and output are turned to fp32 (prepare_model_for_kbit_training).
    repeat_kv: keys and values are copied for every query head before attention. prompt, samples: of sampling,
    tokens of a prompt, and answers to each; shared_prompt: they share the prompt's pages.

    Raises:
        ValueError: one line, for a number below 1, a name that is none, or a combination that does not exist.
    """

    model: Architecture
    stage: Stage = "sft"
    method: Method = "lora"
    seq: int = 2048
    micro_batch: int = 1
    lora_r: int = 16
    lora_targets: tuple[str, ...] = EVERY_LINEAR
    lora_dropout: float = 0.05
    checkpointing: bool = True
    logits: Logits = "chunked"
    optimizer: Optimizer = "adamw"
    kernels: Kernels = "auto"
    attention: Attention = "flash"
    dtype: Literal["bf16", "fp32"] = "bf16"
    adapter_dtype: Literal["bf16", "fp32"] = "fp32"
    autocast: bool = True
    packing: bool = True
    upcast: bool = False
    repeat_kv: bool = False
    reference: Reference = "auto"
    prompt: int = 0
    samples: int = 1
    shared_prompt: bool = False

    def __post_init__(self) -> None:
        for name in ("seq", "micro_batch", "lora_r", "samples"):
            _whole(name, getattr(self, name), 1)
        _whole("prompt", self.prompt, 0)
        kinds = {"stage": Stage, "method": Method, "logits": Logits, "optimizer": Optimizer, "kernels": Kernels,
                 "attention": Attention, "reference": Reference}  # fmt: skip
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(kind))}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; it must be from 0 to below 1")
        if not self.lora_targets or (unknown := sorted(set(self.lora_targets) - set(EVERY_LINEAR))):
            what = ", ".join(unknown) if self.lora_targets else "nothing"
            raise ValueError(f"lora targets: {what}; use some of {', '.join(EVERY_LINEAR)}, or all-linear")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.method == "full" and self.reference == "adapter off":
            raise ValueError("full fine-tuning has no adapter to switch off; use a second model, or precomputed")
        if self.stage == "sample" and self.prompt >= self.seq and self.prompt:
            raise ValueError(f"a prompt of {self.prompt} tokens leaves no room for an answer in --seq {self.seq}")
        if self.stage != "sample" and (self.shared_prompt or self.samples > 1):
            raise ValueError(f"samples of a prompt are for stage sample, not for {self.stage}")
        if self.method == "qlora" and self.dtype == "fp32":
            raise ValueError("qlora keeps its base in 4 bits; dtype fp32 is for full and lora")

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.stage != "sample"

    @property
    def rows(self) -> int:
        """Rows a step: two for each pair."""
        return self.micro_batch * (2 if self.stage in ("reward", "dpo") else 1)

    @property
    def tokens(self) -> int:
        """Tokens a step on the card."""
        return self.rows * self.seq

    @property
    def fused(self) -> bool:
        """Whether norms and the loss are fused kernels."""
        return self.checkpointing if self.kernels == "auto" else self.kernels == "fused"

    @property
    def size(self) -> int:
        """Bytes of one number that a matrix makes: 2, except where an fp32 model runs without autocast."""
        return 4 if self.dtype == "fp32" and not self.autocast else 2

    @property
    def stream_size(self) -> int:
        """Bytes of one number of the residual stream: those of the embedding, whatever autocast does."""
        return 4 if self.dtype == "fp32" else 2

    @property
    def adapter_size(self) -> int:
        """Bytes of one adapter weight."""
        return 4 if self.adapter_dtype == "fp32" else 2

    @property
    def adapted(self) -> tuple[str, ...]:
        """The matrices that have an adapter; none in full fine-tuning."""
        return () if self.method == "full" else tuple(n for n in EVERY_LINEAR if n in self.lora_targets)

    @property
    def reference_kind(self) -> str:
        """Where DPO's reference comes from: "none" in other stages; by default the adapter off, or a second model."""
        if self.stage != "dpo":
            return "none"
        if self.reference != "auto":
            return self.reference
        return "second model" if self.method == "full" else "adapter off"


def read_targets(text: str) -> tuple[str, ...]:
    """Return the matrices that "q_proj,v_proj", "q,k,v,o" or "all-linear" names.

    Raises:
        ValueError: if one is no linear layer of a Llama block.
    """
    if text.strip().lower() in ("all-linear", "all"):
        return EVERY_LINEAR
    names = [n.strip().lower() for n in text.split(",") if n.strip()]
    full = [n if n.endswith("_proj") else f"{n}_proj" for n in names]
    unknown = [n for n, f in zip(names, full, strict=True) if f not in EVERY_LINEAR]
    if unknown or not names:
        raise ValueError(f"lora targets: {', '.join(unknown) or 'none given'}; use some of {', '.join(EVERY_LINEAR)}, "
                         "or all-linear")  # fmt: skip
    return tuple(n for n in EVERY_LINEAR if n in full)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name.replace('_', '-')} is {value}; it must be a whole number of at least {least}")
