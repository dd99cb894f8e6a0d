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
    except FileNotFoundError:
        raise StoreError(f"{path}: there is no such file; check the name") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


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
        why = DISK.get(error.errno or 0, f"{error.strerror}; choose another folder")
        raise StoreError(f"cannot write {path}: {why}; what was finished before is intact") from error


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
