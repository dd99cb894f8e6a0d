"""Bytes that are there whatever the batch: weights, adapters, gradients, optimizer states. No torch.

With N weights, n of them trained, in bytes:

    full, 16-bit    2 N weights + 2 N gradients + 2·2 N states, and in the step of PyTorch's AdamW 2 N more:
                    it takes the square root of all second moments at once                  at its peak 10 N
    LoRA            2 N + (4 + 4 + 8) n: PEFT makes adapters fp32, so gradients and states are fp32 too
    QLoRA           the matrices of the layers in NF4; embeddings, norms and output stay 16-bit; adapters as LoRA

NF4 with double quantisation, for each weight: 4 bits; one 8-bit scale for 64 weights; one fp32 scale for 256
of those: 1/2 + 1/64 + 4/(64·256) bytes = 0.516. Source: Dettmers et al. 2023, sections 3 and 4.
"""

from __future__ import annotations

from llama3_lab.paper.recipe import Recipe

NF4_BLOCK, SCALE_BLOCK = 64, 256
NF4_BYTES = 1 / 2 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * SCALE_BLOCK)
# For each matrix bitsandbytes also keeps two code tables (16 and 256 fp32) and an offset, in blocks of 512 bytes.
NF4_TABLES = 512 + 1024 + 512
STATE_8BIT = 2 * (1 + 4 / 256)  # two states of 8 bits, each with an fp32 scale for 256 weights


def parameters(recipe: Recipe) -> int:
    """Return the weights of the model without adapters; a reward model has one output in place of the vocabulary."""
    parts = recipe.model.parts()
    if recipe.stage == "reward":
        return sum(parts.values()) - parts["output"] + recipe.model.width
    return sum(parts.values())


def quantized(recipe: Recipe) -> int:
    """Return how many weights QLoRA keeps in 4 bits: the matrices of the layers, and no others."""
    parts = recipe.model.parts()
    return parts["attention"] + parts["ffn"]


def nf4_bytes(weights: int, matrices: int = 0) -> float:
    """Return the bytes of so many weights in NF4 with double quantisation, in so many matrices."""
    return weights * NF4_BYTES + matrices * NF4_TABLES


def base_bytes(recipe: Recipe) -> float:
    """Return the bytes of the weights without adapters, as they lie on the card."""
    size = 4 if recipe.dtype == "fp32" else 2
    if recipe.method != "qlora":
        return float(size * parameters(recipe))
    rest = parameters(recipe) - quantized(recipe)
    matrices = len(recipe.model.linear_shapes) * recipe.model.layers
    return nf4_bytes(quantized(recipe), matrices) + rest * (4 if recipe.upcast else 2)


def adapter_weights(recipe: Recipe) -> int:
    """Return the weights of all adapters: rank · (inputs + outputs) for each adapted matrix of each layer."""
    shapes = recipe.model.linear_shapes
    return recipe.model.layers * sum(recipe.lora_r * sum(shapes[name]) for name in recipe.adapted)


def trained(recipe: Recipe) -> int:
    """Return how many weights are trained. A reward model's new head is trained beside its adapters."""
    if recipe.method == "full":
        return parameters(recipe)
    return adapter_weights(recipe) + (recipe.model.width if recipe.stage == "reward" else 0)


def trained_size(recipe: Recipe) -> int:
    """Return the bytes of one trained weight; gradients and plain optimizer states have the same type."""
    if recipe.method == "full":
        return 4 if recipe.dtype == "fp32" else 2
    return recipe.adapter_size


def adapter_bytes(recipe: Recipe) -> float:
    """Return the bytes of the adapters and, beside them, of a reward model's trained copy of its head."""
    return 0.0 if recipe.method == "full" else float(trained(recipe) * trained_size(recipe))


def gradient_bytes(recipe: Recipe) -> float:
    """Return the bytes of all gradients, as they stand before the optimizer's step."""
    return float(trained(recipe) * trained_size(recipe))


def state_bytes(recipe: Recipe) -> float:
    """Return the bytes of the optimizer's states between steps.

    AdamW keeps two in the weights' own type: fp32 only where the weights are. 8-bit AdamW keeps an embedding's in
    fp32 (transformers asks bitsandbytes for that). SGD without momentum keeps none.
    """
    n = trained(recipe)
    if recipe.optimizer == "sgd":
        return 0.0
    if recipe.optimizer == "adamw_8bit":
        embedding = recipe.model.vocabulary * recipe.model.width if recipe.method == "full" else 0
        return (n - embedding) * STATE_8BIT + embedding * 8
    return float(2 * n * trained_size(recipe))


def step_bytes(recipe: Recipe) -> float:
    """Return what the optimizer's step adds for a moment: plain AdamW, a square root of every second moment at once."""
    return float(trained(recipe) * trained_size(recipe)) if recipe.optimizer == "adamw" else 0.0
