"""Records on disk: JSONL with a digest, and the run folder. The only file that writes results.

Every write is atomic: a file under another name in the same folder, fsync, rename. Whatever happens
(a kill, a full disk), a file is the old one or the new one, never a half. A run folder holds

    settings.json       the profile and its digest
    stages.jsonl        the ledger: one `Stage` a line, in the order in which they finished
    <stage>.jsonl       the records of a stage
    checkpoints/<name>  the files of a checkpoint

The digests find accidents; they are no defence against a person who wants to cheat.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from llama3_lab.disk import StoreError, digest_file, disk_errors, fill_folder, read_bytes, sync, write_bytes
from llama3_lab.profiles import Profile
from llama3_lab.records import Checkpoint
from llama3_lab.typed_json import digest_records, digest_settings, from_json, parse_line, to_json, to_lines

try:
    import fcntl
except ImportError:  # Windows has none; there, two runs in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "RunFolder", "Stage", "StoreError", "digest_records", "digest_settings", "from_json", "read_records",
    "read_text", "to_json", "write_records", "write_text",
]

R = TypeVar("R")
Kind = Literal["policy", "reward"]
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True)
class Stage:
    """One finished stage. digest: sha256 of its records or files; seconds: wall time when it was made."""

    name: str
    digest: str
    seconds: float
    checkpoint: Checkpoint | None


def write_records(path: Path, records: Sequence[Any]) -> None:
    """Write one record a line, atomically.

    Raises:
        StoreError: for a full or read-only disk; what stood there before still stands.
    """
    write_bytes(path, to_lines(records))


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), atomically; raises as `write_records` does."""
    write_bytes(path, text.encode())


def read_text(path: Path) -> str:
    """Return a text file (UTF-8); raises StoreError where it cannot be read."""
    return read_bytes(path).decode()


def read_records(path: Path, cls: type[R]) -> list[R]:
    """Return the records of a JSONL file, one a line, in order: record i stands on line i + 1.

    Raises:
        ValueError: "prompts.jsonl:7: …" for the first line that is no such record, or a missing file.
    """
    lines = read_bytes(path).removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
    return [parse_line(cls, line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line or len(lines) > 1]


class RunFolder:
    """A folder that one run writes, created or reopened; a stage that finished is never made again.

    Raises:
        ValueError: if it was made with other settings, is no run folder, or is being written now.
    """

    def __init__(self, path: Path, profile: Profile) -> None:
        self.path, self.profile, self.profile_digest = path, profile, digest_settings(profile)
        if path.is_dir() and not (path / "settings.json").exists() and any(_visible(path)):
            raise ValueError(f"{path}: not empty, and no run folder; choose another with --out")
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def once(self, name: str, cls: type[R], make: Callable[[], Sequence[R]]) -> list[R]:
        """Return the records of stage `name`: read from <name>.jsonl if it finished, else made and written.

        Raises:
            ValueError: if the file is not what was written; it says what to delete.
        """
        path = self.path / f"{_checked(name)}.jsonl"
        stage = self._stages.get(name)
        if stage and path.exists():
            if hashlib.sha256(read_bytes(path)).hexdigest() != stage.digest:
                raise ValueError(f"{path}: altered or cut off since it was written; delete it to remake it")
            return read_records(path, cls)
        start = time.perf_counter()
        write_records(path, make())
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
        self._finish(Stage(name, digest, time.perf_counter() - start, None))
        return read_records(path, cls)  # what a resumed run would see, to the last bit

    def checkpoint(
        self, name: str, kind: Kind, parent: str, data_digest: str, make: Callable[[Path], object]
    ) -> Checkpoint:
        """Return checkpoint `name`: verified file by file if it finished, else made by `make(folder)`.

        Raises:
            ValueError: naming the file that is missing or altered, or the input that is another; it
                says what to delete.
        """
        folder = self.path / "checkpoints" / _checked(name)
        stage = self._stages.get(name)
        if stage and stage.checkpoint and folder.is_dir():
            self._verify(stage.checkpoint, (kind, parent, data_digest))
            return stage.checkpoint
        partial = folder.with_name(folder.name + ".partial")
        start = time.perf_counter()
        with disk_errors(folder):
            for old in (partial, folder):  # half-built, or finished by a run killed before it said so
                if old.exists():
                    shutil.rmtree(old)
            partial.mkdir(parents=True)
        try:
            files = fill_folder(partial, make)
            with disk_errors(folder):
                partial.replace(folder)
                sync(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        made = Checkpoint(name, f"checkpoints/{name}", kind, parent, data_digest, self.profile_digest, files)
        self._finish(Stage(name, digest_records([made]), time.perf_counter() - start, made))
        return made

    def path_of(self, checkpoint: Checkpoint) -> Path:
        """Return the folder of a checkpoint of this run."""
        return self.path / checkpoint.path

    def seconds(self, name: str) -> float:
        """Return the wall time of a finished stage, as recorded when it was made."""
        if name not in self._stages:
            done = ", ".join(self._stages) or "none"
            raise ValueError(f"{self.path}: stage {name!r} has not finished; finished: {done}")
        return self._stages[name].seconds

    def total_seconds(self) -> float:
        """Return the wall time of all finished stages together."""
        return sum(stage.seconds for stage in self._stages.values())

    def close(self) -> None:
        """Let another run use the folder; a killed process does so by itself."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.close()

    def _open(self) -> None:
        if fcntl is not None and self._lock is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{self.path}: another run is writing it; wait for that one, or choose another with --out"
                ) from None
        for left in self.path.glob("**/.*.partial"):  # a file's half, from a run that was killed
            left.unlink()
        settings = self.path / "settings.json"
        if settings.exists():
            self._compare(settings)
        else:
            content = {"digest": self.profile_digest, "profile": to_json(self.profile)}
            write_text(settings, json.dumps(content, indent=2) + "\n")
        self._stages = {s.name: s for s in self._ledger()}

    def _compare(self, path: Path) -> None:
        try:
            there = _flat(json.loads(read_bytes(path))["profile"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: cannot be read as settings; choose another with --out") from None
        here = _flat(to_json(self.profile))
        keys = [k for k in {**there, **here} if there.get(k) != here.get(k)]
        if keys:
            parts = [f"{k} (there {_shown(there, k)}, now {_shown(here, k)})" for k in keys]
            raise ValueError(
                f"{self.path}: made with other settings: {'; '.join(parts)}; choose another folder with --out"
            )

    def _ledger(self) -> list[Stage]:
        path = self.path / "stages.jsonl"
        if not path.exists():
            return []
        data = read_bytes(path)
        if not data.endswith(b"\n"):  # killed in the middle of a line: that stage did not finish
            write_bytes(path, data[: data.rfind(b"\n") + 1])
        return read_records(path, Stage)

    def _finish(self, stage: Stage) -> None:
        """Enter a stage in the ledger. One made again, and different: later ones no longer follow from it."""
        old = self._stages.get(stage.name)
        if old and old.digest == stage.digest:
            return
        path = self.path / "stages.jsonl"
        if old:
            names = list(self._stages)
            kept = [self._stages[n] for n in names[: names.index(stage.name)]]
            write_records(path, [*kept, stage])
            self._stages = {s.name: s for s in [*kept, stage]}
            return
        with disk_errors(path), path.open("ab") as file:
            end = file.tell()
            try:
                file.write(to_lines([stage]))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
        self._stages[stage.name] = stage

    def _verify(self, checkpoint: Checkpoint, inputs: tuple[str, str, str]) -> None:
        folder = self.path_of(checkpoint)
        remedy = f"delete the folder {folder} to build it again (earlier stages stay)"
        recorded = (checkpoint.kind, checkpoint.parent, checkpoint.data_digest)
        for what, there, now in zip(("kind", "parent", "training data"), recorded, inputs, strict=True):
            if there != now:
                raise ValueError(f"{folder}: made with another {what} ({there:.12}, now {now:.12}); {remedy}")
        for file, digest in checkpoint.files:
            if not (folder / file).is_file():
                raise ValueError(f"{folder / file}: missing; {remedy}")
            if digest_file(folder / file) != digest:
                raise ValueError(f"{folder / file}: altered or cut off since it was written; {remedy}")


def _checked(name: str) -> str:
    if not NAME.fullmatch(name) or name in ("settings", "stages"):
        raise ValueError(f"a stage cannot be called {name!r}; use letters, digits, '.', '_', '-' and '/'")
    return name


def _visible(path: Path) -> Iterator[Path]:
    return (p for p in path.iterdir() if not p.name.startswith("."))


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {"sft.fit.max_steps": 100, …}."""
    if not isinstance(data, dict):
        return {prefix: data}
    parts = [_flat(value, f"{prefix}.{name}".strip(".")) for name, value in data.items()]
    return {key: value for part in parts for key, value in part.items()}


def _shown(settings: dict[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "absent"
