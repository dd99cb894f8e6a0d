"""examine(): is this machine ready for a profile? One finding a line: PASS, WARN or FAIL, and what to do.

A WARN is worth reading and stops nothing; a FAIL stops a run. Nothing is changed, nothing downloaded. What only a
profile for a GPU, or with published data, needs is looked at in doctor_gpu.py and doctor_hub.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from llama3_lab import doctor_gpu, doctor_hub
from llama3_lab.findings import Finding, free_disk_gb, free_memory_gb
from llama3_lab.paper.architecture import Architecture
from llama3_lab.profiles import Profile, get_profile

__all__ = ["RUN_GB", "Finding", "examine", "free_disk_gb", "free_memory_gb", "pinned"]
ROOT = Path(__file__).resolve().parent.parent
RUN_GB = 0.2  # what a TINY run writes: about 20 checkpoints of 4 MB, and the answers
NEEDED = ("torch", "transformers", "trl", "peft", "tokenizers", "pydantic-monty")  # these decide the figures
GATED = "meta-llama/Llama-3.1-8B"
SECONDS = 3.0  # to wait for the hub


def examine(profile: str | Profile = "tiny") -> list[Finding]:
    """Return every finding for a profile, by name or as it is; takes about 3 s, most of it importing torch.

    Raises:
        ValueError: if there is no profile of that name.
    """
    settings = get_profile(profile) if isinstance(profile, str) else profile
    looks: list[Callable[[Profile], Iterator[Finding]]] = [
        _python, _packages, _device, _threads, _memory, _disk, _base_model, _sandbox, _gated,
    ]  # fmt: skip
    if _is_large(settings):
        looks = [_python, _packages, _threads, _sandbox, _memory, _gpu_and_disk, _hub]
    return [finding for look in looks for finding in look(settings)]


def _is_large(profile: Profile) -> bool:
    """Whether a profile is for a GPU, takes a model that is not the project's, or published data."""
    model, folder = profile.model, Path(profile.model.path)
    ours = model.path.startswith("data/") or (folder.is_dir() and folder.resolve().is_relative_to(ROOT))
    return not model.device.startswith("cpu") or profile.data.subject != "world" or model.stand_in or not ours


def pinned() -> dict[str, str]:
    """Return the tested versions from constraints.txt, by package; empty outside the project's folder."""
    try:
        lines = (ROOT / "constraints.txt").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_plain(name): version.strip() for name, version in pairs}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package).partition("+")[0]  # "+cpu" is a build, not a version
    except metadata.PackageNotFoundError:
        return None


def _python(profile: Profile) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    yield Finding("python", "PASS" if ok else "FAIL", found, "" if ok else "use Python 3.11 or later")


def _packages(profile: Profile) -> Iterator[Finding]:
    tested = pinned()
    for package in NEEDED:
        found, right = _installed(package), tested.get(package)
        if found is None:
            yield Finding(package, "FAIL", "not installed", "run: pip install -c constraints.txt -e .")
        elif right and found != right:
            yield Finding(package, "WARN", f"{found}, tested with {right}", "run: pip install -c constraints.txt -e .")
        else:
            yield Finding(package, "PASS", found)
    others = [p for p in tested if p not in NEEDED]
    differ = [p for p in others if _installed(p) not in (None, tested[p])]
    if not tested:
        yield Finding("other packages", "WARN", "no constraints.txt to compare with", "install with pip install -e .")
    elif differ:
        named = ", ".join(f"{p} {_installed(p)}" for p in differ[:4]) + (" …" if len(differ) > 4 else "")
        what = f"{len(differ)} differ from constraints.txt: {named}"
        yield Finding("other packages", "WARN", what, "run: pip install -c constraints.txt -e .")
    else:
        yield Finding("other packages", "PASS", "as in constraints.txt")


def _device(profile: Profile) -> Iterator[Finding]:
    wanted = profile.model.device
    try:
        import torch
    except ImportError as error:
        yield Finding("device", "FAIL", f"torch does not import: {error}", "install it again")
        return
    found = f"cuda ({torch.cuda.get_device_name(0)})" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and found == "cpu":
        yield Finding("device", "FAIL", f"no CUDA, profile {profile.name} wants {wanted}", "--set model.device=cpu")
    else:
        yield Finding("device", "PASS", f"{found}; profile {profile.name} uses {wanted}")


def _threads(profile: Profile) -> Iterator[Finding]:
    import psutil

    affinity = getattr(os, "sched_getaffinity", None)
    cores, wanted = (len(affinity(0)) if affinity else os.cpu_count() or 1), profile.model.threads
    busy = psutil.cpu_percent(interval=0.2) / 100 * (psutil.cpu_count() or 1)
    omp = os.environ.get("OMP_NUM_THREADS")
    found = f"{wanted} of {cores} cores" + (f", OMP_NUM_THREADS={omp}" if omp else "")
    if wanted > cores:
        yield Finding("threads", "WARN", found, f"more threads than cores are slow: --set model.threads={cores}")
    elif wanted > 1 and cores - busy < wanted - 0.5:
        remedy = "a shared core can cost up to 20 times: stop the other work or --set model.threads=1"
        yield Finding("threads", "WARN", f"{found}, {busy:.1f} cores are busy", remedy)
    else:
        yield Finding("threads", "PASS", found)


def _memory(profile: Profile) -> Iterator[Finding]:
    free, need = free_memory_gb(), profile.model.memory_gb
    found = f"{free:.1f} GB free, profile {profile.name} needs {need:g}"
    ok = free >= need
    yield Finding("memory", "PASS" if ok else "FAIL", found, "" if ok else "close other programs")


def _disk(profile: Profile) -> Iterator[Finding]:
    folder = Path("runs")
    free, here = free_disk_gb(folder), folder if folder.exists() else folder.absolute().parent
    found = f"{free:.1f} GB free for {folder}/, a run writes about {RUN_GB:g}"
    if not os.access(here, os.W_OK):
        yield Finding("disk", "FAIL", f"{here} cannot be written", "choose another folder with run --out")
    elif free < RUN_GB:
        yield Finding("disk", "FAIL", found, "free some space")
    else:
        yield Finding("disk", "PASS", found)


def _base_model(profile: Profile) -> Iterator[Finding]:
    wanted = profile.model.path
    folder = next((f for f in (Path(wanted), ROOT / wanted) if f.is_dir()), None)
    if folder is None:
        local = wanted.startswith(("data/", ".", "/"))
        remedy = "run it from the project's folder, or `make base`" if local else "it is downloaded when the run starts"
        yield Finding("base model", "FAIL" if local else "WARN", f"{wanted} is not on this machine", remedy)
        return
    missing = [n for n in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / n).is_file()]
    recorded = _cards(folder)
    files = sorted(f for f in folder.iterdir() if f.is_file())
    altered = [f.name for f in files if f.name in recorded and _sha256(f) != recorded[f.name]]
    missing += [n for n in recorded if not (folder / n).is_file() and n not in missing]
    if missing or altered:
        what = f"missing: {', '.join(missing)}" if missing else f"altered: {', '.join(altered)}"
        yield Finding("base model", "FAIL", f"{wanted}, {what}", f"restore it: git checkout -- {wanted}")
    elif not recorded:
        yield Finding("base model", "WARN", f"{wanted}, no digests known", "compare it with its source")
    else:
        yield Finding("base model", "PASS", f"{wanted}, {len(recorded)} files intact")


def _cards(folder: Path) -> dict[str, str]:
    """Return {file name: sha256} of the lines of data/CARDS.md that name a file of this folder."""
    cards = ROOT / "data" / "CARDS.md"
    if not cards.is_file() or not folder.resolve().is_relative_to(ROOT / "data"):
        return {}
    prefix = re.escape(folder.resolve().relative_to(ROOT / "data").as_posix())
    rows = (re.search(rf"{prefix}/([\w.-]+).*?\b([0-9a-f]{{64}})\b", line) for line in cards.read_text().splitlines())
    return {row[1]: row[2] for row in rows if row}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sandbox(profile: Profile) -> Iterator[Finding]:
    try:
        from llama3_lab.pipeline.sandbox import run_tests

        good = run_tests("def f(x):\n return x + 1", ["f(1) == 2"])
        wrong = run_tests("def f(x):\n return x", ["f(1) == 2"])
        endless = run_tests("def f(x):\n while True:\n  pass", ["f(1) == 2"])
    except Exception as error:
        what = f"does not start: {type(error).__name__} {error}".split("\n")[0]
        yield Finding("sandbox", "FAIL", what, "reinstall pydantic-monty")
        return
    outcomes = [r.outcome for r in (good, wrong, endless)]
    if outcomes == ["pass", "fail", "fail"]:
        yield Finding("sandbox", "PASS", "right, wrong and endless programs are told apart")
    else:
        yield Finding("sandbox", "FAIL", f"right, wrong, endless program gave {outcomes}", "reinstall pydantic-monty")


def _gpu_and_disk(profile: Profile) -> Iterator[Finding]:
    """The card and what fits on it; and the disks, where the model's shape says how much is written."""
    model = None
    try:
        model = doctor_hub.shape_of(profile)
    except ValueError as error:
        path = profile.model.path
        if doctor_hub.is_local(path):
            yield Finding("model", "FAIL", str(error), "set model.path to a model's folder or hub id")
        else:
            remedy = f"hf download {path} config.json, then ask again"
            yield Finding("model", "WARN", f"the shape of {path} is not known, so that nothing is placed", remedy)
    if profile.model.device.startswith("cuda"):
        yield from _gpu(profile, model)
    else:
        yield Finding("gpu", "PASS", f"not needed: profile {profile.name} uses {profile.model.device}")
    if model:
        missing = doctor_hub.to_download(profile)
        yield from doctor_gpu.disk_findings(profile, model, doctor_hub.cache_folder(), missing, Path("runs"))


def _gpu(profile: Profile, model: Architecture | None) -> Iterator[Finding]:
    try:
        card, build = doctor_gpu.find_card(profile.model.device), doctor_gpu.cuda_build()
    except ImportError as error:
        yield Finding("gpu", "FAIL", f"torch does not import: {error}", "install it again")
        return
    yield from doctor_gpu.gpu_findings(profile, card, build, model)


def _hub(profile: Profile) -> Iterator[Finding]:
    """The weights, their licence, and the data sets."""
    yield from _base_model(profile) if profile.model.path.startswith("data/") else doctor_hub.hub_findings(profile)
    yield from doctor_hub.data_findings(profile)


def _gated(profile: Profile) -> Iterator[Finding]:
    found = _reach_gated()
    if found:
        yield Finding("gated weights", "WARN", found, f"profile {profile.name} does not need them"
                      if profile.model.path.startswith("data/") else "or set model.path=data/tiny_base")
    else:
        yield Finding("gated weights", "PASS", f"{GATED} is within reach")


def _reach_gated() -> str:
    """Return why the gated weights are out of reach, or nothing where they are not."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return "not tried: HF_HUB_OFFLINE is set"
    try:
        from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

        token = get_token()
        if not token:
            return "not tried: no token; accept the licence at the hub, then set HF_TOKEN"
        get_hf_file_metadata(hf_hub_url(GATED, "config.json"), token=token, timeout=SECONDS)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return f"{GATED}: the hub answered {status}; accept its licence with the account of HF_TOKEN"
        return f"{GATED}: the hub is out of reach ({type(error).__name__})"
    return ""
