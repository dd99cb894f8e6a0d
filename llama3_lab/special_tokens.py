"""prepare_special_rows(): rows for the tokens of the chat format that a base has never read.

A base's special tokens. Llama 3's base has rows for `<|start_header_id|>` and its kin, but no text
ever held them: their embeddings are noise and the output layer has learned never to say them. With
those rows, finetuning on the chat template learns little. `prepare_special_rows` puts that right in
the open, before the first finetuning only; its docstring says what it does to which row. Shapes:
`V` vocabulary, `D` width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# (read like, said like): whose embedding and whose output row a token of the format starts from.
# "<start>user<end>\n\n" reads as "\n\nQ:\n\n". A turn's end reads as the blank line between question
# and answer, and is said where a text ends; the end-of-text token itself is never read by a base.
LOOK_ALIKES = {
    "<|start_header_id|>": ("\n\n", "\n\n"),
    "<|end_header_id|>": (":", ":"),
    "<|eot_id|>": ("\n\n", "<|end_of_text|>"),
    "<|eom_id|>": ("\n\n", "<|end_of_text|>"),
}
ROLE_LOOK_ALIKES = {"user": ("Q", "Q"), "assistant": ("A", "A")}
TRAINED_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>")
NOISE = 0.1  # of the trained rows' standard deviation, so that two copies of one row differ


def untrained_ids(tokenizer: Any) -> list[int]:
    """Return the ids taken as untrained in a base: every special token but begin- and end-of-text."""
    ids = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return sorted(i for i, content in ids.items() if content not in TRAINED_SPECIAL)


def prepare_special_rows(model: Any, tokenizer: Any, seed: int) -> list[int]:
    """Give the untrained tokens of a base's chat format rows from which finetuning can start; in place.

    Returns the ids of the rows that were changed.

    Tokens in LOOK_ALIKES: embedding and output row become copies of trained tokens' rows, plus
    noise of a tenth of the trained rows' spread. The other untrained ones (`untrained_ids`: pad,
    reserved, python_tag, ...): the embedding becomes the mean trained row plus such noise; the
    output row stays, since nobody should say them. A role word that is a single token and that the
    corpus never held (its embedding is as short as the special tokens') is treated like a
    LOOK_ALIKES token. A reward model has no output rows. Where both are one matrix (Llama 3.2's 1B), LOOK_ALIKES
    tokens get what is said like, and the rest stay.
    """
    generator = torch.Generator().manual_seed(seed)
    untrained = untrained_ids(tokenizer)
    trained = torch.ones(len(tokenizer), dtype=torch.bool)
    trained[untrained] = False
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    copies = {**LOOK_ALIKES, **_unseen_roles(embedding.weight.data, trained, tokenizer)}
    rest = [i for i in untrained if tokenizer.convert_ids_to_tokens(i) not in copies]
    for layer in [embedding, *([head] if head is not None else [])]:
        rows_VD = layer.weight.data[: len(tokenizer)]
        mean_D, spread_D = rows_VD[trained].mean(0), rows_VD[trained].std(0)
        plan = {_last_id(tokenizer, t): rows_VD[_last_id(tokenizer, like[layer is head])] for t, like in copies.items()}
        if layer is embedding and (head is None or head.weight is not layer.weight):
            plan |= dict.fromkeys(rest, mean_D)
        for i, row_D in plan.items():
            noise_D = torch.randn(row_D.shape, generator=generator).to(row_D)
            rows_VD[i] = row_D + noise_D * spread_D * NOISE
    return sorted({_last_id(tokenizer, t) for t in copies} | set(rest))


def _last_id(tokenizer: Any, text: str) -> int:
    return tokenizer(text, add_special_tokens=False).input_ids[-1]


def _unseen_roles(rows_VD: Tensor, trained: Tensor, tokenizer: Any) -> dict[str, tuple[str, str]]:
    """Return the role words whose embeddings are nearer in length to the untrained rows than to the trained."""
    norms_V = rows_VD[: len(tokenizer)].float().norm(dim=1)
    halfway = (norms_V[~trained].median() + norms_V[trained].median()) / 2
    whole = {w: like for w, like in ROLE_LOOK_ALIKES.items() if w in tokenizer.get_vocab()}
    return {w: like for w, like in whole.items() if norms_V[_last_id(tokenizer, w)] < halfway}
