"""`llama3-lab export`: a checkpoint of a run as a folder that stands by itself, and how to serve it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Define the sub-command. commands: what `ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser("export", help="write a checkpoint to a folder of its own, with a model card")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="the run's folder, e.g. runs/tiny-paper-seed0")
    parser.add_argument("--checkpoint", required=True, metavar="NAME", help="e.g. round3-policy")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a folder that is not there yet")
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, not the merged weights")
    parser.set_defaults(do=show)


def show(args: argparse.Namespace) -> int:
    """Export and say what was written and how to serve it; ValueError, one line, where it cannot be done."""
    from llama3_lab.export import export

    made = export(args.folder, args.checkpoint, args.out, args.adapter)
    form = "adapter" if made.adapter else "merged weights"
    print(f"{made.folder}: {form} of {made.checkpoint.name}, {made.size / 1e6:,.1f} MB; README.md is its model card\n")
    print("\n".join(made.next_steps))
    return 0
