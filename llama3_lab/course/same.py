"""assert_same(): a function that you wrote out, and the package's, give the same values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def assert_same(
    mine: Callable[..., Any],
    theirs: Callable[..., Any],
    *inputs: Any,
    names: Sequence[str] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Call both on the same inputs; compare the results, and the gradients of every float tensor among the inputs.

    A result that is no scalar is weighed by fixed random numbers before its gradient is taken. An
    input that gets no gradient (a detached reference, say) must get none from either. names: what
    errors call the inputs. tolerance: absolute, and relative to the larger of two numbers.

    Raises:
        AssertionError: one line: what differs, and by how much.
    """
    called = list(names) if names else [f"input {i + 1}" for i in range(len(inputs))]
    if len(called) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs and {len(called)} names; give one name each")
    (mine_out, mine_grads), (their_out, their_grads) = _run(mine, inputs), _run(theirs, inputs)
    assert mine_out.shape == their_out.shape, f"shapes differ: {_shape(mine_out)} and {_shape(their_out)}"
    worst = _close("the values", mine_out, their_out, tolerance)
    taken = 0
    for name, a, b in zip(called, mine_grads, their_grads, strict=True):
        if a is None and b is None:
            continue
        taken += 1
        worst = max(worst, _close(f"the gradients of {name}", _or_zero(a, b), _or_zero(b, a), tolerance))
    what = "same value, same gradient" if taken else "same value"
    print(f"{what} (max difference {worst:.1e})")


def _run(function: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return a function's result and, for each input, the gradient, or None where there is none."""
    import torch

    own = [x.detach().clone().requires_grad_(x.is_floating_point()) if isinstance(x, torch.Tensor) else x
           for x in inputs]  # fmt: skip
    out = function(*own)
    if not isinstance(out, torch.Tensor):
        raise AssertionError(f"{getattr(function, '__name__', 'a function')} returned {type(out).__name__}, no tensor")
    if out.requires_grad:
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        (out.double() * (weights if out.ndim else 1.0)).sum().backward()
    return out.detach(), [x.grad if isinstance(x, torch.Tensor) else None for x in own]


def _or_zero(gradient: Any, like: Any) -> Any:
    """Return the gradient; where there is none, zeros: a missing gradient and one of zero do the same."""
    return like.new_zeros(like.shape) if gradient is None else gradient


def _close(what: str, a: Any, b: Any, tolerance: float) -> float:
    """Return the greatest difference of two tensors; AssertionError where it is above the tolerance."""
    import torch

    if not a.numel():
        return 0.0
    a, b = a.double(), b.double()
    gap = (a - b).abs()
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, gap.nan_to_num(float("inf")))
    allowed = tolerance * torch.maximum(a.abs(), b.abs()).nan_to_num(0.0, 0.0, 0.0).clamp(min=1.0)
    if (gap > allowed).any():
        at = int((gap - allowed).argmax())
        place = f" at {tuple(int(i) for i in torch.unravel_index(torch.tensor(at), a.shape))}" if a.ndim else ""
        raise AssertionError(f"{what} differ{place}: mine {a.flatten()[at]:.6g}, theirs {b.flatten()[at]:.6g}")
    return float(gap.max())


def _shape(x: Any) -> str:
    return "×".join(map(str, x.shape)) or "a scalar"
