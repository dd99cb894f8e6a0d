"""Parameters are counted to the unit: by part, for the named sizes, and as transformers builds them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3_lab.paper.architecture import KINDS, SIZES, Architecture, llama3
from llama3_lab.paper.facts import fact

TINY = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 100}  # fmt: skip
WORKED = Architecture(layers=2, width=4, ffn=6, heads=2, kv_heads=1, head_dim=2, vocabulary=10)


def built(config: dict, size: int | None = None) -> int:
    """The parameters of the model that transformers builds from a config, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    return sum(p.numel() for p in model.parameters())


def config_of(a: Architecture, **more) -> dict:
    return {"model_type": "llama", "num_hidden_layers": a.layers, "hidden_size": a.width, "intermediate_size": a.ffn,
            "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim,
            "vocab_size": a.vocabulary, "tie_word_embeddings": a.tied, **more}  # fmt: skip


def test_a_model_counted_by_hand():
    # 10·4 in; a layer: q 16, k 8, v 8, o 16; 3·4·6 = 72; 2 norms of 4; then a norm of 4; 10·4 out.
    assert WORKED.parts() == {"embedding": 40, "attention": 96, "ffn": 144, "norms": 16, "biases": 0, "last norm": 4,
                              "output": 40}  # fmt: skip
    assert WORKED.parameters() == 340
    assert replace(WORKED, tied=True).parameters() == 300
    assert replace(WORKED, attention_bias=True).parameters() == 340 + 2 * (4 + 2 + 2)
    assert WORKED.matrix_parameters() == 96 + 144 + 40
    assert WORKED.kv_cache_values() == 2 * 2 * 1 * 2


@pytest.mark.parametrize("size", SIZES)
def test_the_named_sizes_fall_out_of_table_3_to_the_unit(size):
    assert llama3(size).parameters() == fact(f"parameters.{size}").value
    assert round(llama3(size).parameters() / 1e9) in (8, 71, 406)
    assert llama3(size.upper()) == llama3(size)


@pytest.mark.parametrize("size", SIZES)
def test_transformers_builds_the_same_number_of_parameters(size):
    assert built(config_of(llama3(size))) == llama3(size).parameters()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 6}, {"head_dim": 16},
                                    {"attention_bias": True}, {"mlp_bias": True}])  # fmt: skip
def test_a_config_is_counted_as_transformers_builds_it(kind, change):
    config = {**TINY, "model_type": kind, "tie_word_embeddings": False, **change}
    if kind == "qwen2":
        config = {**config, "head_dim": 8}
    assert Architecture.from_config(config).parameters() == built(config)


def test_what_a_config_leaves_out_has_the_usual_meaning():
    given_ = {k: v for k, v in TINY.items() if k not in ("num_key_value_heads", "head_dim", "model_type")}
    a = Architecture.from_config(given_)
    assert (a.kv_heads, a.head_dim, a.tied) == (6, 8, False)
    assert Architecture.from_config({**given_, "num_key_value_heads": None, "head_dim": None}) == a


def test_a_config_is_read_from_a_file_or_its_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert Architecture.read(tmp_path) == Architecture.read(tmp_path / "config.json") == Architecture.from_config(TINY)


def test_our_own_base_is_counted_to_the_unit():
    base = Path(__file__).parents[1] / "data" / "tiny_base"
    assert Architecture.read(base).parameters() == json.loads((base / "settings.json").read_text())["parameters"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"hidden_size": None}, "hidden_size missing"), ({"vocab_size": 0}, "vocab_size is 0"),
     ({"num_hidden_layers": -1}, "num_hidden_layers is -1"), ({"intermediate_size": 1.5}, "intermediate_size is 1.5"),
     ({"num_hidden_layers": True}, "num_hidden_layers is True"), ({"num_attention_heads": "6"}, "is '6'"),
     ({"num_key_value_heads": 4}, "must divide heads"), ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
     ({"head_dim": None, "hidden_size": 50}, "no multiple of num_attention_heads"),
     ({"model_type": "mixtral"}, "model type 'mixtral' is not known here; known are llama")],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused_in_one_line(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        Architecture.from_config({**TINY, **change}, "my.json")
    assert str(caught.value).startswith("my.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("[1]", "holds list"), ("{", "holds no JSON"), (None, "cannot be read")])
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path, text, words):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=words):
        Architecture.read(file)


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="no size '7b'; there are 8b, 70b, 405b"):
        llama3("7b")


SHAPES = st.builds(
    lambda layers, width, ffn, k, share, e, v, tied: Architecture(layers, width, ffn, k * share, k, e, v, tied),
    *(st.integers(1, 40) for _ in range(7)), st.booleans(),
)  # fmt: skip


@given(SHAPES, st.sampled_from(("layers", "width", "ffn", "head_dim", "vocabulary")), st.integers(1, 9))
def test_every_number_adds_parameters(a, name, more):
    bigger = replace(a, **{name: getattr(a, name) + more})
    assert bigger.parameters() > a.parameters()
    assert bigger.matrix_parameters() > a.matrix_parameters()


@given(SHAPES, st.integers(2, 5))
def test_heads_add_parameters_and_kv_heads_add_cache(a, times):
    assert replace(a, heads=a.heads * times).parameters() > a.parameters()
    more = replace(a, heads=a.heads * times, kv_heads=a.kv_heads * times)
    assert more.kv_cache_values() == times * a.kv_cache_values()


@given(SHAPES)
def test_the_parts_add_up_and_untying_adds_one_matrix(a):
    assert sum(a.parts().values()) == a.parameters()
    untied, tied = replace(a, tied=False), replace(a, tied=True)
    assert untied.parameters() - tied.parameters() == a.vocabulary * a.width
    assert untied.matrix_parameters() == tied.matrix_parameters()
