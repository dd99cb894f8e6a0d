"""`llama3-lab export`: a checkpoint of a run as a folder that stands by itself, and how to serve it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama3_lab.export import Exported


def add(commands: Any) -> None:
    """Define the sub-command. commands: what `ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser("export", help="write a checkpoint to a folder of its own, with a model card")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="the run's folder, e.g. runs/tiny-paper-seed0")
    parser.add_argument("--checkpoint", required=True, metavar="NAME", help="e.g. round3-policy")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a folder that is not there yet")
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, not the merged weights")
    parser.set_defaults(do=show)


def _merged(run: Path, name: str, out: Path) -> Exported:
    """Export a checkpoint of a run that keeps adapters only: put together first, beside the folder that is made."""
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from llama3_lab.commands.chat import settings
    from llama3_lab.disk import disk_errors
    from llama3_lab.export import export
    from llama3_lab.models import write_merged

    how = replace(settings(run).model, device="cpu", attention="sdpa")
    with disk_errors(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".merging-", dir=out.absolute().parent) as made:
        write_merged(run / "checkpoints" / name, how, Path(made))
        return export(run, name, out, weights=Path(made))


def show(args: argparse.Namespace) -> int:
    """Export and say what was written and how to serve it; ValueError, one line, where it cannot be done."""
    from llama3_lab.export import export

    source = args.folder / "checkpoints" / args.checkpoint
    if args.adapter or not (source / "parent.json").is_file():
        made = export(args.folder, args.checkpoint, args.out, args.adapter)
    else:
        made = _merged(args.folder, args.checkpoint, args.out)
    form = "adapter" if made.adapter else "merged weights"
    print(f"{made.folder}: {form} of {made.checkpoint.name}, {made.size / 1e6:,.1f} MB; README.md is its model card\n")
    print("\n".join(made.next_steps))
    return 0
