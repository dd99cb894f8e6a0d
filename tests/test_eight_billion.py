"""The 8B's path on a Llama-3.1-8B made small: the hub's files, bfloat16, every stage, merge, reload, export.

The model is random and knows nothing: what is tested is that the code path keeps its promises, not what it learns.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from llama3_lab.export import export
from llama3_lab.models import (
    answer_logprobs,
    apply_special_rows,
    encode_prompt,
    load_policy,
    load_reward_model,
    new_reward_model,
    stop_ids,
    token_logprobs,
)
from llama3_lab.paper.architecture import Architecture, llama3
from llama3_lab.paper.facts import fact
from llama3_lab.pipeline import candidates, training
from llama3_lab.pipeline.averaging import average
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.scores import score
from llama3_lab.pipeline.training import read_training, train_dpo, train_guard, train_reward, train_sft
from llama3_lab.profiles import TINY, Dpo, Fit, Lora, Model, Reward, Sampling, Sft
from llama3_lab.records import Check, Checkpoint, Demonstration, PreferencePair, Prompt
from llama3_lab.safety import guard as guards
from llama3_lab.safety.guard_training import draw_examples
from llama3_lab.safety.taxonomy import categories
from llama3_lab.shrunken import SPLIT, hub_config, make_shrunken, shrunken_shape, special_tokens
from llama3_lab.store import RunFolder
from llama3_lab.tokenizer import CHAT_TEMPLATE
from llama3_lab.world import hazards

FIT = Fit(learning_rate=4e-3, max_steps=6, per_device_train_batch_size=8, max_length=256, warmup_steps=1)
LORA = Lora(8, 16)
# As at 8B: LoRA alone trains; of the embedding and the output layer only the prepared rows differ from the base's.
SFT, REWARD = Sft(FIT, LORA, embeddings=False), Reward(FIT, LORA, embeddings=False)
DPO = Dpo(replace(FIT, learning_rate=2e-3), LORA)
WHOLE = Sft(FIT, LORA)  # as at TINY: embedding and output layer train in full
STAGES = ("sft", "whole", "dpo-1", "dpo-2", "policy", "reward")
WITH_ADAPTER = ("sft", "whole", "dpo-1", "dpo-2", "reward")
WITH_QLORA = ("sft", "whole", "dpo-1", "reward")
PARENT = {"dpo-1": "sft", "dpo-2": "sft", "policy": "sft"}
FIELDS = ("rope_parameters", "max_position_embeddings", "rms_norm_eps", "hidden_act", "num_key_value_heads",
          "tie_word_embeddings", "attention_bias", "mlp_bias")  # fmt: skip
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": fact("recipe.context_start").value,
        "rope_theta": fact("architecture.rope_theta").value}  # fmt: skip
KNOWN = categories("8B")
# PEFT asks transformers for it under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def prompt(i: int) -> Prompt:
    text = f"Ann has {i} apples and gets 5 more. How many apples does Ann have?"
    return Prompt(f"p{i}", "arithmetic", text, "train", 1, Check("number", str(i + 5)))


def right(i: int) -> str:
    return f"{i}+5={i + 5}\nAnswer: {i + 5}"


ROWS = [Demonstration(prompt(i), right(i), "written") for i in range(16)]
PAIRS = [PreferencePair(prompt(i), right(i), f"{i}-5={i}\nAnswer: 5", "better", "annotator", 2.0) for i in range(16)]
EXAMPLES = draw_examples(16, "train", 0, tuple(hazards.FAMILIES))


def settings(base: Path, dtype: str = "bfloat16", **more: Any) -> Model:
    return Model(str(base), dtype, "cpu", threads=1, **more)  # type: ignore[arg-type]


class Watched:
    """What a stage trained, and the logits of its merged model before it was written."""

    def __init__(self) -> None:
        self.trained: dict[str, dict[str, tuple[torch.Size, torch.dtype]]] = {}
        self.logits: dict[str, torch.Tensor] = {}

    def watch(self, patch: pytest.MonkeyPatch, ids: torch.Tensor) -> None:
        finish, write = training._finish, training._write

        def seen(trainer: Any, tokenizer: Any, rows: Any, out: Path, *more: Any) -> Any:
            train = trainer.train

            def note() -> Any:
                parameters = trainer.model.named_parameters()
                self.trained[training._stage(out)] = {n: (p.shape, p.dtype) for n, p in parameters if p.requires_grad}
                return train()

            trainer.train = note
            return finish(trainer, tokenizer, rows, out, *more)

        def written(model: Any, tokenizer: Any, out: Path, *more: Any) -> None:
            write(model, tokenizer, out, *more)
            self.logits[training._stage(out)] = logits_of(model.get_base_model().eval(), ids)

        patch.setattr(training, "_finish", seen)
        patch.setattr(training, "_write", written)


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def rounded(model: Any) -> Any:
    """The model with weights of bfloat16; its table of rotary frequencies stays float32, as after loading."""
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    return model


def loaded(folder: Path, how: Model) -> Any:
    return (load_reward_model if "reward" in folder.name else load_policy)(folder, how).model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def curves(folder: Path) -> dict[str, tuple[float, ...]]:
    return {c.metric: c.values for c in read_training(folder).curves}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_shrunken(tmp_path_factory.mktemp("hub") / "small-8b")


@pytest.fixture(scope="module")
def ids(base) -> torch.Tensor:
    policy = load_policy(base, settings(base))
    return torch.tensor([encode_prompt(policy.tokenizer, ROWS[0].prompt.text)])


def train_all(folder: RunFolder, base: Path, how: Model) -> None:
    at = folder.path / "checkpoints"

    def make(name: str, kind: str, parent: str, by: Any) -> Checkpoint:
        return folder.checkpoint(name, kind, parent, name[0] * 64, by)  # type: ignore[arg-type]

    make("sft", "policy", "base", lambda out: train_sft(base, ROWS, SFT, out, how, embeddings=False))
    make("whole", "policy", "base", lambda out: train_sft(base, ROWS, WHOLE, out, how))
    for seed in (1, 2):
        make(f"dpo-{seed}", "policy", "sft", lambda out, seed=seed: train_dpo(at / "sft", PAIRS, DPO, out, how, seed))
    adapters = [at / f"dpo-{seed}" / "adapter" for seed in (1, 2)]
    make("policy", "policy", "sft", lambda out: average(adapters, at / "sft", out, how))
    make("reward", "reward", "base", lambda out: train_reward(base, PAIRS, REWARD, out, how))


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def run(base, ids, watched, tmp_path_factory) -> Path:
    """A run folder with every stage, in bfloat16."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch, RunFolder(path, replace(TINY, model=settings(base))) as folder:
        watched.watch(patch, ids)
        train_all(folder, base, settings(base))
    return path / "checkpoints"


@pytest.fixture(scope="module")
def full(base, tmp_path_factory) -> Path:
    """The same stages in float32."""
    how, path = settings(base, "float32"), tmp_path_factory.mktemp("runs") / "full"
    with RunFolder(path, replace(TINY, model=how)) as folder:
        train_all(folder, base, how)
    return path / "checkpoints"


def new_guard_at(base: Path, out: Path, how: Model) -> None:
    policy = guards.new_guard(base, how)
    rows = guards.guard_rows(policy.tokenizer, [(e.turns, e.codes) for e in EXAMPLES], KNOWN, FIT.max_length)
    assert rows.cut == 0
    train_guard(policy, rows, WHOLE, out, how)


@pytest.fixture(scope="module")
def guard(base, ids, watched, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("guard") / "guard"
    with pytest.MonkeyPatch.context() as patch:
        watched.watch(patch, ids)
        new_guard_at(base, out, settings(base))
    return out


@pytest.fixture(params=[*STAGES, "guard"])
def stage(request, run) -> Path:
    return request.getfixturevalue("guard") if request.param == "guard" else run / request.param


# -- the shrunken model is Llama-3.1-8B's in everything but size


def test_the_config_at_full_size_is_llama_3_1_8bs():
    first = fact("template.first_special_id").value
    assert hub_config(llama3("8b")) == {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": fact("template.begin_of_text_id").value, "eos_token_id": fact("template.end_of_text_id").value,
        "hidden_act": "silu", "hidden_size": fact("architecture.8b.width").value, "initializer_range": 0.02,
        "intermediate_size": fact("architecture.8b.ffn").value,
        "max_position_embeddings": fact("recipe.context_end").value, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": fact("architecture.8b.heads").value,
        "num_hidden_layers": fact("architecture.8b.layers").value,
        "num_key_value_heads": fact("architecture.8b.kv_heads").value, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {k: v for k, v in ROPE.items() if k != "rope_theta"},
        "rope_theta": fact("architecture.rope_theta").value, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": first + fact("architecture.special_tokens").value,
    }  # fmt: skip


def test_only_size_and_vocabulary_differ(base):
    small, full = json.loads((base / "config.json").read_text()), hub_config(llama3("8b"))
    assert small.keys() == full.keys()
    assert {k for k in full if small[k] != full[k]} == {
        "bos_token_id", "eos_token_id", "hidden_size", "intermediate_size", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "vocab_size"}  # fmt: skip
    for a, b in (("num_attention_heads", "num_key_value_heads"), ("intermediate_size", "hidden_size")):
        assert small[a] * full[b] == full[a] * small[b]
    for config in (small, full):
        assert config["vocab_size"] - config["bos_token_id"] == fact("architecture.special_tokens").value
        assert config["eos_token_id"] == config["bos_token_id"] + 1
    assert Architecture.read(base) == shrunken_shape(2, 64)


def test_weights_are_bfloat16_in_shards_and_counted_right(base):
    shards = sorted(base.glob("model-*.safetensors"))
    assert len(shards) > 1 and not (base / "model.safetensors").exists()
    index = json.loads((base / "model.safetensors.index.json").read_text())
    found = weights(base)
    assert set(index["weight_map"]) == set(found) and {w.dtype for w in found.values()} == {torch.bfloat16}
    assert sum(w.numel() for w in found.values()) == Architecture.read(base).parameters()
    matrices = [w for n, w in found.items() if "norm" not in n]
    assert all(w.float().std() == pytest.approx(0.02, rel=0.05) for w in matrices)


def test_rope_is_scaled_as_published_in_all_three_bands(base):
    """Wavelengths up to 8192/4 stay, from 8192/1 on they are stretched by 8, between lies a blend."""
    rotary, size = load_policy(base, settings(base)).model.model.rotary_emb, shrunken_shape(2, 64).head_dim
    expected, bands = [], []
    for i in range(0, size, 2):
        frequency = ROPE["rope_theta"] ** (-i / size)
        turns = ROPE["original_max_position_embeddings"] * frequency / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - 1.0) / (4.0 - 1.0)))
        expected.append(share * frequency + (1 - share) * frequency / 8)
        bands.append(share)
    assert torch.allclose(rotary.inv_freq.float(), torch.tensor(expected), rtol=1e-5)
    assert 1.0 in bands and 0.0 in bands and any(0 < b < 1 for b in bands)


def test_the_same_seed_gives_the_same_files_and_leaves_random_numbers_alone(base, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    again, other = make_shrunken(tmp_path / "again"), make_shrunken(tmp_path / "other", seed=1)
    assert torch.equal(torch.rand(3), expected)
    for file in base.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
        assert ((other / file.name).read_bytes() == file.read_bytes()) == ("model-" not in file.name), file.name


def test_depth_and_width_can_be_chosen(tmp_path):
    made = make_shrunken(tmp_path / "m", layers=3, width=32)
    assert Architecture.read(made) == shrunken_shape(3, 32)
    assert loaded(made, settings(made)).num_parameters() == shrunken_shape(3, 32).parameters()


@pytest.mark.parametrize(("how", "said"), [
    ({"width": 40}, "width is 40"), ({"width": 0}, "width is 0"), ({"layers": 0}, "layers is 0"),
])  # fmt: skip
def test_impossible_sizes_are_refused_and_nothing_is_left(tmp_path, how, said):
    with pytest.raises(ValueError, match=said) as error:
        make_shrunken(tmp_path / "m", **how)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_nothing_is_overwritten(base):
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    with pytest.raises(ValueError, match="nothing is overwritten"):
        make_shrunken(base)
    assert before == {p.name: p.read_bytes() for p in base.iterdir()}


# -- the tokenizer is of Llama 3.1's format, as a base of the hub has it


def test_special_tokens_end_the_vocabulary_in_the_real_order(base):
    tok = AutoTokenizer.from_pretrained(base)
    n, first = fact("architecture.special_tokens").value, fact("template.first_special_id").value
    names = tok.convert_ids_to_tokens(list(range(len(tok) - n, len(tok))))
    assert names == special_tokens() and len(set(names)) == n and len(tok) == shrunken_shape(2, 64).vocabulary
    assert names[:11] == [
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]  # fmt: skip
    assert names[11:] == [f"<|reserved_special_token_{i}|>" for i in range(3, n - 8)]
    for name in ("begin_of_text", "end_of_text", "start_header", "end_header", "eot"):
        token = f"<|{name}|>" if name.endswith("text") else f"<|{name}_id|>"
        assert names.index(token) == fact(f"template.{name}_id").value - first


def test_the_hubs_base_has_neither_template_nor_pad_and_starts_texts_itself(base):
    tok = AutoTokenizer.from_pretrained(base)
    assert tok.chat_template is None and tok.pad_token is None
    assert tok.model_max_length == fact("recipe.context_end").value
    names = tok.convert_ids_to_tokens(tok("Fox").input_ids)
    assert names[0] == "<|begin_of_text|>" and names.count(names[0]) == 1
    assert tok.bos_token_id == len(tok) - fact("architecture.special_tokens").value


def test_the_split_is_llama_3s(base):
    raw = AutoTokenizer.from_pretrained(base).backend_tokenizer
    pieces = [piece for piece, _ in raw.pre_tokenizer.pre_tokenize_str("I'll pay 12345!\n\n  ok")]
    assert pieces == ["I", "'ll", "Ġpay", "Ġ", "123", "45", "!ĊĊ", "Ġ", "Ġok"]
    file = json.loads((base / "tokenizer.json").read_text())
    assert file["model"]["type"] == "BPE" and file["model"]["ignore_merges"] is True
    assert file["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": SPLIT}
    assert file["pre_tokenizer"]["pretokenizers"][1]["type"] == file["decoder"]["type"] == "ByteLevel"


@pytest.mark.parametrize("text", ["Größe: 3 × 4 ≠ 13 🦊\t\r\n\n x", " <|eot_id|>", "\x00\x7f  \n "])
def test_any_text_comes_back(base, text):
    tok = load_policy(base, settings(base)).tokenizer
    assert tok.decode(tok(text, add_special_tokens=False).input_ids) == text


def test_a_base_gets_llama_3_1s_template_and_pad_when_it_is_loaded(base):
    tok = load_policy(base, settings(base)).tokenizer
    assert tok.chat_template == CHAT_TEMPLATE
    assert tok.pad_token == "<|finetune_right_pad_id|>" and tok.pad_token_id not in (tok.eos_token_id, *stop_ids(tok))
    assert tok.decode(encode_prompt(tok, "Hi there")) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    for role in fact("template.roles").value:
        assert len(tok(role, add_special_tokens=False).input_ids) == 1


# -- every stage


def test_only_safetensors_are_written(stage):
    assert not [p for p in stage.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    assert {w.dtype for w in weights(stage).values()} == {torch.bfloat16}


def test_llama_3_1s_settings_survive(base, stage):
    before, after = AutoConfig.from_pretrained(base), AutoConfig.from_pretrained(stage)
    assert {f: getattr(after, f) for f in FIELDS} == {f: getattr(before, f) for f in FIELDS}
    assert after.rope_parameters == ROPE == json.loads((stage / "config.json").read_text())["rope_parameters"]
    assert (after.bos_token_id, after.dtype) == (before.bos_token_id, torch.bfloat16)
    scaled = loaded(stage, settings(base)).model.rotary_emb.inv_freq
    assert torch.equal(scaled, load_policy(base, settings(base)).model.model.rotary_emb.inv_freq)


def test_tokenizer_template_and_pad_are_in_every_folder(base, stage):
    tok, known = AutoTokenizer.from_pretrained(stage), load_policy(base, settings(base)).tokenizer
    assert tok.chat_template == CHAT_TEMPLATE
    assert tok.pad_token == "<|finetune_right_pad_id|>" and tok.pad_token_id != tok.eos_token_id
    assert encode_prompt(tok, prompt(3).text) == encode_prompt(known, prompt(3).text)
    assert {t: i for t, i in tok.get_vocab().items() if i < len(known)} == known.get_vocab()
    if "reward" in stage.name:
        assert AutoConfig.from_pretrained(stage).pad_token_id == tok.pad_token_id
    else:
        ends = json.loads((stage / "generation_config.json").read_text())["eos_token_id"]
        assert ends == stop_ids(known)


def test_reloading_gives_the_same_logits_to_the_last_bit(base, stage, ids, watched, tmp_path):
    once, again = (loaded(stage, settings(base)) for _ in range(2))
    assert torch.equal(logits_of(once, ids), logits_of(again, ids))
    if stage.name != "policy":  # an average is written by no trainer
        assert torch.equal(logits_of(once, ids), watched.logits[stage.name])
    once.save_pretrained(tmp_path / stage.name)
    load_policy(base, settings(base)).tokenizer.save_pretrained(tmp_path / stage.name)
    assert torch.equal(logits_of(loaded(tmp_path / stage.name, settings(base)), ids), logits_of(again, ids))


@pytest.mark.parametrize(("name", "metric"), [
    ("sft", "loss"), ("whole", "loss"), ("guard", "loss"), ("reward", "loss"), ("dpo-1", "preference loss"),
])  # fmt: skip
def test_losses_are_finite_and_fall(run, guard, name, metric):
    found = curves(guard if name == "guard" else run / name)
    assert all(map(math.isfinite, [v for values in found.values() for v in values]))
    assert len(found[metric]) == FIT.max_steps and found[metric][-1] < found[metric][0] - 0.01


def test_pairwise_losses_start_at_log_two(run):
    for name, metric in (("reward", "loss"), ("dpo-1", "preference loss"), ("dpo-2", "preference loss")):
        assert curves(run / name)[metric][0] == pytest.approx(math.log(2), abs=0.01)


def test_sft_makes_its_own_answers_likelier(base, run):
    rows = [(d.prompt.text, d.text) for d in ROWS]
    before = sum(answer_logprobs(load_policy(base, settings(base)), rows))
    for name, share in (("sft", 0.02), ("whole", 0.1)):
        after = sum(answer_logprobs(load_policy(run / name, settings(base)), rows))
        assert after > (1 - share) * before, name


def adapted(shape: Architecture) -> dict[str, torch.Size]:
    """Name and shape of every LoRA matrix of every linear layer of every block."""
    out = {}
    for layer in range(shape.layers):
        for name, (outputs, inputs) in shape.linear_shapes.items():
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            at = f"base_model.model.model.layers.{layer}.{part}.{name}"
            out |= {f"{at}.lora_A": torch.Size([LORA.r, inputs]), f"{at}.lora_B": torch.Size([outputs, LORA.r])}
    return out


@pytest.mark.parametrize(("name", "whole"), [
    ("sft", ()), ("dpo-1", ()), ("dpo-2", ()), ("reward", ("score",)), ("whole", ("model.embed_tokens", "lm_head")),
    ("guard", ("model.embed_tokens", "lm_head")),
])  # fmt: skip
def test_lora_is_trained_and_nothing_that_is_not_said(base, run, guard, watched, name, whole):
    shape = Architecture.read(base)
    rows = {"score": 1}.get(name, Architecture.read(guard if name == "guard" else base).vocabulary)
    expected = adapted(shape) | {f"base_model.model.{m}": torch.Size([1 if m == "score" else rows, shape.width])
                                 for m in whole}  # fmt: skip
    found = {n.replace(".default", "").replace(".modules_to_save", "").removesuffix(".weight"): s
             for n, (s, _) in watched.trained[name].items()}  # fmt: skip
    assert found == expected
    count = sum(LORA.r * (o + i) for o, i in shape.linear_shapes.values()) * shape.layers
    assert sum(s.numel() for s in found.values()) == count + sum(s.numel() for n, s in found.items() if "lora" not in n)
    folder = guard if name == "guard" else run / name
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {n.removesuffix(".weight") for n in stored} == set(expected)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["bias"]) == (8, 16, 0.0, "none")
    assert config["base_model_name_or_path"] == (PARENT.get(name) or base.name)  # a name, no path of this machine


@pytest.mark.parametrize("name", STAGES)
def test_only_what_was_trained_has_moved(base, run, name):
    before, after = weights(run / PARENT[name] if name in PARENT else base), weights(run / name)
    moved = {n for n in after if n not in before or not torch.equal(before[n], after[n])}
    linear = {n for n in before if "_proj" in n}
    own = {"sft": {"model.embed_tokens.weight", "lm_head.weight"}, "reward": {"model.embed_tokens.weight",
           "score.weight"}, "whole": {"model.embed_tokens.weight", "lm_head.weight"}}.get(name, set())  # fmt: skip
    assert moved == linear | own


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_without_whole_embeddings_only_the_prepared_rows_differ_from_the_bases(base, run, name):
    tok = load_policy(base, settings(base)).tokenizer
    rows = load_file(run / name / "adapter" / "special_rows.safetensors")
    special = {i for i, t in tok.added_tokens_decoder.items() if t.content not in ("<|begin_of_text|>",
                                                                                  "<|end_of_text|>")}  # fmt: skip
    roles = {tok(r, add_special_tokens=False).input_ids[0] for r in ("user", "assistant")}
    assert special <= set(rows["ids"].tolist()) <= special | roles
    before, after = weights(base), weights(run / name)
    for n in ("embed_tokens", *(["lm_head"] if name == "sft" else [])):
        full = next(k for k in after if n in k)
        changed = (before[full] != after[full]).any(1).nonzero()[:, 0].tolist()
        assert changed and set(changed) <= set(rows["ids"].tolist())
        assert torch.equal(after[full][rows["ids"]], rows[n])


def on_its_parent(at: Path, name: str, base: Path, how: Model) -> tuple[Any, Any]:
    """The stage's adapter on what it was trained from, by PEFT; and the parent alone."""
    from peft import PeftModel

    parent = at / PARENT[name] if name in PARENT else base

    def below() -> Any:
        model = (new_reward_model(parent, how, FIT.seed) if name == "reward" else load_policy(parent, how)).model
        apply_special_rows(model, at / name / "adapter")
        return model

    return PeftModel.from_pretrained(below(), at / name / "adapter").eval(), below()


@pytest.mark.parametrize("name", WITH_ADAPTER)
def test_adapter_and_merged_model_are_the_same_in_float32(base, full, ids, name):
    how = settings(base, "float32")
    adapter, parent = on_its_parent(full, name, base, how)
    merged = logits_of(loaded(full / name, how), ids)
    assert (logits_of(adapter, ids) - merged).abs().max() < 1e-5
    assert (logits_of(parent, ids) - merged).abs().max() > 1e-3
    assert (logits_of(adapter.merge_and_unload(), ids) - merged).abs().max() < 1e-5


@pytest.mark.parametrize("name", WITH_ADAPTER)
def test_adapter_and_merged_model_are_the_same_up_to_bfloat16s_rounding(base, run, ids, name):
    """Merging rounds weights to bfloat16's 8 bits, where the adapter beside them is added in float32.

    A rounding is at most 1 part in 256. A few of them stay below 1 part in 64 of the largest logit that the output
    rows allow, their length times that of a normed hidden state.
    """
    adapter, parent = on_its_parent(run, name, base, settings(base))
    model = loaded(run / name, settings(base))
    merged, beside, before = (logits_of(m, ids).float() for m in (model, adapter, parent))
    head = (model.score if name == "reward" else model.lm_head).weight.float()
    assert (merged - beside).abs().max() <= head.norm(dim=1).max() * math.sqrt(head.shape[1]) / 64
    assert (merged - beside).abs().max() < (merged - before).abs().max() / 10
    again = rounded(adapter.merge_and_unload())  # PEFT merges as the stage did
    assert torch.equal(logits_of(again, ids).float(), merged)


def test_an_average_is_the_mean_of_the_two_updates_in_float32(full):
    parent, one, two, mean = (weights(full / n) for n in ("sft", "dpo-1", "dpo-2", "policy"))
    assert any(not torch.equal(one[n], two[n]) and not torch.equal(one[n], parent[n]) for n in one)
    for name, weight in mean.items():
        assert torch.allclose(weight, (one[name] + two[name]) / 2, rtol=0, atol=1e-6), name


def test_an_average_is_the_mean_of_the_two_updates_up_to_bfloat16s_rounding(run):
    """Three merged weights, each rounded by 1 part in 256, and the mean's factors, which count by the update's size."""
    parent, one, two, mean = ({n: w.float() for n, w in weights(run / name).items()}
                              for name in ("sft", "dpo-1", "dpo-2", "policy"))  # fmt: skip
    for name, weight in mean.items():
        update = max((w[name] - parent[name]).abs().max() for w in (one, two))
        bound = (one[name].abs() + two[name].abs() + weight.abs()) / 256 + update / 64
        expected = (one[name] + two[name]) / 2
        assert ((weight - expected).abs() <= bound).all(), name
        if "_proj" in name:  # on the whole the rounding is small beside what was learned
            assert (weight - expected).norm() < 0.1 * (expected - parent[name]).norm(), name


def test_the_same_seed_gives_the_same_weights_whatever_ran_before(base, run, tmp_path):
    torch.manual_seed(5)
    torch.rand(7)
    how = settings(base)
    train_sft(base, ROWS, SFT, tmp_path / "sft", how, embeddings=False)
    train_sft(base, ROWS, WHOLE, tmp_path / "whole", how)
    train_dpo(run / "sft", PAIRS, DPO, tmp_path / "dpo-1", how, 1)
    train_reward(base, PAIRS, REWARD, tmp_path / "reward", how)
    average([run / f"dpo-{i}" / "adapter" for i in (1, 2)], run / "sft", tmp_path / "policy", how)
    for name in ("sft", "whole", "dpo-1", "reward", "policy"):
        for file in (tmp_path / name).rglob("*.safetensors"):
            part = file.relative_to(tmp_path)
            assert file.read_bytes() == (run / part).read_bytes(), part


@pytest.fixture(scope="module")
def kept(base, tmp_path_factory) -> Path:
    """The stages again, kept as the profile 8b keeps them: adapters alone."""
    how, at = settings(base, keep="adapters"), tmp_path_factory.mktemp("kept")
    train_sft(base, ROWS, SFT, at / "sft", how, embeddings=False)
    for seed in (1, 2):
        train_dpo(at / "sft", PAIRS, DPO, at / f"dpo-{seed}", how, seed)
    average([at / f"dpo-{seed}" / "adapter" for seed in (1, 2)], at / "sft", at / "policy", how)
    train_reward(base, PAIRS, REWARD, at / "reward", how)
    return at


@pytest.mark.parametrize("name", [
    "sft", "dpo-1", "dpo-2", "reward",
    "policy",
])  # fmt: skip
def test_adapters_alone_load_as_the_merged_weights_do(base, run, kept, ids, name):
    assert not list((kept / name).glob("model*.safetensors"))
    assert AutoConfig.from_pretrained(kept / name).rope_parameters == ROPE
    found, wanted = (logits_of(loaded(at / name, settings(base)), ids) for at in (kept, run))
    assert torch.equal(found, wanted)


def test_a_run_goes_on_where_it_stopped(base, run):
    with RunFolder(run.parent, replace(TINY, model=settings(base))) as folder:
        def refuse(out: Path) -> None:
            raise AssertionError(f"{out.name} was trained twice")

        kept = folder.checkpoint("sft", "policy", "base", "s" * 64, refuse)
        assert folder.path_of(kept) == run / "sft"
        file = run / "dpo-2" / "adapter" / "adapter_model.safetensors"
        before = file.read_bytes()
        try:
            file.write_bytes(before[:-1])
            with pytest.raises(ValueError, match="dpo-2"):
                folder.checkpoint("dpo-2", "policy", "sft", "d" * 64, refuse)
        finally:
            file.write_bytes(before)


# -- what is done with the stages' models


def test_sampling_gives_k_answers_a_prompt_and_their_log_probabilities(base, run, monkeypatch):
    policy, how = load_policy(run / "policy", settings(base)), Sampling(k=4, max_new_tokens=12)
    seen, original = [], candidates._candidate

    def catch(p: Prompt, tokens: Any, *more: Any) -> Any:
        made = original(p, tokens, *more)
        seen.append((made, (encode_prompt(policy.tokenizer, p.text), tokens[: made.n_tokens].tolist())))
        return made

    monkeypatch.setattr(candidates, "_candidate", catch)
    prompts = [replace(prompt(i), text=prompt(i).text + " Tell me." * (i % 3)) for i in range(5)]
    made = sample(policy, prompts, how)
    assert [c.prompt.id for c in made] == [p.id for p in prompts for _ in range(4)]
    assert len({c.text for c in made}) > 15 and all(1 <= c.n_tokens <= 12 and c.logprob < 0 for c in made)
    # One token after the other, with a cache, rounds otherwise than all at once: 0.01 nats a token.
    again = token_logprobs(policy, [row for _, row in seen])
    assert [c.logprob for c, _ in seen] == pytest.approx(again, abs=0.01 * 12)
    monkeypatch.undo()
    assert sample(policy, prompts, how) == made


def test_answers_cost_the_same_in_bfloat16_and_in_float32(base, run):
    """The same weights read in float32: bfloat16's activations cost less than 1 % of an answer's log-probability."""
    rows = [(d.prompt.text, d.text) for d in ROWS]
    half, whole = (answer_logprobs(load_policy(run / "sft", settings(base, d)), rows) for d in ("bfloat16", "float32"))
    assert half == pytest.approx(whole, rel=0.01) and max(half) < 0


def test_rewards_prefer_the_chosen_and_batches_change_little(base, run):
    model = load_reward_model(run / "reward", settings(base))
    rows = [(p.prompt, a) for p in PAIRS for a in (p.chosen, p.rejected)]
    rewards = score(model, rows)
    assert all(map(math.isfinite, rewards)) and len(rewards) == len(rows)
    assert sum(a > b for a, b in zip(rewards[::2], rewards[1::2], strict=True)) >= 14
    assert score(model, rows, batch_size=3) == pytest.approx(rewards, abs=0.01)


def test_the_guard_reads_llama_guard_3s_format(base, guard):
    made = guards.load_guard(guard, settings(base), KNOWN)
    tok, known = made.tokenizer, load_policy(base, settings(base)).tokenizer
    new = [tok(t, add_special_tokens=False).input_ids for t in guards.FORMAT_TOKENS]
    assert all(len(i) == 1 and i[0] >= len(known) for i in new)
    assert made.model.get_input_embeddings().weight.shape[0] == len(known) + len(set(guards.FORMAT_TOKENS))
    turns = [e.turns for e in EXAMPLES]
    values = guards.score(made, turns)
    assert all(0 < v < 1 for v in values) and len(set(values)) > 4
    safe, unsafe = guards.decision_ids(tok)
    with torch.no_grad():
        last = made.model(torch.tensor([guards.encode(tok, turns[0], KNOWN)])).logits[0, -1].float()
    assert values[0] == pytest.approx(last[[safe, unsafe]].softmax(0)[1].item(), abs=0.01)
    verdict = guards.assess(guards.at(made, 1e-6), turns[0])
    assert verdict.unsafe and set(verdict.codes) <= {c.code for c in KNOWN}


@pytest.mark.parametrize("name", STAGES)
def test_an_export_loads_with_equal_logits(base, run, ids, tmp_path, name):
    out = export(run.parent, name, tmp_path / name).folder
    assert torch.equal(logits_of(loaded(out, settings(base)), ids), logits_of(loaded(run / name, settings(base)), ids))
    config = AutoConfig.from_pretrained(out)
    assert config.rope_parameters == ROPE and config.dtype == torch.bfloat16
    tok = AutoTokenizer.from_pretrained(out)
    template = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert template == (out / "chat_template.jinja").read_text() == tok.chat_template
    assert encode_prompt(tok, "Hi") == encode_prompt(load_policy(base, settings(base)).tokenizer, "Hi")
    assert tok.pad_token == "<|finetune_right_pad_id|>"


def test_an_export_holds_the_model_and_no_more(run, tmp_path):
    found = {p.name for p in export(run.parent, "dpo-1", tmp_path / "out").folder.iterdir()}
    assert found == {"README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
                     "tokenizer.json", "tokenizer_config.json"}  # fmt: skip


def test_an_export_without_its_adapter_has_no_rows_beside_an_adapter(run, tmp_path):
    assert not (export(run.parent, "sft", tmp_path / "out").folder / "special_rows.safetensors").exists()


def test_an_exported_adapter_on_the_base_is_the_checkpoint(base, run, ids, tmp_path):
    from peft import PeftModel

    out = export(run.parent, "sft", tmp_path / "out", adapter=True).folder
    below = load_policy(base, settings(base)).model
    apply_special_rows(below, out)
    found = logits_of(PeftModel.from_pretrained(below, out).merge_and_unload().eval(), ids)
    assert torch.equal(found, logits_of(loaded(run / "sft", settings(base)), ids))


def test_an_export_names_its_rope_for_older_readers_too(run, tmp_path):
    config = json.loads((export(run.parent, "sft", tmp_path / "out").folder / "config.json").read_text())
    assert config["rope_theta"] == ROPE["rope_theta"]
    assert config["rope_scaling"] == {k: v for k, v in ROPE.items() if k != "rope_theta"}


def test_an_exports_tokenizer_names_a_class_that_older_readers_know(run, tmp_path):
    config = json.loads((export(run.parent, "sft", tmp_path / "out").folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


# -- what bfloat16 and a hub's base bring to light


@pytest.mark.parametrize("name", ["reward", "whole", "guard"])
def test_what_is_trained_is_held_in_float32_while_it_is_trained(run, guard, watched, name):
    assert {dtype for _, dtype in watched.trained[name].values()} == {torch.float32}


def test_a_guard_belongs_to_its_seed_whatever_ran_before(base, guard, tmp_path):
    torch.manual_seed(99)
    new_guard_at(base, tmp_path / "guard", settings(base))
    assert (tmp_path / "guard" / "model.safetensors").read_bytes() == (guard / "model.safetensors").read_bytes()


def test_decoding_is_silent(base):
    assert load_policy(base, settings(base)).tokenizer.clean_up_tokenization_spaces is False


# -- QLoRA: a base in 4 bits while it is trained, merged into the 16-bit one

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture(scope="module", params=[
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
])  # fmt: skip
def quantized(request, tmp_path_factory) -> tuple[Path, Path, Model]:
    """A base wide enough for bitsandbytes' CPU kernels, the stages trained over it in 4 bits, and the settings."""
    base = make_shrunken(tmp_path_factory.mktemp("hub4") / "wide", width=256)
    how, at = Model(str(base), "bfloat16", request.param, threads=1, method="qlora"), tmp_path_factory.mktemp("qlora")
    train_sft(base, ROWS, SFT, at / "sft", how, embeddings=False)
    train_sft(base, ROWS, WHOLE, at / "whole", how)
    train_dpo(at / "sft", PAIRS, DPO, at / "dpo-1", how, 1)
    train_reward(base, PAIRS, REWARD, at / "reward", how)
    return base, at, how


@needs_bitsandbytes
def test_qlora_quantises_every_linear_layer_of_the_blocks_and_no_other(quantized):
    base, _, how = quantized
    shape = Architecture.read(base)
    for model in (load_policy(base, how, four_bit=True).model, new_reward_model(base, how, 0, four_bit=True).model):
        kinds = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        assert sum(k == "Linear4bit" for k in kinds.values()) == shape.layers * len(shape.linear_shapes)
        assert {n for n, k in kinds.items() if k != "Linear4bit"} <= {"lm_head", "score"}
        assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert type(load_policy(base, how).model.model.layers[0].mlp.up_proj) is torch.nn.Linear


@needs_bitsandbytes
@pytest.mark.parametrize("name", WITH_QLORA)
def test_qlora_learns_and_leaves_a_plain_16_bit_model(quantized, name):
    base, at, _ = quantized
    metric = "preference loss" if name == "dpo-1" else "loss"
    losses = curves(at / name)[metric]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.01
    assert "quantization_config" not in json.loads((at / name / "config.json").read_text())
    before, after = weights(at / "sft" if name == "dpo-1" else base), weights(at / name)
    assert {w.dtype for w in after.values()} == {torch.bfloat16}
    assert {n: w.shape for n, w in after.items() if n != "score.weight"} == {
        n: w.shape for n, w in before.items() if n in after}  # fmt: skip
    moved = {n for n, w in after.items() if n not in before or not torch.equal(before[n], w)}
    own = {"reward": {"model.embed_tokens.weight", "score.weight"}, "dpo-1": set()}
    assert moved == {n for n in before if "_proj" in n} | own.get(name, {"model.embed_tokens.weight", "lm_head.weight"})
    assert AutoConfig.from_pretrained(at / name).rope_parameters == ROPE


@needs_bitsandbytes
@pytest.mark.parametrize("name", WITH_QLORA)
def test_qloras_adapter_on_the_16_bit_parent_is_the_merged_model(quantized, name):
    base, at, how = quantized
    tok = load_policy(base, how).tokenizer
    ids = torch.tensor([encode_prompt(tok, prompt(3).text)], device=how.device)
    adapter, parent = on_its_parent(at, name, base, how)
    merged, before = logits_of(loaded(at / name, how), ids), logits_of(parent, ids)
    assert torch.equal(logits_of(rounded(adapter.merge_and_unload()), ids), merged)
    assert not torch.equal(merged, before)


@needs_bitsandbytes
def test_qloras_merged_model_knows_what_was_trained_in_4_bits(quantized):
    base, at, how = quantized
    rows = [(d.prompt.text, d.text) for d in ROWS]
    before, after, whole = (sum(answer_logprobs(load_policy(f, how), rows))
                            for f in (base, at / "sft", at / "whole"))  # fmt: skip
    assert after > 0.98 * before and whole > 0.9 * before
    rewards = score(load_reward_model(at / "reward", how), [(p.prompt, a) for p in PAIRS
                                                            for a in (p.chosen, p.rejected)])  # fmt: skip
    assert sum(a > b for a, b in zip(rewards[::2], rewards[1::2], strict=True)) >= 14


@needs_bitsandbytes
def test_qloras_adapters_are_trained_in_float32_as_the_planner_counts(quantized):
    _, at, _ = quantized
    stored = load_file(at / "sft" / "adapter" / "adapter_model.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.float32}


@pytest.mark.parametrize("more", [{"method": "qlora"}, {"keep": "adapters"}], ids=["qlora", "adapters"])
def test_a_guard_can_be_trained_whatever_the_profile_says(base, ids, tmp_path, more):
    new_guard_at(base, tmp_path / "guard", settings(base, **more))
    assert guards.load_guard(tmp_path / "guard", settings(base), KNOWN).model(ids).logits.isfinite().all()
