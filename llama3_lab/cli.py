"""`llama3-lab doctor | run | report | claims | plan | export | chat`: the loop from the command line.

Mistakes cost one line on standard error and exit code 2; Ctrl-C costs one line and 130. With
LLAMA3_LAB_DEBUG=1 the traceback is shown. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from llama3_lab import __version__
from llama3_lab.commands import chat, claims, export, plan
from llama3_lab.disk import refuse_place
from llama3_lab.profiles import PROFILES, Profile, get_profile, override
from llama3_lab.records import RunReport
from llama3_lab.store import RunFolder, StoreError, from_json, read_text, to_json, write_text

# name of a setting: (lowest, highest) that makes sense; one name means the same in every part
RANGES: dict[str, tuple[float, float]] = {
    "rounds": (1, 100), "seed": (0, 2**32 - 1), "threads": (1, 1024), "memory_gb": (0, math.inf),
    "train_prompts": (4, math.inf), "test_per_skill": (1, math.inf), "demonstrations": (4, math.inf),
    "k": (1, 4096), "temperature": (0, 100), "max_new_tokens": (1, math.inf), "batch_prompts": (1, math.inf),
    "r": (1, math.inf), "alpha": (1, math.inf), "max_steps": (1, math.inf), "warmup_steps": (0, math.inf),
    "per_device_train_batch_size": (1, math.inf), "max_length": (8, math.inf), "learning_rate": (0, 1),
    "pairs": (1, math.inf), "edit_share": (0, 1), "beta": (1e-9, math.inf), "nll_weight": (0, math.inf),
    "runs": (1, 100), "samples": (1, 4096), "base_samples": (1, 4096), "best_of_k": (1, 4096),
    "best_of_k_prompts": (1, math.inf), "margins": (0, math.inf),
    "requests": (12, math.inf), "test_requests": (12, math.inf), "threshold": (0, 1), "examples": (1, math.inf),
    "micro_batch": (0, math.inf), "concurrency": (1, 4096),
    "max_fpr": (0, 1), "more_for_unsolved": (0, 100), "adam_beta2": (0, 0.99999), "preference_prompts": (4, math.inf),
}  # fmt: skip


class _OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def check_profile(profile: Profile) -> Profile:
    """Return the profile, or refuse a setting that is outside its range or is no such choice.

    Raises:
        ValueError: naming the setting, its value and what it may be.
    """
    from_json(Profile, to_json(profile))  # Literals: "evaluation.split: must be one of …"
    for name, value in _settings(profile):
        low, high = RANGES.get(name.rpartition(".")[2], (-math.inf, math.inf))
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not low <= number <= high:
                span = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                raise ValueError(f"{name} is {number}; it must be {span}")
    ks = profile.evaluation.best_of_k
    if not ks or list(ks) != sorted(set(ks)):
        raise ValueError(f"evaluation.best_of_k is {ks}; write growing numbers, e.g. evaluation.best_of_k=1,2,4")
    return profile


def _settings(part: Any, prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        name = f"{prefix}{f.name}"
        out += _settings(value, f"{name}.") if dataclasses.is_dataclass(value) else [(name, value)]
    return out


def _parser() -> argparse.ArgumentParser:
    parser = _OneLine(prog="llama3-lab", description="The post-training loop of Llama 3, small enough to run.")
    parser.add_argument("--version", action="version", version=f"llama3-lab {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="doctor | run | report | claims | plan | export | chat"
    )

    doctor = commands.add_parser("doctor", help="is this machine ready? PASS, WARN or FAIL, and what to do")
    doctor.add_argument("--profile", default="tiny", metavar="NAME", help=f"one of {', '.join(PROFILES)}")
    doctor.add_argument("--set", action="append", default=[], metavar="PART.NAME=VALUE", dest="settings",
                        help="look at the profile with this setting, as in run; may be repeated")  # fmt: skip
    doctor.set_defaults(do=_doctor)

    run = commands.add_parser("run", help="run the loop, or go on with a run that was stopped")
    run.add_argument("--profile", default="tiny", metavar="NAME", help=f"one of {', '.join(PROFILES)}")
    run.add_argument("--rounds", metavar="N", help="how many rounds (tiny: 3)")
    run.add_argument("--order", metavar="ORDER", help="paper (default) or field_report")
    run.add_argument("--seed", metavar="S", help="the seed of everything drawn (default 0)")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/<profile>-<order>-seed<seed>")
    run.add_argument("--prompts", metavar="FILE.jsonl", help="train on these prompts, one Prompt record a line")
    run.add_argument("--set", action="append", default=[], metavar="PART.NAME=VALUE", dest="settings",
                     help="change a setting, e.g. --set sft.learning_rate=0.002; may be repeated")  # fmt: skip
    run.set_defaults(do=_run)

    report = commands.add_parser("report", help="write the page of a finished run again, and show its table")
    report.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder")
    report.set_defaults(do=_report)
    claims.add(commands)
    plan.add(commands)
    export.add(commands)
    chat.add(commands)
    return parser


def _profile(args: argparse.Namespace) -> Profile:
    profile = get_profile(args.profile)
    for name, text in (("rounds", args.rounds), ("order", args.order), ("seed", args.seed),
                       ("data.prompts_file", args.prompts)):  # fmt: skip
        if text is not None:
            profile = override(profile, f"{name}={text}")
    for setting in args.settings:
        profile = override(profile, setting)
    here, root = Path(profile.model.path), Path(__file__).resolve().parent.parent
    if not here.exists() and (root / here).is_dir():  # started in another folder than the project's
        profile = override(profile, f"model.path={os.path.relpath(root / here)}")
    return check_profile(profile)


def _doctor(args: argparse.Namespace) -> int:
    from llama3_lab.doctor import examine

    profile = get_profile(args.profile)
    for setting in args.settings:
        profile = override(profile, setting)
    findings = examine(check_profile(profile))
    for finding in findings:
        print(finding)
    failed = [f.name for f in findings if f.status == "FAIL"]
    print(f"not ready: {', '.join(failed)}" if failed else f"ready for profile {args.profile}")
    return 1 if failed else 0


def _run(args: argparse.Namespace) -> int:
    profile = _profile(args)
    out = args.out or Path("runs") / f"{profile.name}-{profile.order}-seed{profile.seed}"
    placed = _place(profile)
    _check_room(profile, out)
    if profile.data.prompts_file:
        from llama3_lab.pipeline.prompts import load_prompts

        load_prompts(Path(profile.data.prompts_file))  # a mistake in the file shows before anything is loaded
    RunFolder(out, profile).close()  # other settings, another run, a read-only disk: said within a second
    again = "goes on in" if (out / "stages.jsonl").exists() else "runs in"
    print(f"profile {profile.name}, {profile.rounds} rounds, order {profile.order}, seed {profile.seed}; {again} {out}",
          file=sys.stderr, flush=True)  # fmt: skip
    _share_cores(profile.model.threads)
    from llama3_lab.pipeline.rounds import run_loop

    report = run_loop(profile, out, placed)
    write_text(out / "report.json", json.dumps(to_json(report), ensure_ascii=False, indent=1) + "\n")
    _show(report, out)
    return 0


def _place(profile: Profile) -> Profile:
    """Return the profile with what the planner chooses for the GPU that is here, and print the choice with its reasons.

    Raises:
        ValueError: if there is no GPU, or nothing fits on it.
    """
    if not profile.model.device.startswith("cuda"):
        return profile
    from llama3_lab import placement
    from llama3_lab.doctor_gpu import find_card
    from llama3_lab.doctor_hub import shape_of

    card = find_card(profile.model.device)
    if card is None:
        raise ValueError(f"profile {profile.name} runs on {profile.model.device}, and there is no such GPU here; "
                         f"see what is missing: llama3-lab doctor --profile {profile.name}")  # fmt: skip
    world_size = 1
    if profile.model.launcher:
        from llama3_lab.pipeline.launches import processes

        world_size = processes(Path(profile.model.launcher))
    gpu = placement.card_of(card.name, card.total_bytes)
    chosen = placement.place(profile, gpu, shape_of(profile), world_size)
    print(placement.as_text(chosen), file=sys.stderr, flush=True)
    return placement.settle(profile, chosen)


def _room(profile: Profile) -> float:
    """Return what a run writes, in GB."""
    from llama3_lab.doctor import RUN_GB

    if not profile.model.device.startswith("cuda"):
        return RUN_GB
    from llama3_lab.doctor_gpu import run_bytes
    from llama3_lab.doctor_hub import shape_of

    return run_bytes(profile, shape_of(profile)) / 1e9


def _check_room(profile: Profile, out: Path) -> None:
    """Refuse to start where memory, the folder or the disk will not do."""
    from llama3_lab.doctor import free_disk_gb, free_memory_gb

    memory, need = free_memory_gb(), profile.model.memory_gb
    if memory < need:
        raise ValueError(
            f"profile {profile.name} needs {need:g} GB of memory and {memory:.1f} GB are free; close other programs "
            f"(or lower model.memory_gb with --set, if you know better)"
        )
    refuse_place(out)  # first: a place that takes no folder, like /proc, has no room either
    disk, room = free_disk_gb(out), _room(profile)
    if disk < room:
        raise ValueError(
            f"a run writes about {room:.3g} GB and {disk:.2f} GB are free for {out}; free some space or choose "
            "another folder with --out"
        )


def _share_cores(threads: int) -> None:
    """Where other programs use the cores, let threads that wait sleep; torch must not be imported yet.

    OpenMP's threads spin while they wait for each other. On an idle machine that is quicker; on a busy one
    a spinning thread keeps the other from its core, and a step took 15 s instead of 1. The figures are the same.
    """
    import psutil

    cores = psutil.cpu_count() or 1
    busy = psutil.cpu_percent(interval=0.2) / 100 * cores
    if threads > 1 and cores - busy < threads - 0.5 and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        print(f"other programs keep {busy:.1f} of {cores} cores busy: this run takes longer", file=sys.stderr)


def _report(args: argparse.Namespace) -> int:
    path = args.folder / "report.json"
    if os.access(args.folder, os.X_OK) and os.path.isdir(args.folder) and not os.path.exists(path):
        raise ValueError(f"{path}: there is no such file; finish the run: llama3-lab run --out {args.folder}")
    try:
        data = json.loads(read_text(path))
    except StoreError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); run the same `llama3-lab run` again to write it anew") from error
    try:
        report = from_json(RunReport, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; run the same `llama3-lab run` again to write it anew") from error
    _show(report, args.folder)
    return 0


def _show(report: RunReport, out: Path) -> None:
    from llama3_lab.course.page import render_page
    from llama3_lab.course.safety_views import table_false_refusals, table_safety
    from llama3_lab.course.views import table_stages

    write_text(out / "report.html", render_page(report))
    print("\n\n".join(t for t in (table_stages(report), table_safety(report), table_false_refusals(report)) if t))
    print(f"\nreport: {out / 'report.html'} (the same figures: {out / 'report.json'})")


def _explain(error: BaseException) -> str:
    """Return one line for an error that a person can mend, or nothing for one of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "not enough memory" in text or "out of memory" in text.lower():
        return "out of memory; close other programs, or lower sampling.batch_prompts with --set"
    return text if isinstance(error, ValueError | OSError) else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 (doctor failed), 2 (a mistake), 130 (Ctrl-C)."""
    debug = os.environ.get("LLAMA3_LAB_DEBUG", "0") not in ("", "0")
    try:
        args = _parser().parse_args(argv)
        return int(args.do(args))
    except KeyboardInterrupt:
        if debug:
            raise
        print("\nllama3-lab: stopped; the same command goes on from the last finished stage", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if debug or not (line := _explain(error)):
            raise
        print(f"llama3-lab: error: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
