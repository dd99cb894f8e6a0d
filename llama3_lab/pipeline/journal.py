"""Journal: answers of a server as they arrive, one a line, on disk at once. One writer; a half line is taken back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llama3_lab import lock
from llama3_lab.disk import StoreError, disk_errors, read_bytes
from llama3_lab.typed_json import parse_line, to_lines


@dataclass(frozen=True)
class Answer:
    """Answer number k to a prompt. logprob: None where the server does not tell it; the rest as in Candidate."""

    prompt_id: str
    k: int
    text: str
    n_tokens: int
    finished: bool
    logprob: float | None


@dataclass(frozen=True)
class Head:
    """The first line: the digest of what was asked."""

    asked: str


class Journal:
    """The answers in a file, by (prompt id, k). `add` returns when they are on disk.

    Raises:
        ValueError: if the file is of other prompts or settings, is damaged, or is being written now.
    """

    def __init__(self, path: Path, asked: str) -> None:
        self.path = path
        self.answers: dict[tuple[str, int], Answer] = {}
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        try:
            self._lock()
            self._load(asked)
        except BaseException:
            self.close()
            raise

    def missing(self, prompt_id: str, k: int) -> list[int]:
        """Return which of a prompt's k answers are not there yet."""
        return [i for i in range(k) if (prompt_id, i) not in self.answers]

    def add(self, answers: Sequence[Answer]) -> None:
        """Append answers, on disk for good; StoreError where the disk does not take them."""
        for answer in answers:
            if (answer.prompt_id, answer.k) in self.answers:
                raise ValueError(f"{self.path}: answer {answer.k} to {answer.prompt_id} is there already")
        self._append(to_lines(answers))
        self.answers |= {(a.prompt_id, a.k): a for a in answers}

    def close(self) -> None:
        """Let another process write it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        if lock.fcntl is not None:
            try:
                lock.fcntl.flock(self._file, lock.fcntl.LOCK_EX | lock.fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{self.path}: another process is writing it; wait for that one") from None

    def _load(self, asked: str) -> None:
        data = read_bytes(self.path)
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:  # of a process that was killed while it wrote: the answer is asked for again
            os.ftruncate(self._file.fileno(), len(whole))
        lines = whole.splitlines()
        if not lines:
            return self._append(to_lines([Head(asked)]))
        if parse_line(Head, lines[0], f"{self.path}:1").asked != asked:
            raise ValueError(f"{self.path}: answers to other prompts or settings; delete it, or name another")
        for n, line in enumerate(lines[1:], 2):
            answer = parse_line(Answer, line, f"{self.path}:{n}")
            self.answers[answer.prompt_id, answer.k] = answer
        return None

    def _append(self, data: bytes) -> None:
        with disk_errors(self.path):
            end = os.fstat(self._file.fileno()).st_size
            try:
                self._file.write(data)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError:
                os.ftruncate(self._file.fileno(), end)
                raise
