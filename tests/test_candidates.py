"""The sampler's laws, on the committed base: it draws what the model says, whatever shares its batch."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from llama3_lab.models import answer_logprobs, encode_prompt, load_policy, stop_ids
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.prompts import held_out
from llama3_lab.profiles import TINY, Sampling

BASE = "data/tiny_base"


@pytest.fixture(scope="module")
def policy():
    return load_policy(BASE, replace(TINY.model, threads=1), "base")


@pytest.fixture(scope="module")
def prompts():
    return held_out(6, "validation")


def test_order_number_and_seed(policy, prompts):
    how = Sampling(k=3, max_new_tokens=24)
    first = sample(policy, prompts, how, "base")
    assert [c.prompt.id for c in first] == [p.id for p in prompts for _ in range(3)]
    assert first == sample(policy, prompts, how, "base")
    assert [c.text for c in first] != [c.text for c in sample(policy, prompts, replace(how, seed=1), "base")]
    assert all(c.finished or c.n_tokens == 24 for c in first)


def test_an_answer_does_not_depend_on_its_batch(policy, prompts):
    how = Sampling(k=4, max_new_tokens=48)
    together = sample(policy, prompts, how, "base")
    alone = [c for p in prompts for c in sample(policy, [p], replace(how, batch_prompts=1), "base")]
    assert [c.text for c in together] == [c.text for c in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-3)


def test_greedy_equals_generate(policy, prompts):
    greedy = sample(policy, prompts, Sampling(k=1, temperature=0.0, max_new_tokens=48), "base")
    for c in greedy:
        ids = torch.tensor([encode_prompt(policy.tokenizer, c.prompt.text, "base")])
        out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=48,
                                    eos_token_id=stop_ids(policy.tokenizer, "base"), pad_token_id=0)  # fmt: skip
        new = [t for t in out[0, ids.shape[1] :].tolist() if t not in stop_ids(policy.tokenizer, "base")]
        assert c.text == policy.tokenizer.decode(new)


def test_the_first_token_is_drawn_from_the_models_distribution(policy, prompts):
    how = Sampling(k=2000, max_new_tokens=1)
    prompt = next(p for p in prompts if p.skill == "conversation")
    counts = Counter(c.text for c in sample(policy, [prompt], how, "base"))
    ids = torch.tensor([encode_prompt(policy.tokenizer, prompt.text, "base")])
    with torch.inference_mode():
        p_V = policy.model(ids).logits[0, -1].softmax(-1)
    for token in p_V.topk(3).indices:
        p = float(p_V[token])
        share = counts[policy.tokenizer.decode([token])] / 2000
        assert share == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / 2000))


def test_logprob_is_that_of_the_model(policy, prompts):
    candidates = [c for c in sample(policy, prompts, Sampling(k=2), "base") if c.finished]
    again = answer_logprobs(policy, [(c.prompt.text, c.text) for c in candidates], style="base")
    assert candidates
    for c, lp in zip(candidates, again, strict=True):
        assert c.logprob == pytest.approx(lp, abs=2e-2), c.text


def test_settings_out_of_range_are_refused(policy, prompts):
    for wrong in (Sampling(k=0), Sampling(max_new_tokens=0), Sampling(temperature=-1.0)):
        with pytest.raises(ValueError, match="sampling"):
            sample(policy, prompts[:1], wrong)
