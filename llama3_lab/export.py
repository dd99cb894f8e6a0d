"""export(): a checkpoint of a run as a folder that stands by itself: weights, tokenizer, chat template, model card.

Files are copied as the run wrote them, each held against its digest first, so the exported model is the checkpoint, to
the last bit. No torch here. Only the chat template is rewritten, to the same text without the marks that transformers
alone reads; it and what config.json says of positions are put where older programs look for them too.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama3_lab.disk import digest_file, disk_errors, fill_folder
from llama3_lab.model_card import Origin, model_card, notice
from llama3_lab.paper.facts import fact
from llama3_lab.records import Checkpoint, RunReport
from llama3_lab.store import Stage, from_json, read_records, read_text

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
ROWS = "adapter/special_rows.safetensors"  # of the base, prepared before the adapter was trained over them
OWN = ("training.json", "parent.json", ROWS)  # of the run, not of the model


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, what it is, and the lines that tell how to serve it."""

    folder: Path
    checkpoint: Checkpoint
    adapter: bool
    size: int
    next_steps: tuple[str, ...]


def export(run: Path, name: str, out: Path, adapter: bool = False, weights: Path | None = None) -> Exported:
    """Write checkpoint `name` of the run folder `run` to the new folder `out`.

    adapter: the adapter alone, to be put on its parent, instead of the merged weights. weights: a folder with the
    merged weights and their config, for a run that keeps adapters only (models.write_merged makes it).

    Raises:
        ValueError: if `out` is there already, `run` has no such checkpoint (it lists those there are), a file of it
            is missing or altered, or it has no adapter; or, without `weights`, no merged weights.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: there is something already, and nothing is overwritten; choose another with --out")
    chain = _chain(run, name)
    checkpoint, source = chain[0], run / chain[0].path
    _verify(source, checkpoint)
    wanted = _wanted(checkpoint, source, adapter, weights)
    origin = _origin(run, source)
    partial = out.with_name(f".{out.name}.partial")

    def make(folder: Path) -> None:
        for file, path in wanted.items():
            shutil.copyfile(path, folder / Path(file).name)
        _inside(folder)
        if not adapter:
            _older_names(folder / "config.json")
        if adapter:
            _name_base(folder, chain, origin)
        if words := notice(origin):
            (folder / "NOTICE").write_text(words, encoding="utf-8")
        # No path of this machine in a card.
        notes = next_steps(Path(out.name), checkpoint, adapter, origin, ROWS in wanted)
        digests = tuple((p.name, digest_file(p)) for p in sorted(folder.iterdir()))
        card = model_card(chain, origin, digests, notes, _report(run), adapter)
        (folder / "README.md").write_text(card, encoding="utf-8")

    _fill(partial, out, make)
    size = sum(p.stat().st_size for p in out.iterdir())
    return Exported(out, checkpoint, adapter, size, next_steps(out, checkpoint, adapter, origin, ROWS in wanted))


def _wanted(checkpoint: Checkpoint, source: Path, adapter: bool, weights: Path | None) -> dict[str, Path]:
    """Return the files to copy, by the name under which a run has them."""
    names = [f for f, _ in checkpoint.files if f not in OWN and (f in ADAPTER) == adapter or f in TOKENIZER]
    wanted = {f: source / f for f in names}
    if adapter and not set(ADAPTER) <= set(wanted):
        raise ValueError(f"{checkpoint.name}: has no adapter, for it is an average of several runs; export it merged "
                         "(without --adapter), or the adapter of one of the runs")  # fmt: skip
    if adapter and (source / ROWS).is_file():
        wanted[ROWS] = source / ROWS
    if not adapter and (source / "parent.json").is_file():
        if weights is None:
            raise ValueError(f"{checkpoint.name}: the run keeps adapters only (model.keep); export it with --adapter")
        wanted |= {p.name: p for p in sorted(weights.iterdir())}
    return wanted


def next_steps(
    out: Path, checkpoint: Checkpoint, adapter: bool, origin: Origin, rows: bool = False
) -> tuple[str, ...]:
    """Return the lines on how to serve the export with vLLM, and how to convert it for llama.cpp.

    rows: the adapter needs prepared rows in its base, which lie beside it.
    """
    name = checkpoint.name.replace("/", "-")
    if checkpoint.kind == "reward":
        return ("a reward model: AutoModelForSequenceClassification loads it; its one logit is the reward",)
    if adapter:
        whole = "it trained whole embedding tables, which vLLM's adapters cannot hold: export it merged to serve it"
        if rows:
            whole = "its base needs the rows of special_rows.safetensors, which vLLM cannot add: export it merged"
        parent = "the base" if checkpoint.parent == "base" else f"{checkpoint.parent}: export that too"
        return (f"PARENT below is its parent, {parent}",
                whole if checkpoint.parent == "base" else
                f"vLLM:      vllm serve PARENT --enable-lora --lora-modules {name}={out}",
                f"llama.cpp: python convert_lora_to_gguf.py {out} --base PARENT --outfile {name}.gguf")  # fmt: skip
    known = origin.vocabulary == fact("architecture.vocabulary").value
    return (f"vLLM:      vllm serve {out} --served-model-name {name}",
            f"llama.cpp: python convert_hf_to_gguf.py {out} --outfile {name}.gguf",
            f"           llama-server -m {name}.gguf --jinja" if known else
            "           (that script knows Llama 3's tokenizer; this model has one of its own, which it will refuse)")


def _chain(run: Path, name: str) -> list[Checkpoint]:
    """Return the checkpoint and those that it came from, newest first, down to the base."""
    if not (run / "stages.jsonl").is_file():
        raise ValueError(f"{run}: no run folder, or one without a finished stage; name the folder of llama3-lab run")
    made = {s.checkpoint.name: s.checkpoint for s in read_records(run / "stages.jsonl", Stage) if s.checkpoint}
    if name not in made:
        raise ValueError(f"{run}: no checkpoint {name!r}; there is: {', '.join(made) or 'none'}")
    chain = [made[name]]
    while chain[-1].parent in made:
        chain.append(made[chain[-1].parent])
    return chain


def _verify(folder: Path, checkpoint: Checkpoint) -> None:
    for file, digest in checkpoint.files:
        path = folder / file
        if not path.is_file() or digest_file(path) != digest:
            what = "altered" if path.is_file() else "missing"
            raise ValueError(f"{path}: {what} since it was made; run the same `llama3-lab run` again to make it anew")


def _origin(run: Path, source: Path) -> Origin:
    try:
        profile = json.loads(read_text(run / "settings.json"))["profile"]
        config = json.loads(read_text(source / "config.json"))
        return Origin(profile["model"]["path"], profile["name"], profile["seed"], int(config["vocab_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{run}: settings.json or the model's config.json cannot be read ({error})") from None


def _report(run: Path) -> RunReport | None:
    path = run / "report.json"
    if not path.is_file():
        return None
    try:
        return from_json(RunReport, json.loads(read_text(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; run the same `llama3-lab run` again to write it anew") from None


def _inside(folder: Path) -> None:
    """Put the chat template into both its places, without the marks of training."""
    path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    template = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if not template:
        raise ValueError(f"{folder}: the checkpoint's tokenizer has no chat template; make the checkpoint anew")
    template = re.sub(r"\{%-? *(?:end)?generation *-?%\}", "", template)
    path.write_text(template, encoding="utf-8")
    config["chat_template"] = template
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that readers older than transformers 5 know
    config_path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _older_names(path: Path) -> None:
    """Say in a config.json where the positions turn, under the names that readers older than transformers 5 look for.

    Without them they take the default base and no scaling, and say nothing.
    """
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _name_base(folder: Path, chain: list[Checkpoint], origin: Origin) -> None:
    """Name in the adapter's config what it belongs on: the base's own name, or the parent checkpoint's."""
    path = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = origin.label if chain[0].parent == "base" else chain[0].parent
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _fill(partial: Path, out: Path, make: Any) -> None:
    """Let `make` fill a folder, and give it its name when it is whole."""
    with disk_errors(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        fill_folder(partial, make)
        with disk_errors(out):
            if out.is_dir():
                out.rmdir()  # empty; anything else was refused
            partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
