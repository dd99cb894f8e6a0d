"""Bytes that grow with the batch: what autograd keeps for the backward pass, and its peak on top of that. No torch.

For each token of one layer, in bytes; d width, f FFN width, q = heads·size, k = kv_heads·size, s bytes of an
activation (2). Autograd keeps exactly those inputs that some backward needs:

    norm            plain code turns its input to fp32 and keeps that: 4d. A fused kernel keeps the input: s·d,
                    which under checkpointing the first norm shares with the layer's kept input. Where norms are
                    trained, plain code keeps the normalised value too: s·d. (An fp32 model's stream is fp32: 4.)
    q, k, v         attention keeps all three, keys and values not repeated: s·(q + 2k); repeated, s·3q
    attention       FlashAttention keeps its output s·q and one fp32 sum a head. Eager keeps the softmax of the whole
                    row in fp32 and in 16 bits: (4 + s)·heads·seq
    SwiGLU          gate, silu(gate) and up: 3·s·f; the product only if down_proj trains
    trained matrix  its input: s·d for q, k, v together, s·q for o (attention's output already), s·d, s·f
    LoRA            a frozen matrix keeps nothing. Its adapter keeps its own input: PEFT turns it to fp32, autocast
                    back to 16 bits, so it is a copy of 2 bytes for each adapted matrix, and with dropout one
                    byte of mask; and the A output, 2r.

With checkpointing a layer keeps its input only, s·d, and one layer at a time is run again: its kept bytes, its
output and the gradient of that (2·s·d), and then the largest of four moments:

    the SwiGLU product's backward       gradients of product, silu and up: 3·s·f more
    down_proj's adapter, run again      the product and its fp32 copies; the other gradients do not exist yet
    attention's backward                gradients of q, k, v, out, and an fp32 sum of q's; eager: 12·heads·seq
    the second norm's backward          five fp32 tensors as wide as the model: 20·d; the FFN's are gone

Source: transformers' Llama block, PEFT's Linear, FlashAttention 2; tests count all of it on real tensors.
"""

from __future__ import annotations

import math

from llama3_lab.paper.recipe import FFN, Recipe
from llama3_lab.paper.weights import NF4_BLOCK

MASK = 1  # byte of a dropout mask's element on a GPU
INDICES = 3 * 8  # ids, labels, positions: int64 each
CHUNK_ROW = 4 + 2  # of one logit in a chunk: fp32, and the 16-bit copy of its gradient
FULL_FUSED = 4 + 4  # of one logit: fp32, and shifted by one; the fused loss writes the gradient over it
FULL_PLAIN = 4 + 4 + 4  # log-softmax, its gradient, and the logits' gradient, all fp32
NORM_BACKWARD = 5 * 4  # of one number: fp32 tensors at once in the backward of a norm in plain code
FULL_FORWARD = 2 + 4 + 4  # 16-bit logits, the same in fp32, log-softmax
KEPT_LOGPS = 4  # fp32 log-probabilities of the policy, which wait while the reference runs


def saved(recipe: Recipe) -> dict[str, float]:
    """Return what one layer keeps for its backward pass, in bytes a token, by part. Nothing without training."""
    if not recipe.trains:
        return {}
    m, s = recipe.model, recipe.size
    queries, keys = m.heads * m.head_dim, m.kv_heads * m.head_dim
    if recipe.repeat_kv or _eager(recipe) or (not recipe.packing and m.kv_heads < m.heads):
        keys = queries
    return {
        "norms": _norms(recipe),
        "queries, keys, values": float(s * (queries + 2 * keys)),
        "attention": (4.0 + (s if s < 4 else 0)) * m.heads * recipe.seq if _eager(recipe)
        else float(s * queries + 4 * m.heads),
        "SwiGLU": float((2 if _fused_ffn(recipe) else 3) * s * m.ffn),
        "inputs of trained matrices": _inputs(recipe),
        "inputs of adapters": _adapter_inputs(recipe),
    }  # fmt: skip


def saved_bytes(recipe: Recipe) -> float:
    """Return what one layer keeps, in bytes a token."""
    return sum(saved(recipe).values())


def kept(recipe: Recipe) -> float:
    """Return what all layers together keep between forward and backward pass, in bytes.

    With checkpointing only each layer's input. Without it everything; but in LoRA's first layer nothing that stands
    before the first adapter, for the embedding is frozen, and so nothing there needs a gradient.
    """
    m = recipe.model
    if not recipe.trains:
        return 0.0
    if recipe.checkpointing:
        return float(m.layers * recipe.stream_size * m.width * recipe.tokens)
    return (m.layers * saved_bytes(recipe) - _before_adapters(recipe)) * recipe.tokens


def working(recipe: Recipe) -> float:
    """Return what comes on top of `kept` at the worst moment of a layer's backward pass, in bytes."""
    t, stream = recipe.tokens, recipe.stream_size * recipe.model.width
    again = saved_bytes(recipe) if recipe.checkpointing else 0.0
    if recipe.checkpointing and (recipe.fused or recipe.stream_size == 4):
        again -= stream  # the first norm's input is the layer's, which is kept already
    carried = (2 if recipe.checkpointing else 1) * stream  # the layer's output, and the gradient of it
    moments = (_swiglu_backward(recipe), _down_forward(recipe), _attention_backward(recipe), _norm_backward(recipe))
    return again * t + carried * t + max(moments)


def around(recipe: Recipe) -> float:
    """Return the bytes beside the layers: indices, and the cosines and sines of the positions."""
    return float(recipe.tokens * INDICES + 2 * recipe.stream_size * recipe.model.head_dim * recipe.seq)


def head(recipe: Recipe) -> float:
    """Return what stands between the layers and the loss, in bytes: the last norm's input, and what the loss holds.

    That is the norm's output, where the output layer is trained or a fused loss is still in the forward pass; and in
    plain code, where the norm is trained, its normalised value.
    """
    d, full = recipe.model.width, recipe.method == "full"
    entry = recipe.stream_size if recipe.fused else 4
    normalized = recipe.stream_size if full and not recipe.fused else 0
    output = recipe.size if full or recipe.fused or recipe.stage == "reward" else 0
    return float((entry + normalized + output) * d * recipe.tokens)


def last_norm(recipe: Recipe) -> float:
    """Return the bytes on top of `kept` when the last norm's backward runs: plain, its fp32 input and five like it."""
    d = recipe.model.width
    return float((2 * recipe.stream_size if recipe.fused else 4 + NORM_BACKWARD) * d * recipe.tokens)


def logits(recipe: Recipe, backward: bool = True) -> float:
    """Return the bytes of the logits at their peak, loss and their gradient included.

    Full: 8 bytes for each token and word of the vocabulary with a fused loss, 12 with PyTorch's, 10 without a
    backward pass. Chunked:
    as Liger does, so many rows that a chunk is about as large as the hidden states, a power of two; and the gradient
    of the hidden states. A reward model has one logit a row. Sampling: those of the last position.
    """
    v, d, t = recipe.model.vocabulary, recipe.model.width, recipe.tokens
    if recipe.stage == "reward":
        return 8.0 * t
    if recipe.stage == "sample":
        return float((recipe.size + 4) * v * recipe.rows)
    if recipe.logits == "full":
        plain = FULL_PLAIN if backward else FULL_FORWARD
        return float((FULL_FUSED if recipe.fused else plain) * v * t)
    return float(CHUNK_ROW * v * chunk_rows(t, v, d) + recipe.size * d * t)


def chunk_rows(tokens: int, vocabulary: int, width: int) -> int:
    """Return how many tokens' logits a chunked loss makes at a time."""
    rows = math.ceil(tokens / math.ceil(vocabulary / width))
    return min(tokens, 1 << (rows - 1).bit_length())


def forward_only(recipe: Recipe) -> float:
    """Return the working bytes of a pass without gradients: one layer's SwiGLU, or its eager attention.

    Residual and normalised input (plain code: in fp32 too), and silu, up and their product.
    """
    m, s = recipe.model, recipe.size
    norm = 2 * s * m.width + (0 if recipe.fused else 4 * m.width)
    eager = (4 + s) * m.heads * recipe.seq if _eager(recipe) else 0
    return max(3.0 * s * m.ffn + norm, norm + eager) * recipe.tokens + _dequantized(recipe)


def cache_bytes(recipe: Recipe) -> float:
    """Return the bytes of the key/value cache when sampling: two values a layer for each kv-head's number, 16-bit.

    With a shared prompt its tokens are held once for all samples of it. One layer's keys and values exist twice
    for a moment, when the cache grows.
    """
    if recipe.stage != "sample":
        return 0.0
    held = recipe.rows * recipe.seq
    if recipe.shared_prompt:
        prompts = math.ceil(recipe.rows / recipe.samples)
        held = prompts * recipe.prompt + recipe.rows * (recipe.seq - recipe.prompt)
    return recipe.size * recipe.model.kv_cache_values() * held * (1 + 1 / recipe.model.layers)


def _eager(recipe: Recipe) -> bool:
    return recipe.attention == "eager"


def fused_lora(recipe: Recipe) -> bool:
    """Whether adapters run in a kernel of their own: in fused QLoRA they do; fused stacks leave PEFT's LoRA alone."""
    return recipe.method == "qlora" and recipe.fused


def _fused_ffn(recipe: Recipe) -> bool:
    return fused_lora(recipe) and set(FFN) <= set(recipe.adapted)


def _norm(recipe: Recipe) -> float:
    d, stream = recipe.model.width, recipe.stream_size
    if recipe.fused:
        return float(stream * d + 4)
    return float(4 * d + 4 + (stream * d if recipe.method == "full" else 0))


def _norms(recipe: Recipe) -> float:
    return 2 * _norm(recipe)


def _before_adapters(recipe: Recipe) -> float:
    """What the first layer does not keep, bytes a token: parts before its first adapter have no gradient to pass on."""
    if recipe.method == "full":
        return 0.0
    parts, names = saved(recipe), set(recipe.adapted)
    lost = _norm(recipe)
    if names & {"q_proj", "k_proj", "v_proj"}:
        return lost
    lost += parts["queries, keys, values"] + parts["attention"]
    if "o_proj" in names:
        return lost
    lost += _norm(recipe)
    return lost if names & {"gate_proj", "up_proj"} else lost + parts["SwiGLU"]


def _inputs(recipe: Recipe) -> float:
    if recipe.method != "full":
        return 0.0
    m, s = recipe.model, recipe.size
    out = s * m.heads * m.head_dim if _eager(recipe) else 0  # flash keeps it anyway
    copies = 5 if s < recipe.stream_size else 2  # autocast turns an fp32 input to 16 bits for each matrix anew
    return float(s * m.width * copies + out + s * m.ffn)


def _adapter_inputs(recipe: Recipe) -> float:
    shapes, s, names = recipe.model.linear_shapes, recipe.size, recipe.adapted
    a_outputs = len(names) * recipe.lora_r * (2 if recipe.autocast else recipe.adapter_size)
    if fused_lora(recipe):
        return a_outputs + _fused_adapter_inputs(recipe)
    copied = recipe.lora_dropout or recipe.adapter_size != s or recipe.stream_size != s
    if copied:
        return a_outputs + sum(_own(recipe) * shapes[n][1] for n in names)
    shared = {_source(n): shapes[n][1] for n in names}  # nothing to convert: all read the same tensor
    if not _eager(recipe):
        shared.pop("attention's output", None)
    return float(a_outputs + s * sum(shared.values()))


def _own(recipe: Recipe) -> int:
    """Bytes that an adapter keeps of each number of its input, where it needs a copy of its own."""
    return (2 if recipe.autocast else recipe.adapter_size) + (MASK if recipe.lora_dropout else 0)


def _source(name: str) -> str:
    """Return which tensor a matrix reads: three read the first norm's output, two the second's."""
    return {"o_proj": "attention's output", "down_proj": "product"}.get(
        name, "second norm" if name in FFN else "first norm"
    )


def _fused_adapter_inputs(recipe: Recipe) -> float:
    m, s, names = recipe.model, recipe.size, set(recipe.adapted)
    total = 0.0
    if names & {"q_proj", "k_proj", "v_proj"}:
        total += s * m.width  # before dropout, once
    if {"gate_proj", "up_proj"} & names:
        total += s * m.width
    if recipe.lora_dropout:  # after dropout, each its own, without a mask
        total += sum(s * m.linear_shapes[n][1] for n in names)
    elif "down_proj" in names and not _fused_ffn(recipe):
        total += s * m.ffn
    return total


def _swiglu_backward(recipe: Recipe) -> float:
    """Gradients of product, silu and up; the down adapter's input is free by then. Or a dequantised matrix."""
    f, s, t = recipe.model.ffn, recipe.size, recipe.tokens
    if _fused_ffn(recipe):
        return 2.0 * s * f * t + _dequantized(recipe)
    free = s * f if recipe.method == "full" else 0
    if "down_proj" in recipe.adapted:
        free = _own(recipe) * f
    return max((3 * s * f - free) * t, s * f * t + _dequantized(recipe))


def _down_forward(recipe: Recipe) -> float:
    """The moment at which down_proj's adapter reads the product: fp32 copy, with dropout another; three outputs."""
    if "down_proj" not in recipe.adapted or _fused_ffn(recipe):
        return 0.0
    m, s = recipe.model, recipe.size
    copies = 4 if recipe.adapter_size == 4 and s == 2 else 0
    dropped = 4 if copies and recipe.lora_dropout and recipe.autocast else 0
    # In place of the layer's output, counted in `working`: residual, base output, the adapter's, and that scaled.
    adapter = 2 * (s if recipe.autocast else max(s, recipe.adapter_size))
    outputs = (adapter + (0 if recipe.checkpointing else s)) * m.width
    already = copies if not recipe.autocast and not recipe.lora_dropout else 0  # that copy is what is kept
    return float(((s + copies + dropped - already) * m.ffn + outputs) * recipe.tokens)


def _attention_backward(recipe: Recipe) -> float:
    """Flash: gradients of its output, of q, k and v, and an fp32 sum; eager: the softmax's. The FFN's part is gone."""
    m, s = recipe.model, recipe.size
    queries, keys = m.heads * m.head_dim, m.kv_heads * m.head_dim
    parts = saved(recipe)
    gone = _ffn_gone(recipe) + _norm(recipe)
    more = float(s * m.width)
    if _eager(recipe):
        mask = s * recipe.seq
        more += 3 * 4 * m.heads * recipe.seq + mask - parts["attention"]
        gone += s * queries if recipe.method == "full" else 0.0  # the output matrix's input
    else:
        more += s * (2 * queries + 2 * keys) + 4 * queries
    return (more - gone) * recipe.tokens


def _ffn_gone(recipe: Recipe) -> float:
    """Bytes a token that the FFN kept, and that are free once the backward pass has left it."""
    m, s = recipe.model, recipe.size
    gone = saved(recipe)["SwiGLU"] + sum(_own(recipe) * m.linear_shapes[n][1] for n in recipe.adapted if n in FFN)
    return gone + (s * (m.ffn + m.width) if recipe.method == "full" else 0)  # down's input, gate's and up's


def _norm_backward(recipe: Recipe) -> float:
    """The backward of the norm before the FFN, in plain code: five fp32 tensors; what the FFN kept is gone."""
    if recipe.fused:
        return 0.0
    normalized = recipe.stream_size * recipe.model.width if recipe.method == "full" else 0
    return (NORM_BACKWARD * recipe.model.width - normalized - _ffn_gone(recipe)) * recipe.tokens


def _dequantized(recipe: Recipe) -> float:
    """The largest matrix of a layer, back in 16 bits for its product, with its fp32 scales; QLoRA only."""
    if recipe.method != "qlora":
        return 0.0
    return recipe.model.width * recipe.model.ffn * (2 + 4 / NF4_BLOCK)
