"""bar(): one style of progress bar, silent where text must be the same each time.

LLAMA3_LAB_PROGRESS=0 turns every bar off (tests and executed notebooks do).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def bar(total: int, what: str, unit: str = "step") -> Any:
    """Return a bar on standard error: `update(n)`, `close()`, `set_postfix_str(text)`."""
    off = os.environ.get("LLAMA3_LAB_PROGRESS", "1") == "0"
    width = 100 if not sys.stderr.isatty() else None
    return tqdm(
        total=total,
        desc=f"{what:<28.28}",
        unit=unit,
        disable=off,
        ncols=width,
        mininterval=0.5 if width is None else 10.0,
        leave=True,
        file=sys.stderr,
    )
