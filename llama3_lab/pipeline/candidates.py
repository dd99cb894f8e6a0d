"""sample(): prompts → candidates, K to a prompt, each prompt read once for all its K answers.

The K answers share their prompt's keys and values in memory: each layer multiplies all K queries
with one copy of the prompt (the paper shares prompt pages among the K outputs in the same spirit,
§4.2.2). A prompt leaves the batch when its K answers have ended.

Shapes: n prompts, K answers each, P prompt tokens, t answer tokens so far, V vocabulary, H heads,
h key/value heads, g = H / h, d head width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

from llama3_lab.models import Policy, Style, encode_prompt, stop_ids
from llama3_lab.profiles import Sampling
from llama3_lab.progress import bar
from llama3_lab.records import Candidate, Prompt


@dataclass
class _SharedCache:
    """Keys and values: of each prompt once, and of the answers, written into room set aside.

    prompt[layer]: two tensors (n, h, P, d). answers[layer]: two tensors (n, K, h, T, d), T the cap.
    pad_nP: added to the prompt's scores; −inf on pads. t: answer tokens written so far.
    """

    prompt: list[tuple[Tensor, Tensor]]
    answers: list[tuple[Tensor, Tensor]]
    pad_nP: Tensor
    t: int = 0

    def update(self, key: Tensor, value: Tensor, layer: int, *more: Any) -> tuple[Tensor, Tensor]:
        """Write one new position (n·K, h, 1, d); return the layer's answers so far (n, K, h, t, d)."""
        keys, values = self.answers[layer]
        n, k, h, _cap, d = keys.shape
        keys[:, :, :, self.t] = key.view(n, k, h, d)
        values[:, :, :, self.t] = value.view(n, k, h, d)
        return keys[:, :, :, : self.t + 1], values[:, :, :, : self.t + 1]

    def keep(self, rows: Tensor) -> None:
        """Keep only the prompts at `rows`."""
        self.prompt = [(k[rows], v[rows]) for k, v in self.prompt]
        self.answers = [(self._kept(k, rows), self._kept(v, rows)) for k, v in self.answers]
        self.pad_nP = self.pad_nP[rows]

    def _kept(self, old: Tensor, rows: Tensor) -> Tensor:
        new = old.new_empty((int(rows.sum()), *old.shape[1:]))
        new[:, :, :, : self.t + 1] = old[:, :, :, : self.t + 1][rows]  # what is not written yet is not copied
        return new


def shared_prompt_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    """Attention of one new position over a shared prompt and over each answer's own past."""
    shared: _SharedCache = more["shared"]
    kp, vp = shared.prompt[module.layer_idx]
    n, k, h, t, d = key.shape
    g = query.shape[1] // h
    q = query.view(n, k, h, g, d) * scaling
    q_all = q.permute(0, 2, 1, 3, 4).reshape(n, h, k * g, d)  # all K queries of a prompt side by side
    to_prompt = (q_all @ kp.transpose(-1, -2) + shared.pad_nP[:, None, None]).view(n, h, k, g, -1)
    to_answer = (q @ key.transpose(-1, -2)).permute(0, 2, 1, 3, 4)
    weights = torch.cat([to_prompt, to_answer], -1).softmax(-1)
    w_prompt, w_answer = weights.split([kp.shape[2], t], -1)
    out = (w_prompt.reshape(n, h, k * g, -1) @ vp).view(n, h, k, g, d).permute(0, 2, 1, 3, 4)
    out = out + w_answer.permute(0, 2, 1, 3, 4) @ value
    return out.reshape(n * k, 1, h * g, d), None


AttentionInterface.register("shared_prompt", shared_prompt_attention)


@contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def sample(policy: Policy, prompts: Sequence[Prompt], how: Sampling, style: Style = "chat") -> list[Candidate]:
    """Return `how.k` candidates a prompt, prompt by prompt, in the order of `prompts`.

    temperature 0 is greedy (then k should be 1). The random numbers belong to (seed, prompt id,
    answer, position): neither the batch size nor the other prompts change an answer, rounding apart.

    Raises:
        ValueError: if k, the cap or the temperature is out of range.
    """
    if how.k < 1 or how.max_new_tokens < 1 or how.temperature < 0:
        raise ValueError(f"sampling: k={how.k}, max_new_tokens={how.max_new_tokens}, temperature={how.temperature}")
    encoded = [encode_prompt(policy.tokenizer, p.text, style) for p in prompts]
    # Answers of one skill are of like length, so that a batch's rows end together.
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].skill, len(encoded[i]), i))
    stops = torch.tensor(stop_ids(policy.tokenizer, style))
    found: dict[int, list[Candidate]] = {}
    progress = bar(len(prompts) * how.k, f"{policy.name}: answers", "answer")
    for start in range(0, len(order), how.batch_prompts):
        rows = order[start : start + how.batch_prompts]
        tokens, logprobs = _answer([encoded[i] for i in rows], [prompts[i].id for i in rows], policy, how, stops)
        for j, i in enumerate(rows):
            found[i] = [_candidate(prompts[i], tokens[j, k], logprobs[j, k], policy, how, stops) for k in range(how.k)]
        progress.update(len(rows) * how.k)
    progress.close()
    return [c for i in range(len(prompts)) for c in found[i]]


def _candidate(
    prompt: Prompt, tokens_T: Tensor, logprobs_T: Tensor, policy: Policy, how: Sampling, stops: Tensor
) -> Candidate:
    ended = torch.isin(tokens_T, stops).nonzero()
    n = int(ended[0]) + 1 if len(ended) else len(tokens_T)
    text = policy.tokenizer.decode(tokens_T[: n - bool(len(ended))], skip_special_tokens=False)
    # Ended by another stop token (a base's <|end_of_text|> in a chat) is not finished: not well-formed.
    finished = bool(len(ended)) and int(tokens_T[n - 1]) == int(stops[0])
    return Candidate(prompt, text, policy.name, how.temperature, how.seed, n, finished, float(logprobs_T[:n].sum()))


def _uniforms(ids: Sequence[str], how: Sampling) -> Tensor:
    """Return (n, K, T) uniform numbers, each prompt's from a generator of its own."""
    out = []
    for name in ids:
        digest = hashlib.sha256(f"{how.seed}\x1f{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        out.append(torch.rand(how.k, how.max_new_tokens, generator=generator))
    return torch.stack(out)


@torch.inference_mode()
def _answer(
    encoded: list[list[int]], ids: list[str], policy: Policy, how: Sampling, stops: Tensor
) -> tuple[Tensor, Tensor]:
    """Return tokens and log-probabilities, both (n, K, T), on the CPU; after an answer's end they mean nothing."""
    model, n, cap, at = policy.model, len(encoded), how.max_new_tokens, policy.model.device
    logits_nV, shared, next_n = _read(model, encoded, how)
    stops = stops.to(at)
    tokens = torch.full((n, how.k, cap), int(stops[0]), device=at)
    logprobs = torch.zeros(n, how.k, cap, device=at)
    uniforms, alive = _uniforms(ids, how).to(at), torch.arange(n, device=at)
    done_nK = torch.zeros(n, how.k, dtype=torch.bool, device=at)
    logits = logits_nV[:, None].expand(n, how.k, -1)
    with _attention(model, "shared_prompt"):
        for t in range(cap):
            chosen, lp = _choose(logits, uniforms[alive, :, t], how.temperature)
            tokens[alive, :, t], logprobs[alive, :, t] = chosen, lp
            done_nK |= torch.isin(chosen, stops)
            left = ~done_nK.all(1)
            if t == cap - 1 or not left.any():
                break
            if left.float().mean() < 0.85:
                shared.keep(left)
                alive, done_nK, chosen, next_n = alive[left], done_nK[left], chosen[left], next_n[left]
            shared.t = t
            positions = (next_n + t)[:, None].expand(-1, how.k).reshape(-1, 1)
            hidden = model.model(chosen.reshape(-1, 1), position_ids=positions, past_key_values=shared,
                                 use_cache=True, shared=shared).last_hidden_state  # fmt: skip
            logits = model.lm_head(hidden[:, -1]).view(len(alive), how.k, -1)
    return tokens.cpu(), logprobs.cpu()


def _read(model: Any, encoded: list[list[int]], how: Sampling) -> tuple[Tensor, _SharedCache, Tensor]:
    """Read the prompts once; return next-token logits (n, V), the shared cache, and lengths (n,)."""
    at = model.device
    lengths = torch.tensor([len(e) for e in encoded], device=at)
    width = int(lengths.max())
    # Pads come first, so that the last column is each prompt's last token.
    ids = torch.tensor([[0] * (width - len(e)) + e for e in encoded], device=at)
    mask = torch.arange(width, device=at)[None] >= (width - lengths)[:, None]
    cache = DynamicCache(config=model.config)
    padded = None if mask.all() else mask.long()
    out = model.model(ids, attention_mask=padded, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                      past_key_values=cache, use_cache=True)  # fmt: skip
    prompt = [(layer.keys, layer.values) for layer in cache.layers]
    n, h, _, d = prompt[0][0].shape
    room = (n, how.k, h, how.max_new_tokens, d)
    answers = [(k.new_empty(room), k.new_empty(room)) for k, _ in prompt]
    pad = torch.zeros(mask.shape, dtype=prompt[0][0].dtype, device=at).masked_fill(~mask, float("-inf"))
    return model.lm_head(out.last_hidden_state[:, -1]), _SharedCache(prompt, answers, pad), lengths


def _choose(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return chosen tokens and their log-probabilities at temperature 1, both (n, K).

    Sampling inverts the cumulative distribution: one uniform number an answer, no top-k, no top-p.
    """
    logps = logits.float().log_softmax(-1)
    if temperature == 0:
        chosen = logps.argmax(-1)
    else:
        tempered = logps if temperature == 1 else (logps / temperature).log_softmax(-1)
        cumulative = tempered.exp().cumsum(-1)
        target = (uniform * cumulative[..., -1])[..., None]
        chosen = torch.searchsorted(cumulative, target, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)
    return chosen, logps.gather(-1, chosen[..., None])[..., 0]
