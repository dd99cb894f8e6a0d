"""Architecture: a Llama-like decoder in eight numbers; its parameters, counted to the unit, part by part. No torch.

The parts, of width d, FFN width f, h query heads and k key/value heads of size e, vocabulary v:
embedding v·d; for each layer: q and o d·h·e each, k and v d·k·e each, SwiGLU 3·d·f, two norms d each;
a last norm d; an output layer v·d, unless it shares the embedding's weights. Biases only where a model
has them (Qwen2: on q, k and v). Source: Llama 3 §3.2, table 3, and the weights as published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llama3_lab.paper.facts import fact

SIZES = ("8b", "70b", "405b")


@dataclass(frozen=True)
class Architecture:
    """A decoder with grouped-query attention, RoPE, RMSNorm and SwiGLU.

    layers, width (d), ffn (f), heads (h), kv_heads (k), head_dim (e), vocabulary (v): all at least 1;
    kv_heads divides heads. tied: the output layer is the embedding. attention_bias: q, k and v have
    biases; output_bias: o too; mlp_bias: the three matrices of the FFN. head_norm: a norm of size e for
    the queries, and one for the keys (Qwen3).

    Raises:
        ValueError: one line, if a number is not a whole one of at least 1, or heads do not divide.
    """

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "bool":
                if not isinstance(value, bool):
                    raise ValueError(f"architecture: {f.name} is {value!r}; give true or false")
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"architecture: {f.name} is {value!r}; give a whole number of at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"architecture: {self.heads} heads cannot share {self.kv_heads} key/value heads evenly; "
                             "kv_heads must divide heads")  # fmt: skip

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer, by the name that their weights have: (outputs, inputs)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.width),
            "k_proj": (keys, self.width),
            "v_proj": (keys, self.width),
            "o_proj": (self.width, queries),
            "gate_proj": (self.ffn, self.width),
            "up_proj": (self.ffn, self.width),
            "down_proj": (self.width, self.ffn),
        }

    def parts(self) -> dict[str, int]:
        """Return the parameters of the whole model by part; every layer counted in."""
        shapes = {name: out * into for name, (out, into) in self.linear_shapes.items()}
        per_layer = {
            "attention": sum(shapes[n] for n in ("q_proj", "k_proj", "v_proj", "o_proj")),
            "ffn": sum(shapes[n] for n in ("gate_proj", "up_proj", "down_proj")),
            "norms": 2 * self.width + (2 * self.head_dim if self.head_norm else 0),
            "biases": self._biases(),
        }
        return {
            "embedding": self.vocabulary * self.width,
            **{name: self.layers * count for name, count in per_layer.items()},
            "last norm": self.width,
            "output": 0 if self.tied else self.vocabulary * self.width,
        }

    def parameters(self) -> int:
        """Return the number of parameters; tied weights count once."""
        return sum(self.parts().values())

    def matrix_parameters(self) -> int:
        """Return the weights that every token is multiplied by: the layers' matrices and the output layer.

        The embedding is only looked up, and norms and biases cost no multiplication of matrices.
        """
        per_layer = sum(out * into for out, into in self.linear_shapes.values())
        return self.layers * per_layer + self.vocabulary * self.width

    def kv_cache_values(self) -> int:
        """Return the numbers that one token leaves in the key/value cache, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def _biases(self) -> int:
        q, k, v, o, *ffn = (out for out, _ in self.linear_shapes.values())
        return (self.attention_bias * (q + k + v)) + (self.output_bias * o) + (self.mlp_bias * sum(ffn))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str = "config.json") -> Architecture:
        """Return the architecture of a Llama-like model's config (Llama, Mistral, Qwen2, Qwen3), as a mapping.

        Missing num_key_value_heads means as many as heads; missing head_dim, width over heads; missing
        tie_word_embeddings, the model type's own default (untied). name: what an error calls the config.

        Raises:
            ValueError: one line, if it is no such model, or a number is missing or impossible.
        """
        if not isinstance(config, Mapping):
            raise ValueError(f"{name}: holds {type(config).__name__}, no table of settings; give a model's config.json")
        kind = str(config.get("model_type", "llama"))
        if kind not in KINDS:
            raise ValueError(f"{name}: model type {kind!r} is not known here; known are {', '.join(KINDS)}")
        if missing := [key for key in _NEEDED if config.get(key) is None]:
            raise ValueError(f"{name}: {', '.join(missing)} missing; a Llama-like config.json has it")
        layers, width, ffn, heads, vocabulary = (_whole(config[key], key, name) for key in _NEEDED)
        kv_heads = _whole(_given(config, "num_key_value_heads", heads), "num_key_value_heads", name)
        if config.get("head_dim") is None and width % heads:
            raise ValueError(f"{name}: hidden_size {width} is no multiple of num_attention_heads {heads}; "
                             "give head_dim")  # fmt: skip
        size = _whole(_given(config, "head_dim", width // heads), "head_dim", name)
        try:
            return cls(layers, width, ffn, heads, kv_heads, size, vocabulary, **_switches(config, kind))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @classmethod
    def read(cls, path: Path) -> Architecture:
        """Return the architecture that a config.json describes; `path` may be its folder.

        Raises:
            ValueError: one line, if there is no such file, or it holds no Llama-like model.
        """
        file = path / "config.json" if path.is_dir() else path
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{file}: cannot be read ({error.strerror}); give a model's config.json") from None
        except ValueError:
            raise ValueError(f"{file}: holds no JSON; give a model's config.json") from None
        return cls.from_config(config, str(file))


def llama3(size: str) -> Architecture:
    """Return a Llama 3 model of table 3 ("8b", "70b" or "405b"), with the tokenizer's whole vocabulary.

    Table 3 prints 128K; the weights also have rows for the 256 special tokens. Untied, no biases.

    Raises:
        ValueError: if there is no such size.
    """
    if size.lower() not in SIZES:
        raise ValueError(f"Llama 3 has no size {size!r}; there are {', '.join(SIZES)}")
    layers, width, ffn, heads, kv_heads = (int(fact(f"architecture.{size.lower()}.{part}").value) for part in _TABLE_3)
    return Architecture(layers, width, ffn, heads, kv_heads, width // heads, int(fact("architecture.vocabulary").value))


_TABLE_3 = ("layers", "width", "ffn", "heads", "kv_heads")
_NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
# Biases and norms that a model type always has, whatever its config says.
KINDS: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {"attention_bias": False, "output_bias": False, "mlp_bias": False},
    "qwen2": {"attention_bias": True, "output_bias": False, "mlp_bias": False},
    "qwen3": {"head_norm": True, "mlp_bias": False},
}


def _switches(config: Mapping[str, Any], kind: str) -> dict[str, bool]:
    biased = bool(config.get("attention_bias", False))
    said = {"attention_bias": biased, "output_bias": biased, "mlp_bias": bool(config.get("mlp_bias", False)),
            "tied": bool(config.get("tie_word_embeddings", False))}  # fmt: skip
    return {**said, **KINDS[kind]}


def _given(config: Mapping[str, Any], key: str, otherwise: int) -> Any:
    value = config.get(key)
    return otherwise if value is None else value


def _whole(value: Any, key: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: {key} is {value!r}; it must be a whole number of at least 1")
    return value
