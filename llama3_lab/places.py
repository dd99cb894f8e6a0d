"""Where things lie: the project's folder, and the folder that runs go to. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

BASE_MODEL = Path("data") / "tiny_base"


def project() -> Path:
    """Return the project's folder: the one that holds data/tiny_base.

    The package's own checkout comes first; where it was installed without one, the working folder or its parent.
    """
    own = Path(__file__).resolve().parent.parent
    for folder in (own, Path.cwd(), Path.cwd().parent):
        if (folder / BASE_MODEL).is_dir():
            return folder
    return own


def runs() -> Path:
    """Return the folder that holds the notebooks' runs: LLAMA3_LAB_RUNS, or runs/ in the project."""
    return Path(os.environ.get("LLAMA3_LAB_RUNS") or project() / "runs")


def predictions() -> Path:
    """Return the file of the learner's predictions: LLAMA3_LAB_PREDICTIONS, or predictions.json beside the runs."""
    return Path(os.environ.get("LLAMA3_LAB_PREDICTIONS") or runs() / "predictions.json")
