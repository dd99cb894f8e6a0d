"""Bytes on a disk: atomic writes, digests, and errors in one line. No records here, see store.py."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

DISK = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EFBIG: "the file is larger than you may write there; choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "you may not write there; choose another folder",
    errno.EPERM: "you may not write there; choose another folder",
}
PLACE = {  # the path itself does not do
    errno.ENOENT: "no folder can be made there, or it has gone; choose another folder",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another folder",
    errno.EEXIST: "there is a file of that name, or a link that leads nowhere; choose another folder",
    errno.EISDIR: "there is a folder of that name; move it away, or choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead round in a circle; choose another folder",
    errno.EIO: "the disk reports an error; see to it, or choose another folder",
    errno.EMFILE: "too many files are open; close other programs",
    errno.ENFILE: "too many files are open; close other programs",
}
READ = {
    errno.ENOENT: "there is no such file; check the name",
    errno.ENOTDIR: "there is no such file, for a part of that path is a file, not a folder; check the name",
    errno.EISDIR: "a folder, not a file; check the name",
    errno.ENAMETOOLONG: "the name is too long; check it",
    errno.ELOOP: "its links lead round in a circle; check the name",
    errno.EACCES: "you may not read it; check its permissions",
    errno.EPERM: "you may not read it; check its permissions",
    errno.EIO: "the disk reports an error; see to it",
}
DISK_WORDS = {  # what writers in other languages say instead of an errno
    "No space left on device": errno.ENOSPC, "StorageFull": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
}


class StoreError(ValueError):
    """Results could not be read or written; one line: where, why, what to do."""


def read_bytes(path: Path) -> bytes:
    """Return what a file holds; StoreError if it is missing or may not be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        why = READ.get(error.errno or 0, f"cannot be read ({error.strerror}); check the file")
        raise StoreError(f"{path}: {why}") from None


def temporary_name(path: Path) -> Path:
    """Return the name under which this process writes a file before it takes the right one."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; StoreError if the disk does not take it, the old file stands."""
    temporary = temporary_name(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        sync(path.parent)


def sync(path: Path) -> None:
    """Put a folder's names on disk, so that a rename outlives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError with one line."""
    try:
        yield
    except OSError as error:
        why = {**DISK, **PLACE}.get(error.errno or 0, f"{error.strerror}; choose another folder")
        raise StoreError(f"cannot write {path}: {why}; what was finished before is intact") from error


def refuse_place(folder: Path) -> None:
    """Make a folder and take away again what was made; StoreError where the system does not allow it."""
    made: list[Path] = []
    with disk_errors(folder):
        try:
            for path in reversed([folder, *folder.parents]):
                if not os.path.exists(path):
                    path.mkdir()
                    made.append(path)
            folder.mkdir(exist_ok=True)  # it may be a file
        finally:
            for path in reversed(made):
                with contextlib.suppress(OSError):  # somebody else has put something there
                    path.rmdir()


def digest_file(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill_folder(folder: Path, make: Callable[[Path], object]) -> tuple[tuple[str, str], ...]:
    """Let `make` fill the folder; return (name, sha256) of every file, on disk for good."""
    try:
        make(folder)
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        code = next((n for words, n in DISK_WORDS.items() if words in str(error)), code)
        if code in DISK:
            with disk_errors(folder):
                raise OSError(code, os.strerror(code)) from error
        raise
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        raise ValueError(f"{folder}: nothing was written for this checkpoint")
    with disk_errors(folder):
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for inside in {p.parent for p in files}:
            sync(inside)
    return tuple((p.relative_to(folder).as_posix(), digest_file(p)) for p in files)
