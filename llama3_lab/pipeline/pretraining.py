"""pretrain(): one small Llama on the small world's text, for a given number of FLOPs; the cell of an isoFLOP table.

As the paper's runs of §3.2.1 in kind: linear warm-up, cosine to a tenth of the peak, AdamW, no token read twice.
Rows are cut from one stream of documents, so attention also sees the document before; the weights of
embedding and output are shared, so that every weight but the norms' is multiplied by every token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from llama3_lab import places
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.facts import fact
from llama3_lab.paper.scale import training_flops
from llama3_lab.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Recipe:
    """How the small models are trained.

    row: tokens in a row. rows: rows in a batch. learning_rate: the peak at width `width`; at another width it
    is multiplied by (width / that width) ** falls. Shares are of all steps, or of the peak. seed: of weights and data.
    """

    row: int = 128
    rows: int = 8
    learning_rate: float = 1e-2
    width: int = 64
    falls: float = 0.5
    warmup_share: float = 0.1
    final_share: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def peak(self, architecture: Architecture) -> float:
        """Return the peak learning rate for a model of that width."""
        return self.learning_rate * (self.width / architecture.width) ** self.falls

    def steps(self, architecture: Architecture, budget: float) -> int:
        """Return the number of steps that come nearest to `budget` FLOPs, at least 1; attention counted as causal."""
        return max(1, round(budget / (training_flops(architecture, self.row) * self.rows)))


@dataclass(frozen=True)
class Trained:
    """One trained cell. flops: what was spent; losses: held-out nats a token, one for each held-out row."""

    flops: int
    tokens: int
    steps: int
    losses: tuple[float, ...]
    seconds: float
    trace: tuple[tuple[int, float], ...]

    @property
    def loss(self) -> float:
        """The mean held-out loss, in nats a token."""
        return sum(self.losses) / len(self.losses)


def small_llama(width: int, layers: int, heads: int) -> Architecture:
    """Return a tiny Llama in Llama 3's proportions: FFN three times the width, half as many key/value heads, tied."""
    kv_heads, vocabulary = max(1, heads // 2), _tokenizer().get_vocab_size()
    return Architecture(layers, width, 3 * width, heads, kv_heads, width // heads, vocabulary, tied=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread here: on models this small a second one mostly waits, and on a busy machine for long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def pretrain(architecture: Architecture, budget: float, how: Recipe, held_out: torch.Tensor) -> Trained:
    """Train a new model until `budget` FLOPs are spent, and measure it on `held_out` rows, shape (rows, row + 1)."""
    import torch

    torch.manual_seed(how.seed)
    model, steps = build(architecture, how.row), how.steps(architecture, budget)
    rows_NT = text_rows(steps * how.rows, how.row, seed=1000 + how.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=how.weight_decay, fused=True)
    started, trace = time.perf_counter(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = how.peak(architecture) * share_at(step, steps, how)
        loss = token_losses(model, rows_NT[step * how.rows : (step + 1) * how.rows]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), how.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % max(1, steps // 40) == 0 or step == steps - 1:
            trace.append((step + 1, round(loss.item(), 4)))
    seconds = time.perf_counter() - started
    spent = steps * how.rows * training_flops(architecture, how.row)
    return Trained(spent, steps * how.rows * how.row, steps, row_losses(model, held_out), seconds, tuple(trace))


def share_at(step: int, steps: int, how: Recipe) -> float:
    """Return the learning rate's share of its peak at a step: linear warm-up, then a cosine to the final share."""
    warmup = max(1, round(how.warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return how.final_share + (1 - how.final_share) * (1 + math.cos(math.pi * done)) / 2


def build(architecture: Architecture, row: int) -> Any:
    """Return a new LlamaForCausalLM of that architecture, for rows of up to `row` tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    a = architecture
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=a.vocabulary, hidden_size=a.width, intermediate_size=a.ffn, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.kv_heads, head_dim=a.head_dim,
        tie_word_embeddings=a.tied, max_position_embeddings=row, rms_norm_eps=1e-5, use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": float(fact("architecture.rope_theta").value)},
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    ))  # fmt: skip


def token_losses(model: Any, rows_BT: torch.Tensor) -> torch.Tensor:
    """Return each token's loss in nats, shape (rows, T − 1): every token but the first of a row is predicted."""
    import torch

    logits_BTV = model(input_ids=rows_BT[:, :-1], use_cache=False).logits
    flat = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, 1:].flatten(), reduction="none")
    return flat.view(len(rows_BT), -1)


def row_losses(model: Any, rows_NT: torch.Tensor, batch: int = 32) -> tuple[float, ...]:
    """Return each row's mean loss in nats a token, without a gradient."""
    import torch

    with torch.no_grad():
        means = [token_losses(model, rows_NT[i : i + batch]).mean(1) for i in range(0, len(rows_NT), batch)]
    return tuple(torch.cat(means).tolist())


def text_rows(n: int, row: int, seed: int) -> torch.Tensor:
    """Return n rows of row + 1 token ids, cut from one stream of documents; a row begins with the last id before it.

    The same seed gives the same stream, so that a longer run reads on where a shorter one stopped.
    """
    import torch

    from llama3_lab.world.corpus import documents

    needed, stream = n * row + 1, list[int]()
    texts = documents(needed, seed)  # more than enough: a document has many tokens
    tokenizer = _tokenizer()
    begin, end = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS[:2])
    while len(stream) < needed:
        read = tokenizer.encode_batch(list(islice(texts, 1000)), add_special_tokens=False)
        stream += [i for document in read for i in (begin, *document.ids, end)]
    return torch.tensor(stream[:needed]).unfold(0, row + 1, row)


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(places.project() / places.BASE_MODEL / "tokenizer.json"))
