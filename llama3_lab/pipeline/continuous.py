"""sample_continuous(): prompts → candidates by transformers' continuous batching, the records of candidates.sample.

An answer that has ended gives its place in the batch to the next at once, so that no row waits for a longer one.

What K answers to a prompt share (transformers 5.23): all of the prompt but its last token is read once; then the
request is forked. Its full blocks of `PAGE` tokens are held once for all K answers, counted by references; the last
block, which is not full, is copied K times. Texts that begin alike, prompts or answers, share their full blocks too,
while these are held. Not shared: reading them back. In each layer a step gathers every answer's keys and values into
one tensor, a shared prompt once an answer, and that is also how a step's size is reckoned.

One sort of prompt is not forked, but asked for K times: of a length that leaves one token after full blocks. Where its
blocks are held already, 5.23 makes an empty batch of it and stops. Its K answers share its blocks from their first
step on, yet each has read it.

Reproducible: on a CPU the same call (policy, prompts in their order, settings) gives the same candidates, for all
requests stand in line before the first step. Not: the numbers of candidates.sample under the same seed; the same
answer in other company, because random numbers are drawn in the order of the batch; bit-equal answers on a GPU.

Without flash attention a step multiplies every answer's query with the keys of all, and masks all but its own: few
are in flight on a CPU. The sizes on a GPU are reckoned, not measured.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import torch

from llama3_lab.models import Policy, Style, encode_prompt, quiet, stop_ids, token_logprobs
from llama3_lab.profiles import Sampling
from llama3_lab.progress import bar
from llama3_lab.records import Candidate, Prompt

PAGE = 16  # tokens to a block: small, so that most of a short prompt lies in full blocks, which are shared
CPU_ANSWERS = 32  # in one step on a CPU at most; answers a second are level from 32 to 64, and fall beyond
MASKED_TOKENS, FLASH_TOKENS = 512, 8192  # in one step at most, where attention needs a mask and where it does not
MARGIN = 0.15  # of the blocks, kept for answers that have begun: with fewer free no prompt is read
GPU_SHARE = 0.8  # of the free memory that may be planned with


@dataclass(frozen=True)
class Memory:
    """Bytes: free ones, and what each token in the cache, answer in a step, token in a step, and mask entry takes."""

    free: float
    per_held: int
    per_answer: int
    per_token: int
    per_mask_entry: int

    def needed(self, sizes: Sizes) -> int:
        """Return the bytes of a cache of these sizes, and of the largest step on it."""
        held = sizes.blocks * PAGE
        mask = sizes.batch_tokens * (held + sizes.batch_tokens) * self.per_mask_entry
        return held * self.per_held + sizes.answers * self.per_answer + sizes.batch_tokens * self.per_token + mask


@dataclass(frozen=True)
class Sizes:
    """answers: in one step at most. batch_tokens: read in one step at most. blocks: of PAGE tokens, in the cache."""

    answers: int
    batch_tokens: int
    blocks: int


@dataclass(frozen=True)
class _Answer:
    ids: list[int]  # the end token included
    logprob: float  # of the tokens as they were drawn, hence at the temperature of the call


def sample_continuous(
    policy: Policy, prompts: Sequence[Prompt], how: Sampling, style: Style = "chat"
) -> list[Candidate]:
    """Return `how.k` candidates a prompt, prompt by prompt, in the order of `prompts`, as candidates.sample does.

    temperature 0 is greedy; above 0 nothing is cut off (no top-k, no top-p). `how.batch_prompts` times k answers are
    in flight at most, fewer where memory is short or the device is a CPU. Attention and the caller's random numbers
    are as before afterwards, after an error too.

    Raises:
        ValueError: if k, the cap or the temperature is out of range, or not even one answer fits into the memory.
        RuntimeError: if generation stops early, e.g. for memory; nothing is returned then.
    """
    if how.k < 1 or how.max_new_tokens < 1 or how.temperature < 0:
        raise ValueError(f"sampling: k={how.k}, max_new_tokens={how.max_new_tokens}, temperature={how.temperature}")
    if not prompts:
        return []
    encoded = [encode_prompt(policy.tokenizer, p.text, style) for p in prompts]
    stops = stop_ids(policy.tokenizer, style)
    sizes = choose_sizes([len(e) for e in encoded], how, free_memory(policy.model))
    seed = hashlib.sha256("\x1f".join([str(how.seed), *(p.id for p in prompts)]).encode()).digest()
    with _managed(policy.model, _settings(policy, how, stops), _batching(sizes, int.from_bytes(seed[:7], "big"))) as m:
        found = _collect(m, encoded, how, policy.name)
    if how.temperature in (0.0, 1.0):
        logprobs = [a.logprob for a in found]
    else:
        owners = [e for e in encoded for _ in range(how.k)]
        rows = [(owner, a.ids) for owner, a in zip(owners, found, strict=True)]
        logprobs = token_logprobs(policy, rows, (), max(1, min(64, 8192 // max(len(p) + len(a) for p, a in rows))))
    asked = [p for p in prompts for _ in range(how.k)]
    return [
        _candidate(p, a.ids, lp, policy, how, stops) for p, a, lp in zip(asked, found, logprobs, strict=True)
    ]  # fmt: skip


def _candidate(
    prompt: Prompt, ids: list[int], logprob: float, policy: Policy, how: Sampling, stops: list[int]
) -> Candidate:
    text = policy.tokenizer.decode(ids[: len(ids) - (ids[-1] in stops)], skip_special_tokens=False)
    return Candidate(prompt, text, policy.name, how.temperature, how.seed, len(ids), ids[-1] == stops[0],
                     min(0.0, logprob))  # fmt: skip


def free_memory(model: Any) -> Memory:
    """Return what the model's device has free (on a CPU no bound is set: sizes are small) and what a step takes."""
    c, item = model.config, model.dtype.itemsize
    d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    masked = needs_mask(model)
    held = 2 * c.num_hidden_layers * c.num_key_value_heads * d * item
    # One layer's keys and values, gathered; without flash attention, once for each of its query heads besides.
    gathered = 2 * (c.num_key_value_heads + masked * c.num_attention_heads) * d * item
    logits = c.vocab_size * (item + 3 * 4) + c.hidden_size * item  # as the model gives them; thrice as float32
    activations = 2 * (2 * c.hidden_size + c.num_attention_heads * d + c.intermediate_size) * item
    free = inf
    if model.device.type == "cuda":
        unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        free = GPU_SHARE * (torch.cuda.mem_get_info(model.device)[0] + unused)
    return Memory(free, held + gathered + 8, logits, activations, masked * item)


def needs_mask(model: Any) -> bool:
    """Return whether the model's attention is one that continuous batching must give a mask: sdpa or eager."""
    return not str(model.config._attn_implementation).startswith("flash_attention")


def choose_sizes(lengths: Sequence[int], how: Sampling, memory: Memory) -> Sizes:
    """Return the sizes for prompts of these many tokens: as many answers in flight as asked for, or as fit.

    Raises:
        ValueError: if the memory does not hold one answer at its longest.
    """
    most = min(how.batch_prompts * how.k, len(lengths) * how.k)
    if memory.free == inf:
        most = min(most, CPU_ANSWERS)
    while True:
        sizes = _sizes_for(most, lengths, how, memory.per_mask_entry > 0)
        if memory.needed(sizes) <= memory.free:
            return sizes
        if most == 1:
            raise ValueError(
                f"sampling: answers of {how.max_new_tokens} tokens to prompts of up to {max(lengths)} need "
                f"{memory.needed(sizes) / 2**30:.1f} GiB, and {memory.free / 2**30:.1f} may be used; "
                "lower sampling.max_new_tokens, or ask for shorter prompts"
            )
        most = max(1, most * 3 // 4)


def _sizes_for(answers: int, lengths: Sequence[int], how: Sampling, masked: bool) -> Sizes:
    """Return the sizes for so many answers in a step.

    A step reads about as many prompts as those answers belong to. A prompt read becomes K answers at once, so that
    more have begun than are in a step; each takes its cap, at worst. Too few blocks cost time only: an answer gives
    its own back, and is read again later.
    """
    at_once = ceil(answers / how.k)
    mean = ceil(sum(lengths) / len(lengths))
    tokens = max(answers, min(at_once * mean, MASKED_TOKENS if masked else FLASH_TOKENS))
    begun = min(len(lengths) * how.k, answers + how.k * ceil(tokens / mean))
    prompts = how.k * sum(sorted(lengths)[-at_once:])  # in a step's read a prompt counts once an answer
    held = begun * (how.max_new_tokens + PAGE) + prompts
    return Sizes(answers, tokens, ceil(held / PAGE / (1 - MARGIN)))


def _settings(policy: Policy, how: Sampling, stops: list[int]) -> Any:
    """Return the generation settings, every one of them said: nothing is taken from the model's own file."""
    from transformers import GenerationConfig

    drawn = {"do_sample": True, "temperature": float(how.temperature), "top_k": 0, "top_p": 1.0}
    with quiet():
        return GenerationConfig(
            **(drawn if how.temperature > 0 else {"do_sample": False}), max_new_tokens=how.max_new_tokens,
            eos_token_id=stops, pad_token_id=policy.tokenizer.pad_token_id,
        )  # fmt: skip


def _batching(sizes: Sizes, seed: int) -> Any:
    """Return the batching settings: one step after the other, no graphs, no compiling, attention left as it is."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    return ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=sizes.blocks, max_batch_tokens=sizes.batch_tokens,
        max_requests_per_batch=sizes.answers, safety_margin=MARGIN, max_memory_percent=0.95, allow_block_sharing=True,
        return_logprobs=True, seed=seed, auto_switch_to_flash=False, use_async_batching=False, use_cuda_graph=False,
        max_blocks_per_request=0,  # flash attention's own paged read wants blocks of 256 tokens: few prompts fill one
    )  # fmt: skip


@contextmanager
def _managed(model: Any, settings: Any, batching: Any) -> Iterator[Any]:
    """Yield a manager that has not started; afterwards its thread has ended, and the model is as before."""
    before, devices = model.config._attn_implementation, [model.device] if model.device.type == "cuda" else []
    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # what goes wrong is raised here, in one line
    spare = not gc.get_freeze_count()
    if spare:
        gc.freeze()  # the manager collects garbage twice when it stops; what was there before it need not be searched
    try:
        with quiet(), torch.random.fork_rng(devices):
            manager = model.init_continuous_batching(settings, batching)
            try:
                yield manager
            finally:
                manager.stop(block=True, hard_stop=True)
                manager.destroy()
    finally:
        if spare:
            gc.unfreeze()
        logger.setLevel(level)
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def _collect(manager: Any, encoded: Sequence[list[int]], how: Sampling, name: str) -> list[_Answer]:
    """Put all requests in line, start, and return the answers, K a prompt in the order of the prompts."""
    named: list[list[str]] = [[] for _ in encoded]
    for i in sorted(range(len(encoded)), key=lambda i: encoded[i]):  # neighbours begin alike, and share blocks
        forked = len(encoded[i]) % PAGE != 1
        manager.num_return_sequences = how.k if forked else 1
        for j in range(1 if forked else how.k):
            request = f"{i}.{j}"
            manager.add_request(encoded[i], request)
            named[i].append(request)
        named[i].extend(f"{request}__child#{c}" for c in range(how.k - 1 if forked else 0))
    found: dict[str, _Answer] = {}
    total = len(encoded) * how.k
    manager.start()
    with bar(total, f"{name}: answers", "answer") as progress:
        while len(found) < total:
            out = manager.get_result(timeout=1.0)
            cause = manager.background_thread_status.fatal_error
            if out is None and cause is None and manager.is_running():
                continue
            if out is None or out.error:
                why = " ".join(str((out and out.error) or cause or "its thread ended").split())[:200]
                raise RuntimeError(
                    f"{name}: continuous batching stopped after {len(found)} of {total} answers "
                    f"({why}); lower sampling.batch_prompts, or set sampling.by=loop"
                ) from cause
            found[out.request_id] = _Answer(list(out.generated_tokens), sum(out.logprobs))
            progress.update(1)
    return [found[request] for names in named for request in names]
