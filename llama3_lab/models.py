"""Policies and reward models: loading (the only `from_pretrained`), the chat template, adapters.

Shapes: `B` rows, `T` tokens, `D` width, `V` vocabulary, `N` answer tokens of a batch.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llama3_lab.adapters import (
    PARENT,
    apply_special_rows,
    lora_config,
    parent_of,
    save_special_rows,
    with_adapter,
    write_parent,
)
from llama3_lab.profiles import STAND_INS, Model
from llama3_lab.silence import quiet
from llama3_lab.special_tokens import LOOK_ALIKES, TRAINED_SPECIAL, prepare_special_rows, untrained_ids
from llama3_lab.tokenizer import CHAT_TEMPLATE
from llama3_lab.world.corpus import base_text

__all__ = [
    "PARENT", "Policy", "RewardModel", "answer_logprobs", "apply_special_rows", "attention_of", "encode_answers",
    "encode_prompt", "load_policy", "load_reward_model", "lora_config", "merge_16_bit", "new_reward_model",
    "pad_rows", "plain_ids", "prepare_special_rows", "quiet", "save_special_rows", "stop_ids", "token_logprobs",
    "untrained_ids", "write_parent",
]  # fmt: skip
Style = Literal["chat", "base"]
EncodedRow = tuple[list[int], list[int]]  # token ids of a prompt and of an answer
END_OF_TURN = "<|eot_id|>"
PAD = "<|finetune_right_pad_id|>"
STAND_IN = "data/tiny_base"
MOST_TOKENS = 16384  # read at once where log-probabilities are taken
MOST_LOGITS = 2**28  # held at once


@dataclass(frozen=True)
class Policy:
    """A causal language model in eval mode, its tokenizer, and the name that its answers carry."""

    model: Any
    tokenizer: Any
    name: str


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier with one output, the reward in logits, in eval mode."""

    model: Any
    tokenizer: Any
    name: str


def load_policy(path: str | Path, settings: Model, name: str = "", four_bit: bool = False) -> Policy:
    """Return the policy in a folder (or on the hub); sets the number of threads.

    four_bit: its linear layers in 4 bits, as QLoRA's frozen base has them; for training only.

    Raises:
        ValueError: if there is no such folder, it holds no model, the weights need a licence, or
            they are neither on this machine nor within reach; four_bit, without bitsandbytes.
    """
    from transformers import AutoModelForCausalLM

    model, tokenizer = _load(AutoModelForCausalLM, path, settings, **_quantized(settings, four_bit))
    return Policy(model, tokenizer, name or Path(path).name)


def load_reward_model(path: str | Path, settings: Model, name: str = "") -> RewardModel:
    """Return the reward model in a folder (or on the hub); sets the number of threads.

    Raises:
        ValueError: as `load_policy`; and if the folder holds a model without a reward head.
    """
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = _load(AutoModelForSequenceClassification, path, settings, num_labels=1)
    if not any("SequenceClassification" in a for a in model.config.architectures or ()):
        raise ValueError(f"{path}: holds a language model, not a reward model; train_reward() makes one")
    return RewardModel(model, tokenizer, name or Path(path).name)


def new_reward_model(path: str | Path, settings: Model, seed: int, four_bit: bool = False) -> RewardModel:
    """Return the policy at `path` with a new reward head instead of its output layer; `four_bit` as in load_policy.

    The head is drawn from `seed`, so small that first rewards lie near 0 (a first loss near log 2).
    """
    from transformers import AutoModelForSequenceClassification

    more = {"num_labels": 1, **_quantized(settings, four_bit)}
    model, tokenizer = _load(AutoModelForSequenceClassification, path, settings, **more)
    noise_D = torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(seed))
    model.score.weight.data.copy_(noise_D * 0.01)
    model.config.pad_token_id = tokenizer.pad_token_id
    return RewardModel(model, tokenizer, Path(path).name)


def _quantized(settings: Model, four_bit: bool) -> dict[str, Any]:
    """Return how to load a base in 4 bits (NF4, its scales quantised too), or nothing; embeddings and heads stay."""
    if not four_bit:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("model.method is qlora, and bitsandbytes is not installed: pip install -e '.[qlora]', "
                         "or --set model.method=lora")  # fmt: skip
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings.dtype), llm_int8_skip_modules=["lm_head", "score"],
    )  # fmt: skip
    return {"quantization_config": how, "device_map": {"": settings.device}}


def attention_of(settings: Model) -> str:
    """Return the attention that is used: flash_attention_2 for "auto" on a GPU that has it installed, else sdpa.

    Raises:
        ValueError: if flash_attention_2 is asked for and cannot be had.
    """
    there = importlib.util.find_spec("flash_attn") is not None
    on_gpu = settings.device.startswith("cuda") and settings.dtype == "bfloat16"
    if settings.attention == "flash_attention_2" and not (there and on_gpu):
        what = "flash-attn is not installed" if not there else "it needs device cuda and dtype bfloat16"
        raise ValueError(f"model.attention=flash_attention_2: {what}; use sdpa, which needs nothing")
    if settings.attention == "auto":
        return "flash_attention_2" if there and on_gpu else "sdpa"
    return settings.attention


def _load(kind: Any, path: str | Path, settings: Model, **more: Any) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    where = _check_path(str(path))
    if parent := parent_of(Path(where)):
        model, _ = _load(kind, parent, settings, **more)
        return with_adapter(model, Path(where)), _complete(AutoTokenizer.from_pretrained(where), where)
    torch.set_num_threads(settings.threads)
    if settings.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(f"model.device is {settings.device} and there is no CUDA here; use a machine with a GPU, "
                             "or --profile tiny, which needs none")  # fmt: skip
        gc.collect()  # a card may hold one model only: the one before goes first
        torch.cuda.empty_cache()
        more.setdefault("device_map", {"": settings.device})  # straight to the card, not through the host's memory
    more |= {"dtype": getattr(torch, settings.dtype), "attn_implementation": attention_of(settings)}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(where)
            model = kind.from_pretrained(where, **more)
        except OSError as error:
            raise ValueError(_explain(where, error)) from error
    return (model if "device_map" in more else model.to(settings.device)).eval(), _complete(tokenizer, where)


def write_merged(folder: Path, settings: Model, out: Path) -> None:
    """Write the weights and the config of a folder that holds an adapter only, merged, into `out`."""
    config = json.loads((folder / "config.json").read_text())
    reward = any("SequenceClassification" in a for a in config.get("architectures") or ())
    model = (load_reward_model(folder, settings) if reward else load_policy(folder, settings)).model
    with quiet():
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.eos_token_id = stop_ids(load_tokenizer(folder))
        model.save_pretrained(out)


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder, with Llama 3.1's pad token and chat template where it lacks them."""
    from transformers import AutoTokenizer

    return _complete(AutoTokenizer.from_pretrained(folder), str(folder))


def _check_path(path: str) -> str:
    """Return the path, or raise where it can be neither a model's folder nor a hub id."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{path}: no config.json there, so no model; name the folder of a finished checkpoint")
        return path
    if folder.parent.is_dir() and str(folder.parent) != "." or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        raise ValueError(f"{path}: no such folder; set model.path to a model's folder or to a hub id (owner/name)")
    return path


def _explain(where: str, error: BaseException) -> str:
    """Return one line for a failed load: what happened, and what to do."""
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 8:
        causes.append(f"{type(cause).__name__} {cause}")
        cause = cause.__cause__ or cause.__context__
    text = " ".join(causes)
    if re.search(r"GatedRepo|gated repo|\b401\b|\b403\b", text):
        return (
            f"{where}: these weights need a licence (or the name is wrong): accept it on the model's page at "
            f"huggingface.co/{where}, then set HF_TOKEN to a token of that account; "
            f"or set {_instead(where)}: no licence page there"
        )
    if re.search(r"Offline|LocalEntryNotFound|IncompleteSnapshot|onnect", text):
        return f"{where}: not on this machine, and the hub is out of reach: download it or set {_instead(where)}"
    return f"{where}: cannot be loaded: {str(error).strip().splitlines()[0][:200]}"


def _instead(where: str) -> str:
    copy = "model.stand_in=true, a copy of the same shape, or " if where in STAND_INS else ""
    return f"{copy}model.path={STAND_IN}"


def _complete(tokenizer: Any, where: str) -> Any:
    """Return the tokenizer with Llama 3.1's pad token and chat template where a base lacks them."""
    known = tokenizer.get_vocab()
    missing = [t for t in (*LOOK_ALIKES, *TRAINED_SPECIAL) if t not in known]
    if missing:
        raise ValueError(f"{where}: its tokenizer has no {missing[0]}; use a model with Llama 3.1's special tokens")
    if tokenizer.pad_token is None and PAD in known:
        tokenizer.pad_token = PAD
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "right"
    tokenizer.clean_up_tokenization_spaces = False  # Llama 3.1's files ask for it; transformers 5 only warns
    return tokenizer


def encode_prompt(tokenizer: Any, prompt_text: str, style: Style = "chat") -> list[int]:
    """Return a prompt's token ids, begin-of-text first, up to where the answer begins.

    chat: the template with the assistant's header. base: the corpus's "Q:" and "A:" form. A special token's text in
    the prompt is data: "<|eot_id|>" there is encoded letter by letter (`plain_ids`) and ends no turn.
    """
    if style == "base":
        return [tokenizer.bos_token_id, *plain_ids(tokenizer, base_text(prompt_text, ""))]
    if style != "chat":
        raise ValueError(f"style is {style!r}; use 'chat' or 'base'")

    def template(text: str, tokenize: bool) -> Any:
        return tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True,
                                             tokenize=tokenize, return_dict=False)  # fmt: skip

    if not any(token.content in prompt_text for token in tokenizer.added_tokens_decoder.values()):
        return template(prompt_text, True)
    before, after = template("\x00", False).split("\x00")
    content = template(prompt_text, False).removeprefix(before).removesuffix(after)  # as the template trims it
    opening, closing = (list(tokenizer(part, add_special_tokens=False).input_ids) for part in (before, after))
    return [*opening, *plain_ids(tokenizer, content), *closing]


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of what a person wrote: "<|eot_id|>" in it is text like any other, never a special token."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def encode_answers(tokenizer: Any, texts: Sequence[str], style: Style = "chat") -> list[list[int]]:
    """Return the answers' token ids, each with its closing token: <|eot_id|>, or in base style end-of-text."""
    end = stop_ids(tokenizer, style)[0]
    return [[*ids, end] for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []


def stop_ids(tokenizer: Any, style: Style = "chat") -> list[int]:
    """Return the ids that end an answer; the one that this project teaches comes first."""
    names = (END_OF_TURN, "<|eom_id|>", "<|end_of_text|>") if style == "chat" else ("<|end_of_text|>",)
    return [tokenizer.convert_tokens_to_ids(n) for n in names]


def merge_16_bit(trained: Any, parent: str | Path, adapter: Path, settings: Model) -> Any:
    """Return `parent` in 16 bits with the adapter merged: an adapter trained over 4 bits would be rounded to them.

    trained: the model in 4 bits; its embeddings and output layer, which are not, are taken over as they stand.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    scores = "SequenceClassification" in type(trained.get_base_model()).__name__
    kind, more = (AutoModelForSequenceClassification, {"num_labels": 1}) if scores else (AutoModelForCausalLM, {})
    model, _ = _load(kind, parent, replace(settings, device="cpu"), **more)
    # On the CPU: the card holds the 4-bit model still.
    there, ours = dict(trained.get_base_model().named_parameters()), dict(model.named_parameters())
    for name in ("model.embed_tokens.weight", "lm_head.weight", "score.weight"):
        if name in there and name in ours:
            ours[name].data.copy_(there[name].data)
    model.config.pad_token_id = trained.config.pad_token_id
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def pad_rows(rows: Sequence[Sequence[int]], pad: int, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """Return ids_BT, right-padded, and its attention mask (1 on tokens)."""
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*r, *[pad] * (width - len(r))] for r in rows], device=device)
    mask_BT = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=device)
    return ids_BT, mask_BT


def answer_logprobs(
    policy: Policy, rows: Sequence[tuple[str, str]], style: Style = "chat", batch_size: int = 64
) -> list[float]:
    """Return, for each (prompt text, answer text), the summed log-probability of the answer, in nats.

    The closing <|eot_id|> (base style: end-of-text) counts. Same length and order as `rows`; each ≤ 0.
    """
    known = {text: encode_prompt(policy.tokenizer, text, style) for text, _ in dict.fromkeys(rows)}
    answers = encode_answers(policy.tokenizer, [a for _, a in rows], style)
    ids = [(known[text], answer) for (text, _), answer in zip(rows, answers, strict=True)]
    return token_logprobs(policy, ids, (), batch_size)


def token_logprobs(
    policy: Policy, encoded: Sequence[EncodedRow], ignored: Sequence[int] = (), batch_size: int = 64
) -> list[float]:
    """Return, for each (prompt ids, answer ids), the answer's summed log-probability, in nats.

    Answer tokens among `ignored` are read but do not count. Batches hold rows of like lengths.
    """
    lengths = [len(prompt) + len(answer) for prompt, answer in encoded]
    out = [0.0] * len(encoded)
    for batch in batches(lengths, batch_size):
        for i, value in zip(batch, _sum_logprobs(policy, [encoded[i] for i in batch], ignored), strict=True):
            out[i] = value
    return out


def batches(lengths: Sequence[int], most_rows: int, most_tokens: int = MOST_TOKENS) -> Iterator[list[int]]:
    """Yield row numbers, shortest first, in batches of at most so many rows and padded tokens; one row at least."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) == most_rows or (len(batch) + 1) * lengths[i] > most_tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def _sum_logprobs(policy: Policy, batch: Sequence[EncodedRow], ignored: Sequence[int]) -> list[float]:
    model = policy.model
    ids_BT, mask_BT = pad_rows([p + a for p, a in batch], policy.tokenizer.pad_token_id, model.device)
    answer_BT = mask_BT.bool()
    for row, (prompt, _) in enumerate(batch):
        answer_BT[row, : len(prompt)] = False
    answer_BT &= ~torch.isin(ids_BT, torch.tensor(ignored, dtype=torch.long, device=model.device))
    hidden_BTD = model.model(ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    # Only the positions that predict an answer token go through the output layer, and not too many at once.
    hidden_ND, wanted_N = hidden_BTD[:, :-1][answer_BT[:, 1:]], ids_BT[:, 1:][answer_BT[:, 1:]]
    some = max(1, MOST_LOGITS // model.config.vocab_size)
    nll_N = torch.cat([
        torch.nn.functional.cross_entropy(model.lm_head(hidden_SD).float(), wanted_S, reduction="none")
        for hidden_SD, wanted_S in zip(hidden_ND.split(some), wanted_N.split(some), strict=True)
    ])  # fmt: skip
    owner_N = answer_BT[:, 1:].nonzero()[:, 0]
    sums_B = torch.zeros(len(batch), device=nll_N.device).index_add_(0, owner_N, nll_N)
    return (-sums_B).tolist()
