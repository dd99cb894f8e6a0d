"""The doctor's looks at what comes from the hub: weights, their licence, data sets. Nothing is downloaded.

Where the weights are whole on this machine, the hub is not asked for them. Offline it is not asked at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from llama3_lab.benchmarks.sources import Source
from llama3_lab.findings import Finding
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.catalogue import find_model
from llama3_lab.placement import weights_bytes
from llama3_lab.profiles import STAND_INS, Profile

GB = 1e9
SECONDS = 3.0  # to wait for the hub
LICENSED = ("meta-llama/",)  # whose weights are handed out to those who have accepted a licence
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = ("config.json", "tokenizer.json")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
OFFLINE_DATA = (*OFFLINE, "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class Kept:
    """What there is of a model on this machine. state: "none", "part" or "whole"; bytes: of it; where: its folder."""

    state: Literal["none", "part", "whole"]
    bytes: int
    where: Path


def is_offline(names: tuple[str, ...] = OFFLINE) -> str:
    """Return the first of these environment variables that says so; "" where none does."""
    return next((n for n in names if os.environ.get(n, "0").lower() in ("1", "true", "yes", "on")), "")


def cache_folder() -> Path:
    """Return the hub's cache folder."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_local(path: str) -> bool:
    """Return whether a model's path names a folder, there or not, and no model of the hub."""
    return Path(path).is_dir() or path.startswith(("data/", ".", "/", "~"))


def kept(source: str, cache: Path) -> Kept:
    """Return what the hub's cache holds of a model: whole, where its newest snapshot has every file that is needed.

    Files that were begun lie there as *.incomplete; they count, for a download goes on where it stopped.
    """
    folder = _folder(source, cache)
    blobs = [b for b in (folder / "blobs").glob("*") if b.is_file()] if folder.is_dir() else []
    size = sum(b.stat().st_size for b in blobs)
    snapshot = _snapshot(folder)
    if snapshot and not missing_files(snapshot):
        return Kept("whole", size, snapshot)
    return Kept("part" if size else "none", size, folder)


def _folder(source: str, cache: Path) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return cache / repo_folder_name(repo_id=source, repo_type="model")


def _snapshot(folder: Path) -> Path | None:
    """Return the snapshot that main names, which is the one that is loaded."""
    try:
        return folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None


def missing_files(folder: Path) -> list[str]:
    """Return which files of a model a folder lacks: config, tokenizer, weights in one file or in all their shards."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if (folder / ONE_FILE).is_file():
        return missing
    try:
        index = json.loads((folder / INDEX).read_text())
        shards = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return [*missing, ONE_FILE]
    return missing + [name for name in shards if not (folder / name).is_file()]


def sources(profile: Profile) -> list[str]:
    """Return the folders or hub ids whose weights a run loads: the base's, and with safety on the guard's.

    Raises:
        ValueError: if model.stand_in is set and none is known.
    """
    guard = [profile.safety.guard.path] if profile.safety.on else []
    return [profile.model.source, *guard]


def size_of(profile: Profile, source: str) -> int:
    """Return the bytes of a source's 16-bit weights, counted from its architecture; 0 where that is not known."""
    try:
        return weights_bytes(shape_of(profile) if source == profile.model.source else find_model(source)[1])
    except ValueError:
        return 0


def to_download(profile: Profile) -> int:
    """Return how many bytes of weights are not on this machine yet; a folder's are, or never will be."""
    try:
        wanted = [s for s in sources(profile) if not is_local(s)]
    except ValueError:
        return 0
    here = {s: kept(s, cache_folder()) for s in wanted}
    return sum(max(0, size_of(profile, s) - here[s].bytes) for s in wanted if here[s].state != "whole")


def hub_findings(profile: Profile) -> Iterator[Finding]:
    """Yield the weights' state, and, where some must be downloaded, whether the hub hands them out."""
    try:
        wanted = sources(profile)
    except ValueError as error:
        yield Finding("weights", "FAIL", str(error), "--set model.stand_in=false")
        return
    for source in wanted:
        if is_local(source):
            yield _local(source)
            continue
        state = kept(source, cache_folder())
        if state.state == "whole":
            yield Finding("weights", "PASS", f"{source}, {state.bytes / GB:.1f} GB in the hub's cache")
            yield Finding("licence", "PASS", "the hub need not be asked: the weights are here")
        else:
            yield _to_download(source, state, size_of(profile, source))
            yield _licence(source)


def _local(source: str) -> Finding:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return Finding("weights", "FAIL", f"{source}: no such folder", "set model.path to a model's folder or hub id")
    if missing := missing_files(folder):
        named = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        return Finding("weights", "FAIL", f"{source}, missing: {named}", "copy the model's whole folder")
    return Finding("weights", "PASS", f"{source}, a folder with config, tokenizer and weights")


def _to_download(source: str, state: Kept, size: int) -> Finding:
    whole = f"{size / GB:.1f} GB" if size else "unknown size"
    if state.state == "part":
        return Finding("weights", "WARN", f"{source}: {state.bytes / GB:.1f} of {whole} are in the hub's cache",
                       "a download that was cut off goes on where it stopped, when the run starts")  # fmt: skip
    return Finding("weights", "WARN", f"{source} is not on this machine: {whole} to download",
                   f"it is downloaded into {cache_folder()} when the run starts")  # fmt: skip


def _licence(source: str) -> Finding:
    """Ask the hub for one small file's header, and say in words what it answered."""
    copy = f", or --set model.stand_in=true ({STAND_INS[source]})" if source in STAND_INS else ""
    folder = "copy the weights here and --set model.path=FOLDER"
    if name := is_offline():
        return Finding("licence", "FAIL", f"not asked: {name} is set, and the weights are not here",
                       f"unset {name}, or {folder}")  # fmt: skip
    from huggingface_hub import get_token

    token = get_token()
    page = f"accept the licence at huggingface.co/{source}"
    if not token and source.startswith(LICENSED):
        return Finding("licence", "FAIL", f"{source} needs a licence, and there is no token",
                       f"{page}, then set HF_TOKEN{copy}")  # fmt: skip
    answer = ask_hub(source, "config.json", "model", token or None)
    if answer == "":
        return Finding("licence", "PASS", f"the hub hands out {source}")
    if answer == "401":
        why = "does not know this token" if token else "wants to know who asks (a licence, or the name is wrong)"
        return Finding("licence", "FAIL", f"{source}: the hub answered 401, it {why}",
                       f"{page}, then set HF_TOKEN to a token of that account{copy}")  # fmt: skip
    if answer == "403":
        return Finding("licence", "FAIL", f"{source}: the hub answered 403, the account of HF_TOKEN has no access yet",
                       f"{page} with that account and wait for the answer{copy}")  # fmt: skip
    if answer == "404":
        return Finding("licence", "FAIL", f"{source}: the hub answered 404, there is no such model, or no config.json",
                       "check model.path")  # fmt: skip
    return Finding("licence", "FAIL", f"{source}: the hub is out of reach ({answer})",
                   f"try again with a network, or {folder}")  # fmt: skip


def ask_hub(name: str, file: str, kind: Literal["model", "dataset"], token: str | None) -> str:
    """Return "" where the hub hands out this file, its status ("401", "403", "404"), or the error's name."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, file, repo_type=kind), token=token, timeout=SECONDS)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        return str(status) if status else type(error).__name__
    return ""


def data_findings(profile: Profile) -> Iterator[Finding]:
    """Yield one finding for each published data set: its file there, or the hub within reach. Nothing for the world."""
    if profile.data.subject != "benchmarks":
        return
    known: dict[str, str] = {}
    for place, settings in _places(profile.data.benchmarks).items():
        named = ", ".join(f"data.benchmarks.{s}" for s in settings)
        instead = f"set {named} to a local JSONL, CSV or Parquet file with the same columns"
        source = Source(place, "train")
        if source.is_local:
            ok = Path(place).is_file()
            yield Finding("data", "PASS" if ok else "FAIL", place if ok else f"{place}: there is no such file",
                          "" if ok else f"check {named}")  # fmt: skip
        elif name := is_offline(OFFLINE_DATA):
            yield Finding("data", "WARN", f"{place} not tried: {name} is set", f"if it is not in the cache, {instead}")
        else:
            yield _data_set(place, instead, known)


def _places(benchmarks: Any) -> dict[str, list[str]]:
    """Return the settings that name each place; those left empty, and names of splits, are none."""
    out: dict[str, list[str]] = {}
    for f in fields(benchmarks):
        place = getattr(benchmarks, f.name)
        if place and not f.name.endswith("_split"):
            out.setdefault(place, []).append(f.name)
    return out


def _data_set(place: str, instead: str, known: dict[str, str]) -> Finding:
    """Ask the hub for a data set; once it is out of reach it is not asked again. known: what it has answered."""
    from huggingface_hub import get_token

    lost = next((a for a in known.values() if a and not a.isdigit()), "")
    answer = known[place] = lost or ask_hub(place, ".gitattributes", "dataset", get_token() or None)
    if not answer:
        return Finding("data", "PASS", f"{place}: the hub hands it out")
    if answer.isdigit():
        return Finding("data", "FAIL", f"{place}: the hub answered {answer}", instead)
    return Finding("data", "WARN", f"{place}: the hub is out of reach ({answer})",
                   f"if it is not in the cache, {instead}")  # fmt: skip


def shape_of(profile: Profile) -> Architecture:
    """Return the architecture of the profile's model; a stand-in has the same. From the cache where no table has it.

    Raises:
        ValueError: one line, if it is not known, or its config.json cannot be read.
    """
    try:
        return find_model(profile.model.path)[1]
    except ValueError:
        if is_local(profile.model.path):
            raise
        snapshot = _snapshot(_folder(profile.model.path, cache_folder()))
        if not snapshot or not (snapshot / "config.json").is_file():
            raise
        return Architecture.read(snapshot)
