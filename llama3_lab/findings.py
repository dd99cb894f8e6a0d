"""Finding: what the doctor looked at, and what to do; and what is free on this machine, in GB (10⁹ bytes)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and, unless it passed, what to do."""

    name: str
    status: Literal["PASS", "WARN", "FAIL"]
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.status:<5} {self.name:<14} {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def free_memory_gb() -> float:
    """Return the memory that a new process may still use, in GB (10⁹ bytes), a container's limit counted."""
    import psutil

    free = float(psutil.virtual_memory().available)
    try:
        limit = (Path("/sys/fs/cgroup") / "memory.max").read_text().strip()
        used = (Path("/sys/fs/cgroup") / "memory.current").read_text().strip()
        free = min(free, float(limit) - float(used)) if limit != "max" else free
    except (OSError, ValueError):
        pass
    return free / 1e9


def there(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    at = folder.absolute()
    while not at.exists():
        at = at.parent
    return at


def free_disk_gb(folder: Path) -> float:
    """Return the room on the disk that `folder` is on or will be on, in GB (10⁹ bytes)."""
    return shutil.disk_usage(there(folder)).free / 1e9
