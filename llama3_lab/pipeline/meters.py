"""Meters of memory on real tensors: what autograd keeps, and the most that is alive at once. Bytes, on any device.

They count storages, each once, however many tensors look into it, and never the model's own parameters and
buffers. The planner (llama3_lab/paper) is tested against them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def kept_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd keeps between `forward`, which returns a loss, and the backward pass.

    Under reentrant checkpointing the layers' inputs are kept by no hook that could be counted here; use `Peak`.
    """
    own = {_key(t) for t in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _key(tensor) not in own:
            found[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()
    total = sum(found.values())
    del loss  # until here the graph lived, so no storage's address could be used twice
    return total


class Peak(TorchDispatchMode):
    """Counts what is alive while it is on: `now` and `most`, in bytes, without what was `given` to it at the start.

    It sees every tensor that an operation returns, forward and backward, not what a kernel uses inside.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        for tensor in given:
            self._watch(tensor, counted=False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._watch(leaf)
        return out

    def _watch(self, tensor: Tensor, counted: bool = True) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        size = storage.nbytes() if counted else 0
        if key in self._alive or not storage.nbytes():
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


@contextmanager
def peak(model: nn.Module) -> Iterator[Peak]:
    """Count, inside the block, what comes on top of the model's parameters and buffers."""
    meter = Peak([*model.parameters(), *model.buffers()])
    with meter:
        yield meter


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
