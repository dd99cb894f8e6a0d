"""Continuous batching: the loop's records and distribution, K answers over one prompt, and a model left as it was."""

from __future__ import annotations

import gc
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_effectsize
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import cache as paged

from llama3_lab.models import encode_prompt, load_policy, token_logprobs
from llama3_lab.pipeline import continuous
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.continuous import PAGE, Sizes, choose_sizes, free_memory, sample_continuous
from llama3_lab.pipeline.prompts import held_out
from llama3_lab.pipeline.verdicts import verify
from llama3_lab.profiles import EIGHT_B, TINY, Sampling

PROMPTS = held_out(6, "validation")
GREEDY = Sampling(k=1, temperature=0.0, max_new_tokens=64)


@pytest.fixture(scope="module")
def policy():
    return load_policy("data/tiny_base", replace(TINY.model, threads=1), "base")


def logits(policy) -> torch.Tensor:
    ids = torch.tensor([encode_prompt(policy.tokenizer, PROMPTS[0].text, "base")])
    with torch.inference_mode():
        return policy.model(ids).logits


def same(found, own) -> None:
    """All fields are equal; the log-probability within rounding."""
    assert [replace(c, logprob=0.0) for c in found] == [replace(c, logprob=0.0) for c in own]
    assert max(abs(a.logprob - b.logprob) for a, b in zip(found, own, strict=True)) < 1e-3


@contextmanager
def tokens_read(policy) -> Iterator[list[int]]:
    """Gather how many tokens go through the model, a step at a time."""
    seen: list[int] = []
    hook = policy.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


# -- the same records


@pytest.mark.parametrize("style", ["base", "chat"])
def test_greedy_answers_are_the_loops(policy, style):
    """In a chat the base ends with its own token, so that answers end without being finished."""
    assert len(PROMPTS) == 24
    found = sample_continuous(policy, PROMPTS, GREEDY, style)
    same(found, sample(policy, PROMPTS, GREEDY, style))
    ended = [c.n_tokens < GREEDY.max_new_tokens for c in found]
    assert any(ended) and (style == "chat" or any(c.finished for c in found))


def test_order_ids_and_seed(policy):
    how = Sampling(k=3, max_new_tokens=16)
    found = sample_continuous(policy, PROMPTS[::2], how, "base")
    assert [c.prompt for c in found] == [p for p in PROMPTS[::2] for _ in range(3)]
    assert {(c.policy, c.temperature, c.seed) for c in found} == {("base", 1.0, 0)}
    assert all(c.finished or c.n_tokens == 16 for c in found)
    assert found == sample_continuous(policy, PROMPTS[::2], how, "base")
    other = sample_continuous(policy, PROMPTS[::2], replace(how, seed=1), "base")
    assert [c.text for c in found] != [c.text for c in other]
    assert sample_continuous(policy, [], how, "base") == []


def test_each_answer_stands_at_its_own_prompt(policy):
    """An answer filed under another's prompt would be far less likely there."""
    found = sample_continuous(policy, PROMPTS, Sampling(k=4, max_new_tokens=48), "base")
    ended = [c for c in found if c.finished]
    rows = [(encode_prompt(policy.tokenizer, c.prompt.text, "base"),
             [*policy.tokenizer(c.text, add_special_tokens=False).input_ids, policy.tokenizer.eos_token_id])
            for c in ended]  # fmt: skip
    own = [(c, lp) for c, row, lp in zip(ended, rows, token_logprobs(policy, rows), strict=True)
           if len(row[1]) == c.n_tokens]  # fmt: skip
    assert len(own) > len(found) / 2
    assert all(c.logprob == pytest.approx(lp, abs=2e-2) for c, lp in own)


def test_a_log_probability_is_that_at_temperature_one(policy):
    """The manager tells those of the tempered distribution; a cold one makes its answers look likelier."""
    how = Sampling(k=2, temperature=0.5, max_new_tokens=48)
    for c in sample_continuous(policy, PROMPTS[:8], how, "base"):
        ids = list(policy.tokenizer(c.text, add_special_tokens=False).input_ids)
        ids += [policy.tokenizer.eos_token_id] * c.finished
        if len(ids) == c.n_tokens:
            row = (encode_prompt(policy.tokenizer, c.prompt.text, "base"), ids)
            assert c.logprob == pytest.approx(token_logprobs(policy, [row])[0], abs=1e-3)


def test_a_cap_of_one_and_one_answer_to_one_prompt(policy):
    how = replace(GREEDY, max_new_tokens=1)
    found = sample_continuous(policy, PROMPTS, replace(how, k=2), "base")
    same(found[::2], sample(policy, PROMPTS, how, "base"))
    same(found[::2], found[1::2])
    assert {c.n_tokens for c in found} == {1}
    same(sample_continuous(policy, PROMPTS[:1], GREEDY, "base"), sample(policy, PROMPTS[:1], GREEDY, "base"))


def test_prompts_of_very_different_lengths(policy):
    """The longest is read in several steps, for a step takes fewer tokens than it has."""
    texts = ["Hi", PROMPTS[0].text, " ".join(p.text for p in PROMPTS[:15]), " ".join(p.text for p in PROMPTS[:3])]
    prompts = [replace(PROMPTS[0], id=f"p{i}", text=t) for i, t in enumerate(texts)]
    lengths = [len(encode_prompt(policy.tokenizer, t, "base")) for t in texts]
    how = replace(GREEDY, batch_prompts=1)
    assert choose_sizes(lengths, how, free_memory(policy.model)).batch_tokens < max(lengths) > 20 * min(lengths)
    same(sample_continuous(policy, prompts, how, "base"), sample(policy, prompts, GREEDY, "base"))


# -- the same distribution


def test_the_first_token_is_drawn_from_the_models_distribution(policy):
    """Nothing is cut off: tokens beyond the likeliest 50 and the likeliest 90 % come as often as they should."""
    prompt, n = next(p for p in PROMPTS if p.skill == "conversation"), 1000
    ids = torch.tensor([encode_prompt(policy.tokenizer, prompt.text, "base")])
    for temperature in (1.0, 2.0):
        how = Sampling(k=n, temperature=temperature, max_new_tokens=1)
        counts = Counter(c.text for c in sample_continuous(policy, [prompt], how, "base"))
        with torch.inference_mode():
            p_V = (policy.model(ids).logits[0, -1] / temperature).softmax(-1)
        order = p_V.argsort(descending=True).tolist()
        shares = {policy.tokenizer.decode([t]): float(p_V[t]) for t in order[:3]}
        for text, p in shares.items():
            assert counts[text] / n == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / n)), text
        if temperature == 2.0:
            rare = {policy.tokenizer.decode([t]) for t in order[50:]} - {
                policy.tokenizer.decode([t]) for t in order[:50]
            }
            p = sum(float(p_V[t]) for t in order[50:])
            found = sum(counts[t] for t in rare) / n
            assert p > 0.05 and found == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / n))


def test_pass_rates_of_both_samplers_agree(policy):
    """The interval, two-sided and of 99 %, would show a real difference of .1 nearly nine times in ten."""
    prompts = [p for p in held_out(10, "validation") if p.skill != "conversation"]
    how = Sampling(k=24)
    passed = [
        sum(v.outcome == "pass" for v in verify(f(policy, prompts, how, "base"))) for f in (sample_continuous, sample)
    ]
    n, alpha = len(prompts) * how.k, 0.01
    rate = sum(passed) / 2 / n
    effect = proportion_effectsize(rate + 0.05, rate - 0.05)
    assert NormalIndPower().power(effect, n, alpha) > 0.85
    low, high = confint_proportions_2indep(passed[0], n, passed[1], n, method="newcomb", compare="diff", alpha=alpha)
    assert low < 0 < high and high - low < 0.14


def test_k_answers_to_a_prompt_differ(policy):
    found = sample_continuous(policy, PROMPTS, Sampling(k=4, temperature=1.5, max_new_tokens=16), "base")
    several = [len({c.text for c in found[i : i + 4]}) > 1 for i in range(0, len(found), 4)]
    assert sum(several) > 0.8 * len(several)


# -- what is shared


def test_a_prompt_is_read_once_for_its_answers_and_its_full_blocks_are_held_once(policy, monkeypatch):
    text = " ".join(p.text for p in PROMPTS[:3])
    prompt = replace(PROMPTS[0], text=text)
    length = len(encode_prompt(policy.tokenizer, text, "base"))
    assert length % PAGE > 1 and length > 2 * PAGE
    tables: list[list[list[int]]] = []
    fork = paged.PagedAttentionCache.prepare_fork_request

    def seen(self: Any, state: Any, ids: list[str], copies: Any) -> list[str]:
        forked = fork(self, state, ids, copies)
        blocks = self.cache_allocators["full_attention"].block_table
        tables.append([list(blocks[i]) for i in (state.request_id, *forked)])
        return forked

    monkeypatch.setattr(paged.PagedAttentionCache, "prepare_fork_request", seen)
    with tokens_read(policy) as read:
        found = sample_continuous(policy, [prompt], Sampling(k=6, max_new_tokens=20), "base")
    assert sum(read) == length - 1 + sum(c.n_tokens for c in found), "the last token is each answer's own to read"
    (six,) = tables
    full = (length - 1) // PAGE
    assert len(six) == 6 and len({tuple(t[:full]) for t in six}) == 1
    assert len({t[full] for t in six}) == 6, "the block that is not full is copied"


def test_a_prompt_that_leaves_one_token_after_full_blocks_does_not_stop_the_batch(policy):
    """transformers 5.23 forks such a prompt, found in the cache, before any token of it: an empty batch."""
    text, words = "", iter(" ".join(p.text for p in PROMPTS).split())
    while not text or len(encode_prompt(policy.tokenizer, text, "base")) % PAGE != 1:
        text = f"{text} {next(words)}".strip()
    prompts = [replace(PROMPTS[0], id=f"p{i}", text=text) for i in range(5)]
    found = sample_continuous(policy, prompts, replace(GREEDY, k=2, batch_prompts=1), "base")
    own = sample(policy, prompts[:1], GREEDY, "base")
    assert [(c.text, c.n_tokens) for c in found] == [(own[0].text, own[0].n_tokens)] * 10


def test_with_too_few_blocks_answers_wait_and_are_the_same(policy, monkeypatch):
    monkeypatch.setattr(continuous, "choose_sizes", lambda *_: Sizes(answers=8, batch_tokens=32, blocks=9))
    found = sample_continuous(policy, PROMPTS[:12], replace(GREEDY, k=3), "base")
    own = [c for c in sample(policy, PROMPTS[:12], GREEDY, "base") for _ in range(3)]
    same(found, own)


# -- sizes


def eight_billion(attention: str) -> Any:
    """Llama 3.1 8B's shape, in 16 bits, on no device."""
    config = SimpleNamespace(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                             num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                             _attn_implementation=attention)  # fmt: skip
    return SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device("cpu"))


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_sizes_grow_with_the_memory_and_stay_within_it(attention):
    how, lengths = EIGHT_B.sampling, [150 + i % 100 for i in range(2000)]
    memory = free_memory(eight_billion(attention))
    assert memory.per_held >= 2 * 32 * 8 * 128 * 2  # keys and values, 32 layers, 8 heads, 128 wide, 2 bytes
    answers = []
    for gib in (4, 8, 16, 64, 1000):
        sizes = choose_sizes(lengths, how, replace(memory, free=gib * 2**30))
        assert memory.needed(sizes) <= gib * 2**30 and 1 <= sizes.answers <= sizes.batch_tokens
        assert sizes.blocks * PAGE >= sizes.answers * (how.max_new_tokens + max(lengths))
        answers.append(sizes.answers)
    assert answers == sorted(answers) and answers[-1] == how.batch_prompts * how.k > answers[0]
    with pytest.raises(ValueError, match=r"need .* GiB, and 0.1 may be used; lower sampling.max_new_tokens"):
        choose_sizes(lengths, how, replace(memory, free=0.1 * 2**30))


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_transformers_own_reckoning_is_not_above_ours(attention):
    """Else it would refuse, when it makes its cache, sizes that fit by ours."""
    model = eight_billion(attention)
    memory = replace(free_memory(model), free=24 * 2**30)
    sizes = choose_sizes([200] * 500, EIGHT_B.sampling, memory)
    block = 2 * 32 * 8 * 128 * 2 * PAGE
    theirs = paged.PagedAttentionMemoryHandler(
        config=model.config, dtype=torch.bfloat16, bytes_per_sector=block, tokens_per_sector=PAGE,
        bytes_per_block=block, attn_types=["full_attention"], model_supports_logits_to_keep=True,
        cb_config=ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=sizes.blocks, max_batch_tokens=sizes.batch_tokens, max_memory_percent=1.0,
            max_requests_per_batch=sizes.answers, max_blocks_per_request=0, return_logprobs=True),
    )  # fmt: skip
    assert theirs.compute_memory_footprint(sizes.batch_tokens, sizes.blocks) <= memory.needed(sizes) * 1.001


# -- trouble


def test_settings_out_of_range_are_refused(policy):
    for wrong in (Sampling(k=0), Sampling(max_new_tokens=0), Sampling(temperature=-1.0)):
        with pytest.raises(ValueError, match="sampling"):
            sample_continuous(policy, PROMPTS[:1], wrong)
    with pytest.raises(ValueError, match="style"):
        sample_continuous(policy, PROMPTS[:1], Sampling(), "letter")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_model_and_random_numbers_are_as_before_after_success_and_after_failure(policy, monkeypatch, attention):
    model, first = policy.model, policy.model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        before = logits(policy)
        expected = sample(policy, PROMPTS[:4], GREEDY, "base")

        def unchanged() -> None:
            assert gc.get_freeze_count() == frozen
            assert model.config._attn_implementation == attention and not model.training
            assert torch.equal(before, logits(policy))
            assert threading.active_count() == threads, "its thread goes on"

        threads, frozen = threading.active_count(), gc.get_freeze_count()
        torch.manual_seed(7)
        drawn = torch.rand(1)
        torch.manual_seed(7)
        same(sample_continuous(policy, PROMPTS[:4], GREEDY, "base"), expected)
        assert torch.equal(torch.rand(1), drawn)
        unchanged()
        failures = iter([False, False, True])

        def failing(*args: Any, **kwargs: Any) -> Any:
            if next(failures, True):
                raise torch.OutOfMemoryError("out of\nmemory")
            return forward(*args, **kwargs)

        forward = model.forward
        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", failing)
            with pytest.raises(RuntimeError, match=r"stopped after 0 of 8 .*out of memory.*lower") as error:
                sample_continuous(policy, PROMPTS[:4], Sampling(k=2), "base")
        assert "\n" not in str(error.value)
        unchanged()
        with monkeypatch.context() as patch:
            patch.setattr(continuous, "_collect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                sample_continuous(policy, PROMPTS[:4], GREEDY, "base")
        unchanged()
    finally:
        model.set_attn_implementation(first)


def test_an_interrupt_while_answers_come_ends_the_thread_at_once(policy, monkeypatch):
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    threads = threading.active_count()
    monkeypatch.setattr(ContinuousBatchingManager, "get_result", interrupted)
    with tokens_read(policy) as read, pytest.raises(KeyboardInterrupt):
        sample_continuous(policy, PROMPTS, Sampling(k=16), "base")
    assert threading.active_count() == threads and len(read) < 20
    assert policy.model.config._attn_implementation == "sdpa"


def test_attention_that_a_failed_start_left_is_put_back(policy, monkeypatch):
    """The manager changes it before it checks anything."""
    from transformers.generation.continuous_batching import continuous_api

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("no such setting")

    monkeypatch.setattr(continuous_api, "resolve_continuous_batching_config", broken)
    policy.model.set_attn_implementation("eager")
    try:
        with pytest.raises(ValueError, match="no such setting"):
            sample_continuous(policy, PROMPTS[:1], GREEDY, "base")
        assert policy.model.config._attn_implementation == "eager"
    finally:
        policy.model.set_attn_implementation("sdpa")
