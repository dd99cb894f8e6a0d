"""The committed base: what it is, that it is intact, and that it is useful and imperfect as asked."""

import hashlib
import json
from pathlib import Path

import pytest

from llama3_lab.records import CHECKABLE, Evaluation
from llama3_lab.store import from_json
from llama3_lab.tokenizer import ROLE_WORDS, SPECIAL_TOKENS

BASE = Path(__file__).parents[1] / "data" / "tiny_base"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


def test_it_is_a_llama_in_kind_and_small():
    config = json.loads((BASE / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]  # grouped-query attention
    assert config["rope_parameters"]["rope_theta"] == 500_000
    assert config["hidden_act"] == "silu" and not config["tie_word_embeddings"]
    assert json.loads((BASE / "settings.json").read_text())["parameters"] <= 2_000_000
    assert sum(f.stat().st_size for f in BASE.iterdir()) <= 8_000_000


def test_every_file_has_its_card():
    cards = (BASE.parent / "CARDS.md").read_text()
    files = [f for f in BASE.parent.rglob("*") if f.is_file() and f.name != "CARDS.md"]
    assert len(files) >= 9
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"{file.relative_to(BASE.parent)} | {file.stat().st_size} | {digest}" in cards


@pytest.mark.parametrize("skill", CHECKABLE)
def test_it_is_useful_and_imperfect(skill):
    found = from_json(Evaluation, json.loads((BASE / "evaluation.json").read_text()))
    (score,) = [s for s in found.scores if s.skill == skill and s.level == 0]
    assert (found.split, found.samples) == ("test", 16)
    assert 0.15 <= score.sampled.value <= 0.65
    assert 0.30 <= score.greedy.value <= 0.85
    assert score.at_k.value >= 0.85


def test_special_tokens_stand_last_in_llamas_order(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    # Llama 3.1's own ids, from its first special id 128000 on.
    offset = {t: 128_000 + i for i, t in enumerate(SPECIAL_TOKENS)}
    assert offset["<|begin_of_text|>"] == 128_000 and offset["<|end_of_text|>"] == 128_001
    assert offset["<|start_header_id|>"] == 128_006 and offset["<|end_header_id|>"] == 128_007
    assert offset["<|eot_id|>"] == 128_009
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>" != tokenizer.eos_token


def test_the_chat_template_renders_as_published(tokenizer):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi. "},
            {"role": "assistant", "content": "Sure!"}]  # fmt: skip
    assert tokenizer.apply_chat_template(talk, tokenize=False) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSure!<|eot_id|>"
    )
    asked = tokenizer.apply_chat_template(talk[:2], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


def test_role_words_and_digits_are_single_tokens_and_bytes_survive(tokenizer):
    for word in ROLE_WORDS:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1
    assert len(tokenizer("2024", add_special_tokens=False).input_ids) == 4
    strange = "naïve – 😀 \t x\r\n"
    assert tokenizer.decode(tokenizer(strange, add_special_tokens=False).input_ids) == strange
