"""average(): the models of one stage, averaged (§4.1.5: runs that differ in data or settings).

Averaging LoRA factors would not average models: mean(B) @ mean(A) is not mean(B @ A). The factors
are put side by side instead (PEFT's combination_type "cat"), each weighted 1/n, and the sum of
their products is the mean of the weight updates exactly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llama3_lab.models import load_policy, quiet, write_parent
from llama3_lab.profiles import Model


def average(adapter_folders: Sequence[Path], parent: Path, out: Path, settings: Model) -> None:
    """Write to `out` the parent policy with the mean of the adapters' weight updates, merged.

    One adapter gives that adapter's model.

    Raises:
        ValueError: if there is no adapter, or one trained whole modules beside its LoRA factors
            (the first SFT does), which have no place in a sum of products.
    """
    from peft import PeftModel

    if not adapter_folders:
        raise ValueError(f"{out}: no adapters to average; name at least one")
    for folder in adapter_folders:
        _check_adapter(Path(folder))
    policy = load_policy(parent, settings)
    names = [f"run{i}" for i in range(len(adapter_folders))]
    with quiet():
        model: Any = PeftModel.from_pretrained(policy.model, adapter_folders[0], adapter_name=names[0])
        for name, folder in zip(names[1:], adapter_folders[1:], strict=True):
            model.load_adapter(folder, adapter_name=name)
        model.add_weighted_adapter(names, [1 / len(names)] * len(names), "mean", combination_type="cat")
        _in_full(model, names)
        model.set_adapter("mean")
        policy.tokenizer.save_pretrained(out)
        if settings.keep == "adapters" and settings.method != "qlora":
            model.save_pretrained(out, selected_adapters=["mean"])  # in a folder of the adapter's name
            (out / "mean").replace(out / "adapter")
            (out / "README.md").unlink(missing_ok=True)
            (out / "adapter" / "README.md").unlink(missing_ok=True)
            return write_parent(out, parent, model.get_base_model())
        model.merge_and_unload(adapter_names=["mean"]).save_pretrained(out)
    return None


def _in_full(model: Any, names: Sequence[str]) -> None:
    """Put the mean's factors side by side again, in the precision of the runs': PEFT rounds them to the model's."""
    for module in model.modules():
        if "mean" in getattr(module, "lora_A", {}):
            share = 1 / len(names)
            above = [module.lora_A[n].weight.data * module.scaling[n] * share for n in names]
            module.lora_A["mean"].weight.data = torch.cat(above)
            module.lora_B["mean"].weight.data = torch.cat([module.lora_B[n].weight.data for n in names], 1)


def _check_adapter(folder: Path) -> None:
    file = folder / "adapter_config.json"
    try:
        whole = json.loads(file.read_text()).get("modules_to_save")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no adapter there ({error}); name a stage's adapter folder") from error
    if whole:
        raise ValueError(f"{folder}: trained {', '.join(whole)} as a whole; only plain LoRA adapters can be averaged")
