"""The stages: what they learn on, what they leave alone, what they write; a few steps on the tiny base."""

from __future__ import annotations

import json
import math
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from llama3_lab.models import answer_logprobs, encode_answers, encode_prompt, load_policy, load_reward_model
from llama3_lab.pipeline import training
from llama3_lab.pipeline.collating import (
    Halves,
    comparison_margins,
    comparison_rows,
    demonstration_rows,
    preference_rows,
)
from llama3_lab.pipeline.health import check, start_and_end
from llama3_lab.pipeline.losses import dpo_loss
from llama3_lab.pipeline.pairs import triples
from llama3_lab.pipeline.training import MaskingCollator, read_training, train_dpo, train_reward, train_sft
from llama3_lab.profiles import Dpo, Fit, Lora, Model, Reward, Sft
from llama3_lab.records import Check, Curve, Demonstration, PreferencePair, Prompt

BASE = Path(__file__).parents[1] / "data" / "tiny_base"
SETTINGS = Model(threads=1)
FIT = Fit(learning_rate=2e-3, max_steps=4, per_device_train_batch_size=4, warmup_steps=1)
SFT, REWARD, DPO = Sft(FIT, Lora(8, 16)), Reward(FIT, Lora(8, 16)), Dpo(FIT, Lora(8, 16))


def prompt(i: int, split: str = "train", text: str = "") -> Prompt:
    text = text or f"Ann has {i} apples and gets 5 more. How many apples does Ann have?"
    return Prompt(f"p{i}", "arithmetic", text, split, 1, Check("number", str(i + 5)))  # type: ignore[arg-type]


def right(i: int) -> str:
    return f"{i}+5={i + 5}\nAnswer: {i + 5}"


DEMONSTRATIONS = [Demonstration(prompt(i), right(i), "written") for i in range(10)]
PAIRS = [PreferencePair(prompt(i), right(i), f"{i}-5={i}\nAnswer: 5", "better", "annotator", 2.0) for i in range(6)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "first"
    train_sft(BASE, DEMONSTRATIONS, SFT, out, SETTINGS)
    return out


@pytest.fixture(scope="module")
def dpo(sft, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dpo") / "dpo-1.partial"
    train_dpo(sft, PAIRS, DPO, out, SETTINGS, seed=5)
    return out


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reward") / "rm"
    train_reward(BASE, PAIRS, REWARD, out, SETTINGS)
    return out


def test_sft_learns_its_answers_and_writes_a_policy(sft):
    policy = load_policy(sft, SETTINGS)
    rows = [(d.prompt.text, d.text) for d in DEMONSTRATIONS]
    before = sum(answer_logprobs(load_policy(BASE, SETTINGS), rows))
    assert sum(answer_logprobs(policy, rows)) > 0.5 * before  # half of the cost is gone, after four steps
    assert (sft / "adapter" / "adapter_model.safetensors").is_file()
    eot = policy.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert eot in policy.model.generation_config.eos_token_id


def test_no_machine_path_is_written(sft):
    config = json.loads((sft / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny_base"
    for file in sft.rglob("*.json"):
        assert str(Path(__file__).parents[1]) not in file.read_text() and str(sft.parent) not in file.read_text()


def test_training_record_is_read_back(sft):
    read = read_training(sft)
    loss = next(c for c in read.curves if c.metric == "loss")
    assert loss.stage == "first" and loss.steps == (1, 2, 3, 4) and all(map(math.isfinite, loss.values))
    assert read.tokens > 0 and read.seconds > 0 and {h.status for h in read.health} <= {"PASS", "WARN"}
    assert isinstance(read.curves, tuple) and isinstance(read.health, tuple)


def test_a_missing_or_broken_record_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"training\.json"):
        read_training(tmp_path)
    (tmp_path / "training.json").write_text('{"curves": [')
    with pytest.raises(ValueError, match=r"training\.json"):
        read_training(tmp_path)


def test_sft_labels_are_answer_and_end_only(sft):
    tok = load_policy(sft, SETTINGS).tokenizer
    rows = demonstration_rows(tok, DEMONSTRATIONS[:2], 256).columns
    for ids, labels, d in zip(rows["input_ids"], rows["labels"], DEMONSTRATIONS, strict=False):
        n = len(encode_prompt(tok, d.prompt.text))
        assert labels[:n] == [-100] * n and labels[n:] == ids[n:]
        assert tok.decode(labels[n:]) == d.text + "<|eot_id|>"


def test_dpo_masks_header_and_end_tokens_token_by_token(sft):
    tok = load_policy(sft, SETTINGS).tokenizer
    odd = "One<|eom_id|><|start_header_id|>user<|end_header_id|>\n\nTwo<|end_of_text|>"
    pair = PreferencePair(prompt(1), odd, "Three", "better", "annotator", 1.0)
    rows = preference_rows(tok, [pair], 256).columns
    example = {k: v[0] for k, v in rows.items()}
    masked = tuple(tok.convert_tokens_to_ids(t) for t in training.MASKED_IN_DPO)
    batch = MaskingCollator(pad_token_id=tok.pad_token_id, masked=masked)([example])
    plain = MaskingCollator(pad_token_id=tok.pad_token_id)([example])
    shown = [[tok.convert_ids_to_tokens(int(i)) for i, m in zip(ids, mask, strict=True) if m]
             for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]  # fmt: skip
    kept = [t for t in tok.tokenize(odd) if not t.startswith("<|")]
    assert shown == [kept, tok.tokenize("Three")]
    n = len(example["prompt_ids"])
    assert plain["completion_mask"].sum(1).tolist() == [len(tok.tokenize(odd)) + 1, len(tok.tokenize("Three")) + 1]
    assert not batch["completion_mask"][:, :n].any()
    for key in ("input_ids", "attention_mask"):  # still read, still seen
        assert torch.equal(batch[key], plain[key])


def test_dpo_without_mask_special_counts_the_end_token(sft, tmp_path):
    """The first logged log-probability of the chosen is the parent's own: the reference is the parent."""
    rows = [(p.prompt.text, p.chosen) for p in PAIRS[:4]]
    how = replace(DPO, mask_special=False, fit=replace(FIT, max_steps=1))
    done = train_dpo(sft, PAIRS[:4], how, tmp_path / "d", SETTINGS, seed=0)
    curves = {c.metric: c.values[0] for c in done.curves}
    assert curves["chosen logp"] == pytest.approx(sum(answer_logprobs(load_policy(sft, SETTINGS), rows)) / 4, abs=1e-3)
    assert curves["implicit reward margin"] == pytest.approx(0, abs=1e-4)
    assert curves["preference loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_the_reference_stays_the_parent_while_the_policy_moves(sft, tmp_path, monkeypatch):
    """At every step the trainer's reference log-probabilities equal the parent's, from outside TRL."""
    seen = []
    original = training._DpoTrainer.compute_loss

    def spy(self, model, inputs, *args, **more):
        loss = original(self, model, inputs, *args, **more)
        metrics = self._metrics["train"]
        seen.append((inputs, [metrics[k][-1] for k in ("logps/chosen", "rewards/chosen", "loss/preference")]))
        return loss

    monkeypatch.setattr(training._DpoTrainer, "compute_loss", spy)
    train_dpo(sft, PAIRS, DPO, tmp_path / "d", SETTINGS, seed=0)
    parent = load_policy(sft, SETTINGS).model
    for inputs, (logp, reward, _) in seen:
        ids, mask = inputs["input_ids"], inputs["completion_mask"]
        with torch.no_grad():
            logps = parent(ids, attention_mask=inputs["attention_mask"]).logits[:, :-1].log_softmax(-1)
        sums = (logps.gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum(1)
        assert logp - reward / DPO.beta == pytest.approx(sums.chunk(2)[0].mean().item(), abs=1e-3)
    assert seen[-1][1][1] != 0 and len(seen) == 4  # the policy did move


def test_preference_loss_is_the_loss_without_its_nll_part(dpo):
    read = read_training(dpo)
    curves = {c.metric: c.values for c in read.curves}
    assert {c.stage for c in read.curves} == {"dpo-1"}  # without the mark of a folder in the making
    for total, part, nll in zip(curves["loss"], curves["preference loss"], curves["nll"], strict=True):
        assert total == pytest.approx(part + DPO.nll_weight * nll, abs=1e-3)
    zero = torch.zeros(4)
    assert curves["preference loss"][0] == pytest.approx(dpo_loss(zero, zero, zero, zero, 0.1).item(), abs=1e-4)


def test_dpo_moves_no_embedding_and_no_output_row(sft, dpo):
    before, after = weights(sft), weights(dpo)
    assert before.keys() == after.keys()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {k for k in before if "_proj" in k}


def test_dpo_prefers_the_edited_answer(sft):
    tok = load_policy(sft, SETTINGS).tokenizer
    pair = replace(PAIRS[0], edited="0+5=5\nAnswer: 5!")
    rows = preference_rows(tok, [pair], 256).columns
    assert tok.decode(rows["chosen_ids"][0]) == "0+5=5\nAnswer: 5!<|eot_id|>"
    assert tok.decode(rows["rejected_ids"][0]) == PAIRS[0].rejected + "<|eot_id|>"


def test_plain_dpo_has_no_nll_part(sft, tmp_path):
    done = train_dpo(sft, PAIRS, replace(DPO, nll_weight=0.0), tmp_path / "d", SETTINGS, seed=0)
    curves = {c.metric: c.values for c in done.curves}
    assert curves["loss"][0] == pytest.approx(math.log(2), abs=1e-4)
    assert curves["loss"] == pytest.approx(curves["preference loss"], abs=1e-4)


def test_reward_model_prefers_the_chosen(reward):
    model = load_reward_model(reward, SETTINGS)
    rows = comparison_rows(model.tokenizer, [(p.prompt, p.chosen, p.rejected) for p in PAIRS], 256).columns
    with torch.no_grad():
        margins = [(model.model(torch.tensor([c])).logits - model.model(torch.tensor([r])).logits).item()
                   for c, r in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)]  # fmt: skip
    assert sum(m > 0 for m in margins) >= 5
    first = next(h for h in read_training(reward).health if h.name == "first reward loss")
    assert first.status == "PASS" and abs(first.value - math.log(2)) < 0.05


def test_reward_trains_on_strong_pairs_and_every_order_of_a_triple(monkeypatch, tmp_path):
    caught = {}

    def stop(tokenizer, rows, *_):
        caught["rows"] = rows
        raise InterruptedError

    monkeypatch.setattr(training, "comparison_rows", stop)
    weak = replace(PAIRS[0], strength="slightly better")
    edited = replace(PAIRS[1], strength="significantly better", edited="E")
    with pytest.raises(InterruptedError):
        train_reward(BASE, [weak, edited, PAIRS[2]], REWARD, tmp_path / "r", SETTINGS)
    c, r = edited.chosen, edited.rejected
    assert {(a, b) for _, a, b in caught["rows"]} == {("E", c), ("E", r), (c, r), (PAIRS[2].chosen, PAIRS[2].rejected)}


def test_margins_follow_the_strength_of_each_comparison():
    weak, strong = replace(PAIRS[0], strength="slightly better"), replace(PAIRS[1], strength="significantly better")
    edited = replace(strong, edited="E")
    assert comparison_margins([weak, edited, strong], (0, 1, 2, 3)) == [1, 3, 0, 3, 3]
    assert len(comparison_margins([weak, edited, strong], (0, 1, 2, 3))) == len(triples([weak, edited, strong]))
    assert comparison_margins([weak, edited], ()) == []
    for bad in ((1.0, 2.0), (0.0, 1.0, -1.0, 3.0)):
        with pytest.raises(ValueError, match=r"reward\.margins .* 4 numbers from 0 up"):
            comparison_margins([weak], bad)


def test_a_margin_is_what_trl_subtracts(tmp_path):
    """First rewards lie near 0, so the first loss is near log(1 + e^m), where without margin it is log 2."""
    done = train_reward(BASE, PAIRS, replace(REWARD, margins=(0.0, 0.0, 2.0, 0.0)), tmp_path / "m", SETTINGS)
    loss = next(c.values for c in done.curves if c.metric == "loss")
    assert loss[0] == pytest.approx(math.log1p(math.exp(2.0)), abs=0.1)
    assert "first reward loss" not in {h.name for h in done.health}  # log 2 is not what it starts from


def test_reward_refuses_a_pad_that_ends_texts(monkeypatch, tmp_path):
    original = training.new_reward_model

    def spoiled(*args, **more):
        made = original(*args, **more)
        made.tokenizer.pad_token = made.tokenizer.eos_token
        return made

    monkeypatch.setattr(training, "new_reward_model", spoiled)
    with pytest.raises(ValueError, match="pad token"):
        train_reward(BASE, PAIRS, REWARD, tmp_path / "r", SETTINGS)


def test_a_batch_holds_random_rows_and_puts_the_shorter_first():
    lengths = [(7 * i) % 23 for i in range(50)]
    halves = Halves(lengths, 8, seed=3)
    first, second = list(halves), list(halves)
    assert sorted(first) == sorted(second) == list(range(50)) and first != second  # each row once an epoch
    assert first == list(Halves(lengths, 8, seed=3)) != list(Halves(lengths, 8, seed=4))
    for start in range(0, 50, 8):
        batch = [lengths[i] for i in first[start : start + 8]]
        assert batch == sorted(batch)
    assert max(lengths[i] for i in first[:8]) > min(lengths[i] for i in first[8:])  # no batches of like lengths


def test_a_step_in_halves_is_the_step_of_the_whole_batch(tmp_path, monkeypatch):
    uneven = [replace(d, text=d.text * (1 + i % 3)) for i, d in enumerate(DEMONSTRATIONS[:8])]
    how = Sft(replace(FIT, max_steps=2, per_device_train_batch_size=8), Lora(8, 16))
    train_sft(BASE, uneven, how, tmp_path / "halves", SETTINGS)
    original = training._arguments
    monkeypatch.setattr(training, "_arguments", lambda *a, **k: original(*a, **{**k, "halves": False}))
    train_sft(BASE, uneven, how, tmp_path / "whole", SETTINGS)
    a, b = weights(tmp_path / "halves"), weights(tmp_path / "whole")
    moved = max((a[n] - w).abs().max().item() for n, w in weights(BASE).items())
    assert max((a[n] - b[n]).abs().max().item() for n in a) < 0.02 * moved
    curves = [read_training(tmp_path / n).curves[0] for n in ("halves", "whole")]
    assert curves[0].values == pytest.approx(curves[1].values, rel=1e-3)


def test_same_seed_same_weights_whatever_ran_before(sft, dpo, reward, tmp_path):
    torch.manual_seed(123)
    torch.rand(7)
    train_dpo(sft, PAIRS, DPO, tmp_path / "d", SETTINGS, seed=5)
    train_reward(BASE, PAIRS, REWARD, tmp_path / "r", SETTINGS)
    train_sft(BASE, DEMONSTRATIONS, SFT, tmp_path / "s", SETTINGS)
    for made, again in ((dpo, "d"), (reward, "r"), (sft, "s")):
        for part in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
            assert (made / part).read_bytes() == (tmp_path / again / part).read_bytes(), part
    train_dpo(sft, PAIRS, DPO, tmp_path / "other", SETTINGS, seed=6)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (dpo / "model.safetensors").read_bytes()


def test_nothing_is_sent_anywhere_and_nothing_is_printed(sft, tmp_path, monkeypatch, capfd):
    def refuse(*_, **__):
        raise AssertionError("a stage opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse)
    train_dpo(sft, PAIRS, replace(DPO, fit=replace(FIT, max_steps=1)), tmp_path / "d", SETTINGS, seed=5)
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""


def test_one_row_is_enough(sft, tmp_path):
    one = replace(FIT, max_steps=2)
    assert train_sft(BASE, DEMONSTRATIONS[:1], replace(SFT, fit=one), tmp_path / "s", SETTINGS).tokens > 0
    assert train_reward(BASE, PAIRS[:1], replace(REWARD, fit=one), tmp_path / "r", SETTINGS).tokens > 0
    assert train_dpo(sft, PAIRS[:1], replace(DPO, fit=one), tmp_path / "d", SETTINGS, seed=0).tokens > 0


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_rows_is_said(tmp_path, sft):
    with pytest.raises(ValueError, match="s: no demonstrations"):
        train_sft(BASE, [], SFT, tmp_path / "s", SETTINGS)
    with pytest.raises(ValueError, match="no pairs rated 'better' or more"):
        train_reward(BASE, [replace(PAIRS[0], strength="marginally better")], REWARD, tmp_path / "r", SETTINGS)
    with pytest.raises(ValueError, match="no pairs"):
        train_dpo(sft, [], DPO, tmp_path / "d", SETTINGS, seed=0)


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path, monkeypatch):
    progress = training._Progress("s", "SFT")
    state, args = SimpleNamespace(global_step=3, max_steps=9), SimpleNamespace(learning_rate=0.1)
    progress.on_log(args, state, None, logs={"loss": 1.0})
    with pytest.raises(ValueError, match="step 3 of 9; lower fit.learning_rate") as error:
        progress.on_log(args, state, None, logs={"loss": float("nan")})
    one_line(error)


def test_long_answers_are_cut_and_counted_long_prompts_refused(sft):
    tok = load_policy(sft, SETTINGS).tokenizer
    n = len(encode_prompt(tok, prompt(1).text))
    rows = demonstration_rows(tok, DEMONSTRATIONS[:3], n + 3)
    assert rows.cut == 3 and all(len(r) == n + 3 for r in rows.columns["input_ids"])
    assert demonstration_rows(tok, DEMONSTRATIONS[:3], 256).cut == 0
    assert preference_rows(tok, PAIRS[:2], n + 3).cut == 4
    with pytest.raises(ValueError, match="p0: the prompt has .* no room for an answer") as error:
        demonstration_rows(tok, DEMONSTRATIONS[:3], n)
    one_line(error)


@pytest.mark.parametrize(("row", "said"), [
    (Demonstration(prompt(3, "test"), "x", "r"), "test prompt"),
    (Demonstration(prompt(3), " \n", "r"), "empty"),
])  # fmt: skip
def test_rows_that_must_not_train_are_refused(sft, row, said):
    with pytest.raises(ValueError, match=f"p3: .*{said}") as error:
        demonstration_rows(load_policy(sft, SETTINGS).tokenizer, [row], 256)
    one_line(error)


def test_an_edit_equal_to_the_rejected_answer_is_refused(sft):
    pair = replace(PAIRS[0], edited=PAIRS[0].rejected)
    with pytest.raises(ValueError, match="compared with itself"):
        preference_rows(load_policy(sft, SETTINGS).tokenizer, [pair], 256)


def curve(metric: str, *values: float) -> Curve:
    return Curve("s", metric, tuple(range(len(values))), values)


def status(curves: list[Curve], name: str, cut: int = 0) -> str:
    return next(h.status for h in check("s", curves, cut, 10) if h.name == name)


def test_start_and_end_are_quarter_means():
    assert start_and_end([1, 3, 9, 9, 9, 9, 5, 7]) == (2, 6)
    assert start_and_end([4.0]) == (4.0, 4.0)


@pytest.mark.parametrize(("first", "expected"), [(0.693, "PASS"), (0.74, "PASS"), (0.75, "WARN"), (0.64, "WARN")])
def test_a_pairwise_loss_must_start_near_log_two(first, expected):
    assert status([curve("loss", first), curve("reward margin", 0.0)], "first reward loss") == expected
    dpo_curves = [curve("loss", 9.0), curve("preference loss", first), curve("implicit reward margin", 0.0),
                  curve("chosen logp", -1.0)]  # fmt: skip
    assert status(dpo_curves, "first DPO loss") == expected


@pytest.mark.parametrize(("last", "expected"), [(0.1, "PASS"), (0.0, "WARN"), (-0.2, "WARN")])
def test_margins_must_rise(last, expected):
    assert status([curve("loss", 0.7), curve("reward margin", 0.0, last)], "reward margin rises") == expected


@pytest.mark.parametrize(("last", "expected"), [(-8.0, "PASS"), (-12.4, "PASS"), (-12.6, "WARN")])
def test_chosen_answers_may_lose_a_quarter_of_their_log_probability(last, expected):
    curves = [curve("loss", 0.7), curve("preference loss", 0.7), curve("implicit reward margin", 0.0, 1.0),
              curve("chosen logp", -10.0, last)]  # fmt: skip
    assert status(curves, "chosen log-probability holds") == expected


def test_sft_loss_must_fall_and_cut_answers_are_warned_of():
    assert status([curve("loss", 1.0, 0.5)], "SFT loss falls") == "PASS"
    assert status([curve("loss", 0.5, 0.5)], "SFT loss falls") == "WARN"
    assert status([curve("loss", 1.0, 0.5)], "answers fit max_length") == "PASS"
    assert status([curve("loss", 1.0, 0.5)], "answers fit max_length", cut=1) == "WARN"


def test_answers_are_encoded_as_they_were_sampled(sft):
    tok = load_policy(sft, SETTINGS).tokenizer
    odd = "\n  two spaces, and a line break first "
    assert tok.decode(encode_answers(tok, [odd])[0]) == odd + "<|eot_id|>"


def test_merged_and_adapter_are_the_same_model(sft, dpo):
    from peft import PeftModel

    parent = load_policy(sft, SETTINGS)
    ids = torch.tensor([encode_prompt(parent.tokenizer, prompt(3).text)])
    with torch.no_grad():
        merged = load_policy(dpo, SETTINGS).model(ids).logits
        adapted = PeftModel.from_pretrained(parent.model, dpo / "adapter")(ids).logits
    assert_close(merged, adapted, atol=1e-4, rtol=0)


def test_without_special_rows_none_is_prepared_and_a_second_sft_moves_the_adapter_only(sft, tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(training, "prepare_special_rows", lambda *a: prepared.append(a))
    train_sft(BASE, DEMONSTRATIONS, replace(SFT, special_rows=False), tmp_path / "trap", SETTINGS)
    assert not prepared
    train_sft(sft, DEMONSTRATIONS, replace(SFT, special_rows=False), tmp_path / "more", SETTINGS, embeddings=False)
    before, after = weights(sft), weights(tmp_path / "more")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(".layers." in name for name in moved)
    assert "model.embed_tokens.weight" in before and "lm_head.weight" in before
