"""LoRA adapters: their settings, the rows that lie beside them, and folders that hold an adapter and no weights.

A folder of a run with model.keep=adapters has `adapter/`, the tokenizer, config.json, and parent.json, which names what
the adapter belongs on: another such folder, or a model. models.py follows that chain, and merges as it goes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from llama3_lab.profiles import Lora
from llama3_lab.silence import quiet

SPECIAL_ROWS = "special_rows.safetensors"
PARENT = "parent.json"  # in a folder that holds an adapter only


def lora_config(how: Lora, task: Literal["CAUSAL_LM", "SEQ_CLS"], modules_to_save: Sequence[str] = ()) -> Any:
    """Return PEFT's LoRA settings: every linear layer of every block, no dropout."""
    from peft import LoraConfig

    return LoraConfig(
        r=how.r, lora_alpha=how.alpha, lora_dropout=0.0, bias="none", task_type=task,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        modules_to_save=list(modules_to_save) or None,
    )  # fmt: skip


def save_special_rows(model: Any, ids: Sequence[int], adapter: Path) -> None:
    """Write rows of the embedding and the output layer beside an adapter that was trained over them, and lacks them."""
    from safetensors.torch import save_file

    layers = {"embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    rows = {n: layer.weight.data[list(ids)].cpu().contiguous() for n, layer in layers.items() if layer is not None}
    save_file({"ids": torch.tensor(list(ids)), **rows}, adapter / SPECIAL_ROWS)


def apply_special_rows(model: Any, adapter: Path) -> None:
    """Put the rows that lie beside an adapter into its base, in place; nothing where there are none."""
    from safetensors.torch import load_file

    if not (adapter / SPECIAL_ROWS).is_file():
        return
    rows = load_file(adapter / SPECIAL_ROWS)
    for name, layer in (("embed_tokens", model.get_input_embeddings()), ("lm_head", model.get_output_embeddings())):
        if layer is not None and name in rows:
            layer.weight.data[rows["ids"]] = rows[name].to(layer.weight.data)


def write_parent(folder: Path, parent: str | Path, model: Any) -> None:
    """Say in a folder that holds an adapter only what it belongs on, by a path relative to it or by a hub id."""
    place = os.path.relpath(Path(parent).resolve(), folder.resolve()) if Path(parent).is_dir() else str(parent)
    (folder / PARENT).write_text(json.dumps({"parent": place}) + "\n")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def parent_of(folder: Path) -> str:
    """Return what the adapter in a folder belongs on; "" for a folder with weights of its own, or a hub id."""
    if not (folder / PARENT).is_file():
        return ""
    place = str(json.loads((folder / PARENT).read_text())["parent"])
    return str(folder / place) if place.startswith(".") else place


def with_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter in `folder` merged, and the rows that lie beside it."""
    from peft import PeftModel

    with quiet():
        apply_special_rows(model, folder / "adapter")
        merged = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
    merged.config.architectures = [type(merged).__name__]
    merged.name_or_path = merged.config._name_or_path = str(folder)  # the parent of what is trained on it
    return merged.eval()
