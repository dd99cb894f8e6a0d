"""split_of(): which split a combination belongs to, for ever and in every seed.

A combination is what a prompt is made of, numbers aside: a sequence of operations, a set of names,
an animal with the things asked about it. Whole combinations are held out, so that a test prompt asks
for something that neither the pre-training corpus nor any training prompt has put together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random

from llama3_lab.records import Split

SHARES: tuple[tuple[Split, float], ...] = (("train", 0.70), ("validation", 0.10), ("test", 0.20))


def split_of(*parts: str) -> Split:
    """Return the split of a combination, by its sha256: 70 % train, 10 % validation, 20 % test."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SHARES:
        if at < share:
            return split
        at -= share
    return "test"


def draw(pool: Sequence[str], n: int, split: Split, rng: Random) -> list[str]:
    """Return n different members of `pool`, in random order, whose set belongs to `split`."""
    while True:
        chosen = rng.sample(list(pool), n)
        if split_of(*sorted(chosen)) == split:
            return chosen


def draw_sequence(pool: Sequence[str], n: int, split: Split, rng: Random) -> list[str]:
    """Return n members of `pool`, repeats allowed, whose sequence belongs to `split`."""
    while True:
        chosen = [rng.choice(pool) for _ in range(n)]
        if split_of(*chosen) == split:
            return chosen
