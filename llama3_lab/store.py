"""Records on disk: JSONL with a digest, and the run folder. The only file that writes results.

Every write is atomic: a file under another name in the same folder, fsync, rename. Whatever happens
(a kill, a full disk), a file is the old one or the new one, never a half. A run folder belongs to one
process (`llama3-lab run`), or is shared: then several may have it open, a lock is held only while a
stage is made, and a stage that one has made is there for all. It holds

    settings.json       the profile and its digest
    stages.jsonl        the ledger: one `Stage` a line, in the order in which they finished
    <stage>.jsonl       the records of a stage
    checkpoints/<name>  the files of a checkpoint

The digests find accidents; they are no defence against a person who wants to cheat.
"""

from __future__ import annotations

import contextlib
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
from llama3_lab.lock import FolderLock, Told
from llama3_lab.profiles import Profile
from llama3_lab.records import Checkpoint
from llama3_lab.typed_json import (
    digest_records,
    digest_settings,
    from_json,
    parse_line,
    settings_json,
    to_json,
    to_lines,
)

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
    """A folder of a run, created or reopened; a stage that finished is never made again.

    shared: several processes may have it open at once; a checkpoint whose parent or training data
    have changed is made again there, where a run of one's own refuses. told: gets one line a stage,
    "kept from before" or "made in 12 s", and one where it waits for another notebook.

    Raises:
        ValueError: if it was made with other settings, is no run folder, or (unless shared) is being
            written now.
    """

    def __init__(self, path: Path, profile: Profile, shared: bool = False, told: Told | None = None) -> None:
        self.path, self.profile, self.profile_digest = path, profile, digest_settings(profile)
        self.shared, self.told = shared, told
        self._stages: dict[str, Stage] = {}
        self._said: set[str] = set()
        self._seen: tuple[int, int] | None = None
        if path.is_dir() and not (path / "settings.json").exists() and any(_visible(path)):
            raise ValueError(f"{path}: not empty, and no run folder; choose another with --out")
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(path)
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
        self._refresh()
        if (kept := self._records(name, path, cls)) is not None:
            return kept
        with self._making(name):
            if (kept := self._records(name, path, cls, sure=True)) is not None:
                return kept
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
            ValueError: naming the file that is missing or altered, or (unless shared) the input that is
                another; it says what to delete.
        """
        folder = self.path / "checkpoints" / _checked(name)
        self._refresh()
        if kept := self._checkpoint(name, (kind, parent, data_digest)):
            return kept
        with self._making(name):
            if kept := self._checkpoint(name, (kind, parent, data_digest), sure=True):
                return kept
            start = time.perf_counter()
            files = self._build(folder, make)
            made = Checkpoint(name, f"checkpoints/{name}", kind, parent, data_digest, self.profile_digest, files)
            self._finish(Stage(name, digest_records([made]), time.perf_counter() - start, made))
            return made

    def path_of(self, checkpoint: Checkpoint) -> Path:
        """Return the folder of a checkpoint of this run."""
        return self.path / checkpoint.path

    def seconds(self, name: str) -> float:
        """Return the wall time of a finished stage, as recorded when it was made."""
        self._refresh()
        if name not in self._stages:
            done = ", ".join(self._stages) or "none"
            raise ValueError(f"{self.path}: stage {name!r} has not finished; finished: {done}")
        return self._stages[name].seconds

    def total_seconds(self) -> float:
        """Return the wall time of all finished stages together."""
        return sum(stage.seconds for stage in self._stages.values())

    def close(self) -> None:
        """Let another run use the folder; a killed process does so by itself."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    def _open(self) -> None:
        if not self.shared:
            if not self._lock.take():
                raise StoreError(
                    f"{self.path}: another run is writing it; wait for that one, or choose another with --out"
                )
            self._clean()
        settings = self.path / "settings.json"
        if not settings.exists():
            with self._lock.held("settings", self.told):
                if not settings.exists():
                    content = {"digest": self.profile_digest, "profile": to_json(self.profile)}
                    write_text(settings, json.dumps(content, indent=2) + "\n")
        self._compare(settings)
        self._refresh(sure=not self.shared)

    @contextlib.contextmanager
    def _making(self, name: str) -> Iterator[None]:
        """Hold the lock while a stage is made, and look at the ledger again first: another may have made it."""
        with self._lock.held(name, self.told) as first:
            if self.shared and first:
                self._clean()
                self._refresh(sure=True)
            yield

    def _clean(self) -> None:
        for left in self.path.glob("**/.*.partial"):  # a file's half, from a run that was killed
            left.unlink()

    def _refresh(self, sure: bool = False) -> None:
        """Read the ledger if it is another than when it was read last. sure: we hold the lock."""
        path = self.path / "stages.jsonl"
        if not path.exists():
            self._stages, self._seen = {}, None
            return
        now = path.stat()
        if sure or (self.shared and self._seen != (now.st_mtime_ns, now.st_size)):
            self._stages = {s.name: s for s in self._ledger(sure)}
            self._seen = (now.st_mtime_ns, now.st_size)

    def _records(self, name: str, path: Path, cls: type[R], sure: bool = False) -> list[R] | None:
        """Return the records of a finished stage, None where there are none. sure: nobody writes now."""
        stage = self._stages.get(name)
        if not stage or not path.exists():
            return None
        if hashlib.sha256(read_bytes(path)).hexdigest() != stage.digest:
            if self.shared and not sure:
                return None  # perhaps another notebook makes it again just now: wait, then look once more
            raise ValueError(f"{path}: altered or cut off since it was written; delete it to remake it")
        self._say(name, "kept from before")
        return read_records(path, cls)

    def _checkpoint(self, name: str, inputs: tuple[str, str, str], sure: bool = False) -> Checkpoint | None:
        """Return a finished checkpoint, verified; None where it must be made. sure: nobody writes now."""
        stage = self._stages.get(name)
        if not (stage and stage.checkpoint and self.path_of(stage.checkpoint).is_dir()):
            return None
        if self.shared and self._changed(stage.checkpoint, inputs):
            return None
        try:
            self._verify(stage.checkpoint, inputs)
        except ValueError:
            if self.shared and not sure:
                return None
            raise
        self._say(name, "kept from before")
        return stage.checkpoint

    def _build(self, folder: Path, make: Callable[[Path], object]) -> tuple[tuple[str, str], ...]:
        partial = folder.with_name(folder.name + ".partial")
        with disk_errors(folder):
            for old in (partial, folder):  # half-built, stale, or finished by a run killed before it said so
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
        return files

    def _say(self, name: str, words: str) -> None:
        if self.told and name not in self._said:
            self._said.add(name)
            self.told(f"{name}: {words}")

    def _compare(self, path: Path) -> None:
        try:
            there = _flat(json.loads(read_bytes(path))["profile"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: cannot be read as settings; choose another with --out") from None
        here, needed = _flat(to_json(self.profile)), _flat(settings_json(self.profile))
        keys = [k for k in {**there, **here} if (k in there or k in needed) and there.get(k) != here.get(k)]
        if keys:
            parts = [f"{k} (there {_shown(there, k)}, now {_shown(here, k)})" for k in keys]
            raise ValueError(
                f"{self.path}: made with other settings: {'; '.join(parts)}; choose another folder with --out"
            )

    def _ledger(self, sure: bool) -> list[Stage]:
        """Return the finished stages. sure: nobody writes now, so a half line is of a run that was killed."""
        path = self.path / "stages.jsonl"
        data = read_bytes(path)
        whole = data[: data.rfind(b"\n") + 1]  # a stage whose line is cut off did not finish
        if sure and whole != data:
            write_bytes(path, whole)
        return [parse_line(Stage, line, f"{path}:{n}") for n, line in enumerate(whole.splitlines(), 1)]

    def _finish(self, stage: Stage) -> None:
        """Enter a stage in the ledger. One made again, and different: later ones no longer follow from it."""
        old = self._stages.get(stage.name)
        self._say(stage.name, f"made {'again ' if old else ''}in {stage.seconds:.0f} s")
        if old and old.digest == stage.digest:
            return
        path = self.path / "stages.jsonl"
        if old:
            names = list(self._stages)
            at = names.index(stage.name)
            kept = [s for i, s in enumerate(self._stages.values()) if i < at or (i > at and not _follows(s, stage))]
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

    def _changed(self, checkpoint: Checkpoint, inputs: tuple[str, str, str]) -> str:
        """Return which input is another than when the checkpoint was made; "" where none is."""
        recorded = (checkpoint.kind, checkpoint.parent, checkpoint.data_digest)
        for what, there, now in zip(("kind", "parent", "training data"), recorded, inputs, strict=True):
            if there != now:
                return f"made with another {what} ({there:.12}, now {now:.12})"
        return ""

    def _verify(self, checkpoint: Checkpoint, inputs: tuple[str, str, str]) -> None:
        folder = self.path_of(checkpoint)
        remedy = f"delete the folder {folder} to build it again (earlier stages stay)"
        if changed := self._changed(checkpoint, inputs):
            raise ValueError(f"{folder}: {changed}; {remedy}")
        for file, digest in checkpoint.files:
            if not (folder / file).is_file():
                raise ValueError(f"{folder / file}: missing; {remedy}")
            if digest_file(folder / file) != digest:
                raise ValueError(f"{folder / file}: altered or cut off since it was written; {remedy}")


def _checked(name: str) -> str:
    if not NAME.fullmatch(name) or name in ("settings", "stages"):
        raise ValueError(f"a stage cannot be called {name!r}; use letters, digits, '.', '_', '-' and '/'")
    return name


def _follows(later: Stage, stage: Stage) -> bool:
    """Return whether a later stage may rest on this one. A notebook's own ("06-x") serve that notebook only."""
    own = re.match(r"\d\d-", stage.name)
    return own is None or own[0] in later.name


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
