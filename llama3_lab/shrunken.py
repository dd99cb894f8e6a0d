"""make_shrunken(): a Llama-3.1-8B made small, in the hub's own files, to exercise the 8B's path on a small machine.

Same classes, same config but for depth, width, heads and vocabulary, bfloat16 weights in several shards, and a
tokenizer of Llama 3.1's format, its 256 special tokens included. The weights are random: it knows nothing, and no
figure of it is a result. Sources: Llama 3 §3.2, table 3; config and tokenizer files as published with the weights.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama3_lab.disk import disk_errors
from llama3_lab.paper.architecture import Architecture, llama3
from llama3_lab.paper.facts import fact

HEADS = 8  # of two key/value heads, so that there is more than one of each
BYTES, MERGES = 256, 512
DOCUMENTS = 2000  # that the merges are learned from
SHARDS = 3  # or a few more; the 8B has 4
NAMED = {  # Llama 3.1's special tokens by their place; all other places are reserved
    0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>",
    7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>",
}  # fmt: skip
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_shrunken(out: Path, seed: int = 0, layers: int = 2, width: int = 64) -> Path:
    """Write a random Llama-3.1-8B of that depth and width to the new folder `out`, and return `out`.

    layers: at least 1; width: a multiple of 16. The same seed gives the same weights, whatever ran before; the
    tokenizer is the same for all. The special tokens' rows stay as drawn, like those that pre-training never saw.

    Raises:
        ValueError: one line, for another depth or width, or if there is something at `out` already.
    """
    shape = shrunken_shape(layers, width)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: there is something already, and nothing is overwritten; name a new folder")
    partial = out.with_name(f".{out.name}.partial")
    with disk_errors(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write_tokenizer(partial)
            _write_model(partial, shape, seed)
            if out.is_dir():
                out.rmdir()  # empty; anything else was refused
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out


def shrunken_shape(layers: int, width: int) -> Architecture:
    """Return the 8B's architecture in small: its proportions of FFN and heads, its 256 special tokens.

    Raises:
        ValueError: one line, for less than 1 layer, or a width that is no multiple of 16.
    """
    full = llama3("8b")
    if width < 1 or width % (2 * HEADS):
        raise ValueError(f"width is {width}: a shrunken 8B has {HEADS} heads of an even size; give a multiple of "
                         f"{2 * HEADS}")  # fmt: skip
    return replace(
        full, layers=layers, width=width, ffn=width * full.ffn // full.width, heads=HEADS,
        kv_heads=HEADS * full.kv_heads // full.heads, head_dim=width // HEADS,
        vocabulary=BYTES + MERGES + len(special_tokens()),
    )  # fmt: skip


def hub_config(shape: Architecture) -> dict[str, Any]:
    """Return Llama-3.1-8B's config.json as the hub has it, for another depth, width, heads and vocabulary."""
    first = shape.vocabulary - len(special_tokens())
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": shape.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": first,
        "eos_token_id": first + 1,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": fact("recipe.context_end").value,
        "mlp_bias": shape.mlp_bias,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": fact("recipe.context_start").value,
            "rope_type": "llama3",
        },
        "rope_theta": float(fact("architecture.rope_theta").value),
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


def special_tokens() -> list[str]:
    """Return Llama 3.1's special tokens in their order, which end the vocabulary."""
    n = int(fact("architecture.special_tokens").value)
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(n))
    return [NAMED.get(i) or next(reserved) for i in range(n)]


def _write_model(out: Path, shape: Architecture, seed: int) -> None:
    """Write the weights, and both configs as the hub has them, which is not how they are saved today."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llama3_lab.models import quiet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**hub_config(shape))).to(torch.bfloat16)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with quiet():
        model.save_pretrained(out, max_shard_size=size // SHARDS)
    config = hub_config(shape)
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": config["bos_token_id"], "do_sample": True,
        "eos_token_id": config["eos_token_id"], "temperature": 0.6, "top_p": 0.9,
    })  # fmt: skip


def _write_tokenizer(out: Path) -> None:
    """Write tokenizer.json and the two files beside it, as a base of the hub has them: no template, no pad token."""
    raw, names = _train(), special_tokens()
    raw.save(str(out / "tokenizer.json"))
    how = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    _write_json(out / "tokenizer_config.json", {
        "added_tokens_decoder": {str(raw.token_to_id(name)): {"content": name, **how} for name in names},
        "bos_token": names[0], "clean_up_tokenization_spaces": True, "eos_token": names[1],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": fact("recipe.context_end").value, "tokenizer_class": "PreTrainedTokenizerFast",
    })  # fmt: skip
    _write_json(out / "special_tokens_map.json", {"bos_token": names[0], "eos_token": names[1]})


def _train() -> Any:
    """Return a byte-level BPE of Llama 3's form, learned from the small world's text and the chat's role words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from llama3_lab.world.corpus import documents

    raw = Tokenizer(models.BPE(ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=BYTES + MERGES, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    roles = list(fact("template.roles").value)
    raw.train_from_iterator([*documents(DOCUMENTS, seed=0), *roles * DOCUMENTS], trainer)
    raw.add_special_tokens(special_tokens())
    begin = special_tokens()[0]
    raw.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1",
                                      special_tokens=[(begin, raw.token_to_id(begin))]),
    ])  # fmt: skip
    return raw


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
