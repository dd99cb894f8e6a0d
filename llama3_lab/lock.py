"""FolderLock: one writer at a time in a folder, over all processes of a machine.

The lock is the operating system's (flock on a file called .lock), so a killed process lets go by itself.
The file holds a word about who has the lock: what a waiter prints.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llama3_lab.disk import disk_errors

try:
    import fcntl
except ImportError:  # Windows has none; there, two writers in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

Told = Callable[[str], None]
PAUSE = 0.1  # seconds between two looks at a lock that another has; short enough for Ctrl-C to feel at once


class FolderLock:
    """The lock of one folder. The same object may take it again while it holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._depth = folder, 0
        with disk_errors(folder):
            self._file: int | None = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, what: str = "") -> bool:
        """Take the lock if nobody else has it, and return whether it is ours; `what` is what waiters read."""
        if self._file is None:
            raise ValueError(f"{self.folder}: closed; open the run again")
        if self._depth == 0 and fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            with contextlib.suppress(OSError):  # a full disk: then waiters read nothing
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, what.encode(), 0)
        self._depth += 1
        return True

    def free(self) -> None:
        """Let go once; the last of several lets others in."""
        self._depth -= 1
        if self._depth == 0 and fcntl is not None and self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def held(self, what: str, told: Told | None = None) -> Iterator[bool]:
        """Hold the lock inside; wait for it, and say so once. Gives True where it was not held before."""
        waiting = False
        while not self.take(what):
            if not waiting and told:
                told(f"{what}: waiting for another notebook, which makes {self.owner() or 'a stage'}")
            waiting = True
            time.sleep(PAUSE)
        try:
            yield self._depth == 1
        finally:
            self.free()

    def owner(self) -> str:
        """Return what the one who holds the lock, or held it last, said about it."""
        if self._file is None:
            return ""
        return os.pread(self._file, 200, 0).decode(errors="replace").strip()

    def close(self) -> None:
        """Let go for good."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
