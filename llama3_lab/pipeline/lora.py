"""LoraLinear: a low-rank update beside a frozen layer, written out; the tests hold it equal to PEFT's layer.

Training itself uses PEFT (models.py, training.py). This is the same arithmetic in the open, for the
notebook on SFT. Shapes: `I` features in, `O` features out, `R` rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a Llama block


class LoraLinear(nn.Module):
    """A frozen linear layer W and a trained update of rank R: y = W x + (alpha / R) · B A x.

    B starts at zero, so that a new adapter changes nothing; A starts at random, as in PEFT, so that B
    has a gradient from the first step (A has none until B has moved).

    Source: Hu et al. 2021, section 4.1.
    """

    def __init__(self, layer: nn.Linear, r: int, alpha: int) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / r
        self.a_RI = nn.Parameter(torch.empty(r, layer.in_features, dtype=layer.weight.dtype))
        self.b_OR = nn.Parameter(torch.zeros(layer.out_features, r, dtype=layer.weight.dtype))
        nn.init.kaiming_uniform_(self.a_RI, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x, shape (…, I), as (…, O)."""
        return self.layer(x) + self.scale * (x @ self.a_RI.T @ self.b_OR.T)

    def merged(self) -> Tensor:
        """Return the one matrix, shape (O, I), that does the same: W + (alpha / R) · B A."""
        return self.layer.weight + self.scale * (self.b_OR @ self.a_RI)


def add_lora(model: Any, r: int, alpha: int, names: Sequence[str] = EVERY_LINEAR) -> list[nn.Parameter]:
    """Freeze the model, put a LoraLinear in the place of each linear layer of that name; return what trains, in place.

    Raises:
        ValueError: if the model has no such layer.
    """
    model.requires_grad_(False)
    found = [(parent, n, m) for parent in model.modules() for n, m in parent.named_children()
             if n in names and isinstance(m, nn.Linear)]  # fmt: skip
    if not found:
        raise ValueError(f"the model has no linear layer called {', '.join(names)}; name some of its own")
    for parent, name, layer in found:
        setattr(parent, name, LoraLinear(layer, r, alpha))
    return [p for p in model.parameters() if p.requires_grad]
