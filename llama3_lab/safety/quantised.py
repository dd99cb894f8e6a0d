"""quantised(): a guard with int8 weights, as the released one has a smaller int8 version (§5.4.7, Table 27).

Dynamic quantisation on the CPU: the weights of every linear layer become int8, with one scale a row; activations are
quantised on the fly. The embedding keeps its float32 rows, as do the norms.
"""

from __future__ import annotations

import copy
import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch

from llama3_lab.safety.guard import Conversation, Guard, score


def quantised(guard: Guard) -> Guard:
    """Return a copy of the guard with int8 linear layers; the guard itself stays as it is. CPU only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(guard.model), {torch.nn.Linear}, torch.qint8)
    return replace(guard, model=model, name=f"{guard.name}-int8")


def size_of(guard: Guard) -> int:
    """Return the bytes of the guard's weights as saved."""
    buffer = io.BytesIO()
    torch.save(guard.model.state_dict(), buffer)
    return buffer.tell()


def speed_ratio(full: Guard, small: Guard, conversations: Sequence[Conversation], repeats: int = 5) -> float:
    """Return how many times faster `small` scores the conversations than `full`: median of paired repeats."""
    ratios = []
    for _ in range(repeats):
        seconds = []
        for guard in (full, small):
            started = time.perf_counter()
            score(guard, conversations)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return sorted(ratios)[len(ratios) // 2]
