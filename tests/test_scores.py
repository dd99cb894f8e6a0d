"""score(): rewards in the order of the rows, whatever the batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama3_lab.models import RewardModel, encode_answers, encode_prompt, new_reward_model
from llama3_lab.pipeline.scores import score
from llama3_lab.profiles import Model
from llama3_lab.records import Check, Prompt

BASE = Path(__file__).parents[1] / "data" / "tiny_base"


def prompt(text: str) -> Prompt:
    return Prompt(text[:4].strip(), "conversation", text, "train", 1, Check("rubric", "x"))


ROWS = [
    (prompt("Tell me about the fox, please, and about where it lives."), "The fox is red. It eats mice."),
    (prompt("Hi."), "Hello!"),
    (prompt("Hi."), "Hello! What a long answer this is, with many words in it."),
    (prompt("Name an animal."), "A fox."),
    (prompt("Hi."), "Hello!"),
]


@pytest.fixture
def reward_model() -> RewardModel:
    made = new_reward_model(BASE, Model(threads=1), seed=0)
    made.model.score.weight.data *= 100  # rewards that differ visibly
    return made


def by_hand(rm: RewardModel, p: Prompt, answer: str) -> float:
    """The head on the last token's hidden state, one row at a time, without pads."""
    ids = encode_prompt(rm.tokenizer, p.text) + encode_answers(rm.tokenizer, [answer])[0]
    with torch.no_grad():
        return rm.model.score(rm.model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item()


@pytest.mark.parametrize("batch_size", [64, 2, 1])
def test_scores_are_the_heads_at_the_last_token_in_the_order_of_the_rows(reward_model, batch_size):
    expected = [by_hand(reward_model, *row) for row in ROWS]
    assert len({round(x, 3) for x in expected}) == 4  # rows 1 and 4 are the same
    assert score(reward_model, ROWS, batch_size) == pytest.approx(expected, abs=1e-4)
    assert score(reward_model, ROWS[::-1], batch_size) == pytest.approx(expected[::-1], abs=1e-4)


def test_the_end_token_is_read(reward_model):
    tok = reward_model.tokenizer
    ids = encode_prompt(tok, "Hi.") + tok("Hello!", add_special_tokens=False).input_ids
    with torch.no_grad():
        without = reward_model.model(torch.tensor([ids])).logits.item()
    assert score(reward_model, [ROWS[1]])[0] != pytest.approx(without, abs=1e-3)


def test_no_rows_no_scores(reward_model):
    assert score(reward_model, []) == []


def test_an_empty_answer_has_a_finite_score(reward_model):
    assert score(reward_model, [(prompt("Hi."), "")]) == pytest.approx([by_hand(reward_model, prompt("Hi."), "")])


def test_a_reward_that_is_not_finite_names_the_prompt(reward_model):
    reward_model.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="Name: reward is nan") as error:
        score(reward_model, [ROWS[3]])
    assert "\n" not in str(error.value)
