"""Models and graphics cards by name: find_model(), find_gpu(); data/paper/models.yaml and gpus.yaml. No torch."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llama3_lab.paper.architecture import SIZES, Architecture, llama3
from llama3_lab.paper.facts import read_yaml

GIB = 2**30
MIB = 2**20
VISIBLE = 0.98  # of the memory printed on a card that we know nothing else about
SUFFIXES = ("-instruct", "-hf", "-chat", "-base")  # of hub names; they change no shape


@dataclass(frozen=True)
class Gpu:
    """A card. gib: memory that a program sees. tflops: dense 16-bit peak; bandwidth: bytes a second of its memory;
    usd_hour: assumed rent, low and high: each 0 where unknown. workspace: bytes that cuBLAS keeps for each of its
    handles. bf16: has it."""

    name: str
    gib: float
    tflops: float = 0.0
    workspace: float = 8.125 * MIB
    usd_hour: tuple[float, float] = (0.0, 0.0)
    bf16: bool = True
    bandwidth: float = 0.0


def find_model(name: str) -> tuple[str, Architecture]:
    """Return a model's full name and its architecture, from a known name, a hub name, or the path of a config.json.

    Known: Llama 3, 3.1 and 3.3 ("8b", "70b", "405b", "llama-3.1-8b", "meta-llama/Meta-Llama-3-8B-Instruct"),
    Llama 3.2 ("1b", "3b"), and those of data/paper/models.yaml. Capitals do not matter. A folder with a
    config.json is taken for that model.

    Raises:
        ValueError: one line, naming the nearest known names.
    """
    path = Path(name).expanduser()
    if name.endswith(".json") or path.is_dir():
        return str(name), Architecture.read(path)
    key = _key(name)
    if match := re.fullmatch(r"(?:meta-)?(?:llama-?(?:guard-)?3(?:\.[13])?-)?(8b|70b|405b)", key):
        return f"Llama 3 {match[1].upper()}", llama3(match[1])
    known = _models()
    if key in known:
        return known[key]
    names = [*SIZES, *known]
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.5) or names[:5]
    raise ValueError(f"no model {name!r} is known; did you mean {', '.join(near)}? Or give the path of a config.json")


def model_names() -> tuple[str, ...]:
    """Return the names that `find_model` knows, shortest first spelled."""
    return (*SIZES, *_models())


def find_gpu(name: str) -> Gpu:
    """Return a card by its name ("H100", "a100-80gb", "RTX 4090"), or a nameless one by its memory ("24GB").

    Raises:
        ValueError: one line, naming known cards.
    """
    text = name.strip().lower()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gb|gib|g)", text):
        size = float(match[1])
        if not 0 < size < math.inf:
            raise ValueError(f"a GPU with {name} of memory; give more than 0, e.g. 24GB")
        return Gpu(f"{match[1]} GB", size * VISIBLE)
    cards = _gpus()
    key = _gpu_key(text)
    for known in (key, re.sub(r"(hbm\d?e?|sxm\d?|pcie)", "", key), re.sub(r"(hbm\d?e?|sxm\d?|pcie|\d\dgb$)", "", key)):
        if known in cards:
            return cards[known]
    names = sorted({g.name for g in cards.values()})
    near = [cards[k].name for k in difflib.get_close_matches(key, cards, n=3, cutoff=0.6)] or names
    known_names = ", ".join(dict.fromkeys(near))
    raise ValueError(f"no GPU {name!r} is known; known: {known_names}; or give its memory, e.g. 24GB")


def gpu_names() -> tuple[str, ...]:
    """Return the names of the known cards, in the file's order."""
    return tuple(dict.fromkeys(g.name for g in _gpus().values()))


def _gpu_key(name: str) -> str:
    """Return a card's name without its maker, its family and all that is no letter or number."""
    return re.sub(r"nvidia|geforce|tesla|rtx|[^a-z0-9]", "", name.lower())


def _key(name: str) -> str:
    key = name.strip().lower().rpartition("/")[2].replace("_", "-").replace(" ", "-")
    while stripped := next((s for s in SUFFIXES if key.endswith(s)), ""):
        key = key.removesuffix(stripped)
    return key


@cache
def _models() -> Mapping[str, tuple[str, Architecture]]:
    found: dict[str, tuple[str, Architecture]] = {}
    for entry in read_yaml(Path("data") / "paper" / "models.yaml"):
        hub = str(entry["hub"])
        shape = hub.rpartition("/")[2], Architecture.from_config(entry["config"], hub)
        found |= {key: shape for key in (*entry["names"], _key(hub))}
    return found


@cache
def _gpus() -> Mapping[str, Gpu]:
    found: dict[str, Gpu] = {}
    for entry in read_yaml(Path("data") / "paper" / "gpus.yaml"):
        low, high = map(float, entry["usd_hour"])
        gpu = Gpu(entry["name"], float(entry["gib"]), float(entry["tflops"]), entry["workspace_mib"] * MIB,
                  (low, high), bool(entry.get("bf16", True)), entry["gb_s"] * 1e9)  # fmt: skip
        for name in _spellings(entry):
            found[name] = gpu
    return found


def _spellings(entry: Mapping[str, Any]) -> list[str]:
    return [_gpu_key(str(n)) for n in (entry["name"], *entry.get("also", ()))]
