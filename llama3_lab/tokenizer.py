"""train_tokenizer(): a byte-level BPE with Llama 3.1's special tokens, pad token and chat template.

The special tokens follow the learned ranks, in Llama 3.1's order (llama-models, tokenizer code), so
that only the offset differs: 128,000 there, a few hundred here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|reserved_special_token_2|>",
)
ROLE_WORDS = ("system", "user", "assistant", "ipython")

# The form of the published template without tools and without its default date lines.
# The generation block marks what the assistant says, for a loss on the answer only.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Llama 3's split, but one digit at a time and punctuation kept apart from line breaks, so that a
# line break is the same token after ":" as after a chat header.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Return a `PreTrainedTokenizerFast` with exactly `vocab_size` tokens, special ones included.

    Role words become whole tokens whether the texts hold them or not: split into pieces that were
    never trained, they spoil the chat format.

    Raises:
        ValueError: if the texts do not yield that many tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = [" ".join(ROLE_WORDS[i] for i in (k, k)) for k in range(4)] * 2000
    raw.train_from_iterator([*texts, *roles, *[w for w in ROLE_WORDS for _ in range(2000)]], trainer)
    raw.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|finetune_right_pad_id|>",
        extra_special_tokens=list(SPECIAL_TOKENS[2:4] + SPECIAL_TOKENS[5:]),
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    _put_in_order(tokenizer, raw, vocab_size)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _put_in_order(tokenizer: Any, raw: Any, vocab_size: int) -> None:
    """Check that the special tokens stand last, in Llama 3.1's order."""
    ids = [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS]
    first = vocab_size - len(SPECIAL_TOKENS)
    if ids != list(range(first, vocab_size)):
        raise ValueError(
            f"the texts gave {raw.get_vocab_size()} tokens in order {ids}; wanted {first}…{vocab_size - 1}"
        )
