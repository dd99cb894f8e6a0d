"""The losses: hand-worked laws, and equality with TRL's own computation, value and gradient, to 1e-5."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from llama3_lab.models import load_policy, quiet
from llama3_lab.pipeline.losses import dpo_loss, dpo_nll_loss, reward_loss, sequence_logps, sft_loss
from llama3_lab.profiles import Model

LOG2 = math.log(2)
BASE = Path(__file__).parents[1] / "data" / "tiny_base"
VOCAB, PAD, ROWS = 640, 632, 6


def tiny(kind: Any = LlamaForCausalLM, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, num_labels=1, pad_token_id=PAD,
        bos_token_id=628, eos_token_id=629))  # fmt: skip


def random_ids(generator: torch.Generator, low: int, high: int) -> list[int]:
    n = int(torch.randint(low, high, (1,), generator=generator))
    return torch.randint(0, 600, (n,), generator=generator).tolist()


def arguments(out: Path, **more: Any) -> dict[str, Any]:
    return {"output_dir": str(out), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [],
            "disable_tqdm": True, "per_device_train_batch_size": ROWS, **more}  # fmt: skip


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Any, ours: Tensor, theirs: Tensor) -> None:
    """Equal in value and in the gradient of every parameter, and the gradient is not nothing."""
    assert_close(ours, theirs, atol=1e-5, rtol=0)
    mine, other = gradients(model, ours), gradients(model, theirs)
    assert mine.keys() == other.keys() and max(g.abs().max() for g in mine.values()) > 1e-3
    for name in mine:
        assert_close(mine[name], other[name], atol=1e-5, rtol=0, msg=name)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_policy(BASE, Model(threads=1)).tokenizer


@pytest.mark.parametrize("seed", [0, 1])
def test_sft_loss_is_trls(tokenizer, tmp_path, seed):
    g = torch.Generator().manual_seed(seed)
    pairs = [(random_ids(g, 2, 12), random_ids(g, 1, 15)) for _ in range(ROWS)]
    rows = {"input_ids": [p + a for p, a in pairs], "labels": [[-100] * len(p) + a for p, a in pairs]}
    model = tiny(seed=seed)
    with quiet():
        trainer = SFTTrainer(model, SFTConfig(**arguments(tmp_path, dataset_kwargs={"skip_prepare_dataset": True})),
                             train_dataset=Dataset.from_dict(rows), processing_class=tokenizer)  # fmt: skip
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(model.train(), dict(batch))
    ours = sft_loss(model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"])
    assert_same(model, ours, theirs)


@pytest.mark.parametrize("seed", [0, 1])
def test_reward_loss_is_trls(tokenizer, tmp_path, seed):
    g = torch.Generator().manual_seed(seed)
    rows = {k: [random_ids(g, 3, 20) for _ in range(ROWS)] for k in ("chosen_ids", "rejected_ids")}
    model = tiny(LlamaForSequenceClassification, seed)
    with quiet():
        trainer = RewardTrainer(model, RewardConfig(**arguments(tmp_path, max_length=None)),
                                train_dataset=Dataset.from_dict(rows), processing_class=tokenizer)  # fmt: skip
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(model.train(), dict(batch))
    ours = reward_loss(*model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].chunk(2))
    assert_same(model, ours, theirs)


@pytest.mark.parametrize(("seed", "nll_weight"), [(0, 0.0), (1, 0.2), (2, 1.0)])
def test_dpo_loss_is_trls(tokenizer, tmp_path, seed, nll_weight):
    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    g = torch.Generator().manual_seed(seed)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = {k: [random_ids(g, 2, 12) for _ in range(ROWS)] for k in names}
    model, reference = tiny(seed=seed), tiny(seed=seed + 10)
    kinds = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, nll_weight]} if nll_weight else {}
    with quiet():
        trainer = Trainer(model, reference, DPOConfig(**arguments(tmp_path, max_length=None, beta=0.1), **kinds),
                          train_dataset=Dataset.from_dict(rows), processing_class=tokenizer)  # fmt: skip
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(model.train(), dict(batch))
    labels_BT = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    chosen_B, rejected_B = sequence_logps(model(**inputs).logits, labels_BT).chunk(2)
    ref_chosen_B, ref_rejected_B = sequence_logps(reference(**inputs).logits, labels_BT).chunk(2)
    ours = dpo_loss(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=0.1)
    if nll_weight:
        ours = dpo_nll_loss(ours, chosen_B, (labels_BT[:ROWS, 1:] != -100).sum(), nll_weight)
    assert_same(model, ours, theirs)
    assert all(p.grad is None for p in reference.parameters())


def test_zero_margin_costs_log_two():
    lp_B = torch.tensor([-3.0, -5.0])
    assert dpo_loss(lp_B, lp_B, lp_B, lp_B, beta=0.1).item() == pytest.approx(LOG2)
    assert reward_loss(lp_B, lp_B).item() == pytest.approx(LOG2)


def test_a_shift_that_policy_and_reference_share_changes_nothing():
    c, r, rc, rr = torch.tensor([[-3.0, -4.0], [-2.0, -7.0], [-5.0, -3.0], [-1.0, -6.0]])
    plain = dpo_loss(c, r, rc, rr, 0.3)
    assert_close(dpo_loss(c - 2, r, rc - 2, rr, 0.3), plain)
    assert_close(dpo_loss(c - 2, r - 2, rc, rr, 0.3), plain)


def test_dpo_by_hand():
    # margin (-2 + 4) - (-5 + 3) = 4, times 0.5: -log sigmoid(2) = log(1 + e^-2)
    one = torch.ones(1)
    assert dpo_loss(-2 * one, -5 * one, -4 * one, -3 * one, 0.5).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_dpo_gives_the_reference_no_gradient():
    c, r, rc, rr = (torch.full((2,), -3.0, requires_grad=True) for _ in range(4))
    dpo_loss(c, r, rc, rr, 0.1).backward()
    assert rc.grad is None and rr.grad is None
    # d/dc of -log sigmoid(beta·0), mean of two: -beta/2/2
    assert_close(c.grad, torch.full((2,), -0.025))
    assert_close(r.grad, torch.full((2,), 0.025))


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_dpo_refuses_a_beta_that_is_not_positive(beta):
    lp_B = torch.tensor([-3.0])
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(lp_B, lp_B, lp_B, lp_B, beta)


def test_nll_part_is_a_mean_over_tokens_not_over_answers():
    # 9 nats over 1 token and 1 nat over 9: 1 nat a token; the mean of the answers' means would be 4.6
    assert dpo_nll_loss(torch.tensor(0.5), torch.tensor([-9.0, -1.0]), 10, 0.2).item() == pytest.approx(0.7)


def test_reward_loss_knows_differences_only():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    assert_close(reward_loss(a + 7, b + 7), reward_loss(a, b))
    assert reward_loss(torch.tensor([2.0]), torch.tensor([-1.0])).item() == pytest.approx(math.log1p(math.exp(-3)))


def test_sft_loss_of_even_logits_is_log_vocabulary_and_ignores_the_prompt():
    logits_BTV = torch.zeros(1, 4, 8)
    labels_BT = torch.tensor([[-100, -100, 3, 5]])
    assert sft_loss(logits_BTV, labels_BT).item() == pytest.approx(math.log(8))
    logits_BTV[0, 0, 2] = 50.0  # predicts position 1, a prompt token: must not count
    assert sft_loss(logits_BTV, labels_BT).item() == pytest.approx(math.log(8))
    logits_BTV[0, 1, 3] = 50.0  # predicts the first answer token, rightly: half of the loss goes
    assert sft_loss(logits_BTV, labels_BT).item() == pytest.approx(math.log(8) / 2)


def test_sft_loss_refuses_a_batch_without_answers():
    with pytest.raises(ValueError, match="no token has a label"):
        sft_loss(torch.zeros(1, 3, 8), torch.full((1, 3), -100))


def test_sequence_logps_sum_the_answer_only():
    logits_BTV = torch.zeros(2, 4, 8)
    labels_BT = torch.tensor([[-100, -100, 3, 5], [-100, 1, 2, 4]])
    assert_close(sequence_logps(logits_BTV, labels_BT), -math.log(8) * torch.tensor([2.0, 3.0]))
