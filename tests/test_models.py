"""Loading, the chat template, special rows, log-probabilities. The model is the committed tiny base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from llama3_lab import models
from llama3_lab.models import (
    Policy,
    answer_logprobs,
    encode_answers,
    encode_prompt,
    load_policy,
    load_reward_model,
    lora_config,
    new_reward_model,
    prepare_special_rows,
    stop_ids,
    token_logprobs,
    untrained_ids,
)  # fmt: skip
from llama3_lab.profiles import Lora, Model
from llama3_lab.special_tokens import LOOK_ALIKES

BASE = Path(__file__).parents[1] / "data" / "tiny_base"
SETTINGS = Model(threads=1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(BASE, SETTINGS, "base")


def test_chat_prompt_is_llama_3s_form(policy):
    ids = encode_prompt(policy.tokenizer, "Hello there")
    assert policy.tokenizer.decode(ids) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello there<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_base_prompt_is_the_corpus_form(policy):
    ids = encode_prompt(policy.tokenizer, "Hello there", "base")
    assert ids[0] == policy.tokenizer.bos_token_id and ids.count(ids[0]) == 1
    assert policy.tokenizer.decode(ids[1:]) == "Q:\n\nHello there\n\nA:\n\n"


def test_unknown_style_is_refused(policy):
    with pytest.raises(ValueError, match="style"):
        encode_prompt(policy.tokenizer, "Hello", "poem")


def test_prompt_and_answer_are_the_template_of_both(policy):
    tok = policy.tokenizer
    whole = tok.apply_chat_template(
        [{"role": "user", "content": "7 + 5?"}, {"role": "assistant", "content": "7+5=12\nAnswer: 12"}],
        tokenize=True, return_dict=False)  # fmt: skip
    assert encode_prompt(tok, "7 + 5?") + encode_answers(tok, ["7+5=12\nAnswer: 12"])[0] == whole


def test_stop_ids(policy):
    tok = policy.tokenizer
    assert [tok.convert_ids_to_tokens(i) for i in stop_ids(tok)] == ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"]
    assert stop_ids(tok, "base") == [tok.eos_token_id]


def test_untrained_ids_are_all_special_tokens_but_two(policy):
    tok = policy.tokenizer
    named = {tok.convert_ids_to_tokens(i) for i in untrained_ids(tok)}
    assert "<|eot_id|>" in named and "<|finetune_right_pad_id|>" in named
    assert named | {"<|begin_of_text|>", "<|end_of_text|>"} == set(tok.all_special_tokens)


def test_special_rows_become_look_alikes_and_nothing_else_moves():
    policy = load_policy(BASE, SETTINGS)
    tok, model = policy.tokenizer, policy.model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    prepare_special_rows(model, tok, seed=1)
    rows, head = model.get_input_embeddings().weight, model.lm_head.weight
    for name, likes in LOOK_ALIKES.items():
        i = tok.convert_tokens_to_ids(name)
        for weight, like in zip((rows, head), likes, strict=True):
            j = tok(like, add_special_tokens=False).input_ids[-1]
            apart = (weight[i] - weight[j]).norm() / weight[j].norm()
            assert 0.001 < apart < 0.3  # near its model, but not the same row
    pad = tok.pad_token_id
    assert_close(head[pad], before["lm_head.weight"][pad])  # nobody should say it: stays pushed away
    moved = set(untrained_ids(tok)) | {tok.convert_tokens_to_ids(w) for w in ("user", "assistant")}
    kept = [i for i in range(len(tok)) if i not in moved]
    assert_close(rows[kept], before["model.embed_tokens.weight"][kept])
    assert_close(head[kept], before["lm_head.weight"][kept])
    for n, p in model.named_parameters():
        assert "embed" in n or "lm_head" in n or torch.equal(p, before[n])


def test_prepared_rows_read_the_chat_format_nearly_as_well_as_the_corpus_form():
    rows = [("Ann has 7 apples and gets 5 more. How many apples does Ann have?", "7+5=12\nAnswer: 12")]
    policy = load_policy(BASE, SETTINGS)
    raw, own = answer_logprobs(policy, rows)[0], answer_logprobs(policy, rows, "base")[0]
    prepare_special_rows(policy.model, policy.tokenizer, seed=0)
    prepared = answer_logprobs(policy, rows)[0]
    assert prepared - raw > 0.5 * (own - raw) > 0


def test_role_words_that_the_corpus_held_stay_as_they_are():
    policy = load_policy(BASE, SETTINGS)
    weight, i = policy.model.get_input_embeddings().weight.data, policy.tokenizer.convert_tokens_to_ids("user")
    weight[i] = weight[policy.tokenizer.convert_tokens_to_ids(":")]  # as long as a trained row
    kept = weight[i].clone()
    prepare_special_rows(policy.model, policy.tokenizer, seed=1)
    assert torch.equal(weight[i], kept)


def test_special_rows_belong_to_their_seed():
    made = []
    for seed in (1, 1, 2):
        policy = load_policy(BASE, SETTINGS)
        torch.rand(3)  # what ran before must not matter
        prepare_special_rows(policy.model, policy.tokenizer, seed)
        made.append(policy.model.lm_head.weight.detach())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def by_hand(policy: Policy, prompt: str, answer: str, style: str) -> float:
    tok = policy.tokenizer
    start = encode_prompt(tok, prompt, style)
    ids = [*start, *tok(answer, add_special_tokens=False).input_ids, stop_ids(tok, style)[0]]
    with torch.no_grad():
        logps_TV = policy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logps_TV[t - 1, ids[t]].item() for t in range(len(start), len(ids)))


@pytest.mark.parametrize("style", ["chat", "base"])
def test_answer_logprobs_are_the_sum_over_answer_and_end(policy, style):
    rows = [("What is 7 + 5?", "7+5=12\nAnswer: 12"), ("Name an animal.", "Fox."), ("What is 7 + 5?", "12"),
            ("A longer request, so that the rows need pads.", "x"), ("Name an animal.", "Fox.")]  # fmt: skip
    expected = [by_hand(policy, *row, style) for row in rows]
    for batch_size in (64, 2, 1):
        assert answer_logprobs(policy, rows, style, batch_size) == pytest.approx(expected, abs=1e-3)
    assert expected[1] == pytest.approx(expected[4]) and max(expected) < 0
    assert answer_logprobs(policy, []) == []


def test_ignored_tokens_are_read_but_do_not_count(policy):
    start, answer = encode_prompt(policy.tokenizer, "Hi?"), encode_answers(policy.tokenizer, ["Hello there."])[0]
    whole, without_end, first_only = (
        token_logprobs(policy, [(start, answer)], ignored)[0] for ignored in ((), (answer[-1],), tuple(answer[1:]))
    )
    cost_of_end = token_logprobs(policy, [(start + answer[:-1], answer[-1:])])[0]
    assert whole == pytest.approx(without_end + cost_of_end, abs=1e-3) and cost_of_end < 0
    assert first_only == pytest.approx(token_logprobs(policy, [(start, answer[:1])])[0], abs=1e-3)


def test_an_empty_answer_costs_its_end_token(policy):
    assert answer_logprobs(policy, [("Hi?", "")]) == pytest.approx([by_hand(policy, "Hi?", "", "chat")], abs=1e-3)


def test_names_and_threads():
    policy = load_policy(BASE, SETTINGS)
    assert policy.name == "tiny_base" and not policy.model.training and torch.get_num_threads() == 1


def test_lora_is_on_every_linear_layer_of_the_blocks():
    config = lora_config(Lora(r=4, alpha=8), "CAUSAL_LM", ["embed_tokens"])
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (config.r, config.lora_alpha, config.lora_dropout, config.modules_to_save) == (4, 8, 0.0, ["embed_tokens"])


def test_a_new_reward_head_is_small_and_seeded():
    a, b, c = (new_reward_model(BASE, SETTINGS, seed).model.score.weight for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c) and 0 < a.abs().max() < 0.1


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


@pytest.mark.parametrize("path", ["no/such/folder", "/no/such", "runs", "../nothing/here", "data/no_such"])
def test_a_missing_folder_is_named(path, monkeypatch):
    monkeypatch.chdir(BASE.parents[1])
    with pytest.raises(ValueError, match="no such folder|no config.json") as error:
        load_policy(path, SETTINGS)
    assert path in one_line(error)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json") as error:
        load_policy(tmp_path, SETTINGS)
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize("said", ["403 Client Error", "401 Client Error", "you want a gated repo"])
def test_gated_weights_say_what_to_do(monkeypatch, said):
    import transformers

    def refuse(*_, **__):
        raise OSError("something long\nover lines") from RuntimeError(said)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ValueError, match="licence") as error:
        load_policy("meta-llama/Llama-3.1-8B", SETTINGS)
    text = one_line(error)
    assert "huggingface.co/meta-llama/Llama-3.1-8B" in text and "HF_TOKEN" in text and "data/tiny_base" in text


def test_offline_and_not_here_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="out of reach|not on this machine") as error:
        load_policy("nobody-here/no-such-model-0", SETTINGS)
    one_line(error)


def test_a_policy_is_not_taken_for_a_reward_model():
    with pytest.raises(ValueError, match="not a reward model") as error:
        load_reward_model(BASE, SETTINGS)
    one_line(error)


def test_a_bare_llama_tokenizer_gets_pad_and_template(tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(BASE, copy)
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    tok = load_policy(copy, SETTINGS).tokenizer
    assert tok.pad_token == "<|finetune_right_pad_id|>" and tok.pad_token_id != tok.eos_token_id
    assert encode_prompt(tok, "Hi") == encode_prompt(load_policy(BASE, SETTINGS).tokenizer, "Hi")


def test_quiet_leaves_settings_as_they_were():
    import logging

    logging.getLogger("trl").setLevel(logging.WARNING)
    with models.quiet():
        assert logging.getLogger("trl").level == logging.ERROR
    assert logging.getLogger("trl").level == logging.WARNING
