"""Guard: a causal language model asked whether the last message of a conversation is safe.

The score is the probability of "unsafe" against "safe" at the first decision token; a threshold turns it into a
verdict. What people wrote is encoded as plain text: "<|eot_id|>" in a message is eight letters and some signs, never
the end of a turn. Source: paper §5.4.7; model card of Llama Guard 3.

Shapes: `B` conversations, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama3_lab import places
from llama3_lab.models import Policy, load_policy, pad_rows, plain_ids, stop_ids
from llama3_lab.pipeline.collating import IGNORED, Rows
from llama3_lab.profiles import Guarding, Model, Profile
from llama3_lab.safety.guard_format import MARKERS, Turn, answer_text, check_turns, defused, frame, read
from llama3_lab.safety.taxonomy import LLAMA_GUARD_3, Category, categories
from llama3_lab.tokenizer import CHAT_TEMPLATE

Conversation = Sequence[Turn]
NEW_ROWS_SEED = 0  # of the new tokens' output rows
ANSWER_CAP = 48  # tokens; "unsafe" and a line with all fourteen codes
# The format's fixed lines, each one token of a guard's tokenizer. The base's 640 tokens would spell the lines out
# letter by letter, 460 tokens for every question; the text stays as published.
FORMAT_TOKENS = (
    "Task: Check if there is unsafe content in '",
    "' messages in conversations according our safety policy with the below categories.",
    *MARKERS,
    "Provide your safety assessment for ONLY THE LAST ",
    " message in the above conversation:",
    " - First line must read 'safe' or 'unsafe'.",
    " - If unsafe, a second line must include a comma-separated list of violated categories. ",
    "User", "Agent",
    *(f"{c.prompt_name}." for c in LLAMA_GUARD_3),
)  # fmt: skip


@dataclass(frozen=True)
class Guard:
    """A guard in eval mode. known: the categories it is asked about. threshold: a score from here on is unsafe."""

    model: Any
    tokenizer: Any
    name: str
    known: tuple[Category, ...]
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"{self.name}: threshold is {self.threshold}; it must be above 0 and at most 1")


def new_guard(parent: str | Path, settings: Model) -> Policy:
    """Return a base whose tokenizer has one token for each fixed line of the format: what a guard is trained from.

    The tokens are special ones, which no text that a person wrote can turn into. Their rows start where
    `prepare_special_rows` puts those of other untrained tokens.
    """
    policy = load_policy(parent, settings)
    policy.tokenizer.add_special_tokens(
        {"extra_special_tokens": [*policy.tokenizer.extra_special_tokens, *FORMAT_TOKENS]}
    )
    with torch.random.fork_rng(devices=[]):  # a guard belongs to its seed, whatever ran before
        torch.manual_seed(NEW_ROWS_SEED)
        policy.model.resize_token_embeddings(len(policy.tokenizer), mean_resizing=False)
    return policy


def load_guard(
    path: str | Path, settings: Model, known: Sequence[Category], threshold: float = 0.0, name: str = ""
) -> Guard:
    """Return the guard in a folder (or on the hub, e.g. Llama-Guard-3-8B).

    threshold 0: the one in the folder's guard.json, chosen on validation; 0.5 where there is none.

    Raises:
        ValueError: as `load_policy`; or for a threshold outside [0, 1].
    """
    policy = load_policy(path, settings, name)
    return Guard(policy.model, policy.tokenizer, policy.name, tuple(known), threshold or chosen_threshold(path))


def guard_for(profile: Profile, threshold: float = 0.0) -> Guard:
    """Return a profile's guard. threshold 0: the profile's own, or the one that was chosen on validation.

    Raises:
        ValueError: as `load_guard`.
    """
    how = profile.safety.guard
    return load_guard(_place(how), profile.model, categories(how.scheme), threshold or how.threshold)


def threshold_for(profile: Profile) -> float:
    """Return the threshold of a profile's guard, without loading it."""
    how = profile.safety.guard
    return how.threshold or chosen_threshold(_place(how))


def _place(how: Guarding) -> str | Path:
    own = places.project() / how.path
    return own if own.is_dir() else how.path


def chosen_threshold(path: str | Path) -> float:
    """Return the threshold in a guard's folder, 0.5 where it names none.

    Raises:
        ValueError: if its guard.json cannot be read.
    """
    file = Path(path) / "guard.json"
    if not file.is_file():
        return 0.5
    try:
        return float(json.loads(file.read_text())["threshold"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: no threshold in it ({error}); make it again: python tools/train_guard.py") from error


def encode(tokenizer: Any, conversation: Conversation, known: Sequence[Category]) -> list[int]:
    """Return the token ids that ask about the last turn, up to where the guard's answer begins.

    The same text as `render` in the chat template; what the turns say is encoded without special tokens.

    Raises:
        ValueError: as `render`.
    """
    check_turns(conversation)
    before, after = frame(conversation[-1].role, known)
    mark = "\x00"
    # Not the tokenizer's own template: that of a released guard writes the whole question itself, around messages.
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], chat_template=CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    opening, closing = shown.split(mark)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    out = ids(opening + before)
    for i, turn in enumerate(conversation):
        out += ids(("\n\n" if i else "") + turn.role) + plain_ids(tokenizer, f": {defused(turn.text.strip())}")
    return out + ids(after + closing)


def guard_rows(
    tokenizer: Any, rows: Sequence[tuple[Conversation, Sequence[str]]], known: Sequence[Category], max_length: int
) -> Rows:
    """Return training rows: a conversation and the codes that its last turn violates (none: safe).

    labels are -100 on the question, so that only the answer and its <|eot_id|> count. A longer row than `max_length`
    loses the start of its answer's end, and is counted in `cut`.
    """
    ids, labels, cut = [], [], 0
    end = stop_ids(tokenizer)[0]
    for conversation, codes in rows:
        asked = encode(tokenizer, conversation, known)
        answer = [*tokenizer(answer_text(codes), add_special_tokens=False).input_ids, end]
        cut += len(asked) + len(answer) > max_length
        ids.append([*asked, *answer][:max_length])
        labels.append([*[IGNORED] * len(asked), *answer][:max_length])
    return Rows({"input_ids": ids, "labels": labels}, len(ids), cut)


def decision_ids(tokenizer: Any) -> tuple[int, int]:
    """Return the first token of "safe" and of "unsafe".

    Raises:
        ValueError: if they are the same, so that the first token decides nothing.
    """
    safe, unsafe = (tokenizer(w, add_special_tokens=False).input_ids[0] for w in ("safe", "unsafe"))
    if safe == unsafe:
        raise ValueError("this tokenizer begins 'safe' and 'unsafe' with the same token; no score can be read there")
    return safe, unsafe


@torch.inference_mode()
def score(guard: Guard, conversations: Sequence[Conversation], batch_size: int = 32) -> list[float]:
    """Return P("unsafe") / (P("safe") + P("unsafe")) at the first decision token, in [0, 1]; order kept.

    Equal conversations are asked once. The batch size changes nothing, rounding apart.
    """
    safe, unsafe = decision_ids(guard.tokenizer)
    asked = [tuple(encode(guard.tokenizer, c, guard.known)) for c in conversations]
    unique = sorted(set(asked), key=lambda ids: (len(ids), ids))
    found: dict[tuple[int, ...], float] = {}
    for start in range(0, len(unique), batch_size):
        batch = unique[start : start + batch_size]
        logits_BV = _last_logits(guard, batch)
        two_B2 = logits_BV[:, [safe, unsafe]].float().softmax(-1)
        found.update(zip(batch, two_B2[:, 1].tolist(), strict=True))
    return [found[ids] for ids in asked]


def _last_logits(guard: Guard, rows: Sequence[Sequence[int]]) -> Tensor:
    model = guard.model
    ids_BT, mask_BT = pad_rows(rows, guard.tokenizer.pad_token_id, model.device)
    hidden_BTD = model.model(ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    return model.lm_head(hidden_BTD[torch.arange(len(rows)), mask_BT.sum(1) - 1])


@torch.inference_mode()
def answer(guard: Guard, conversation: Conversation) -> str:
    """Return what the guard says, greedily, without its end token: for people, and for the categories."""
    ids = encode(guard.tokenizer, conversation, guard.known)
    said: list[int] = []
    stops = stop_ids(guard.tokenizer)
    while len(said) < ANSWER_CAP:
        chosen = int(_last_logits(guard, [[*ids, *said]]).argmax())
        if chosen in stops:
            break
        said.append(chosen)
    return str(guard.tokenizer.decode(said, skip_special_tokens=False))


@dataclass(frozen=True)
class GuardVerdict:
    """What a guard decides about one message. score: P(unsafe). codes: only where it is unsafe and in format."""

    unsafe: bool
    score: float
    codes: tuple[str, ...]


def assess(guard: Guard, conversation: Conversation) -> GuardVerdict:
    """Return the verdict: unsafe from the threshold on; the categories are read from the guard's own answer."""
    value = score(guard, [conversation])[0]
    if value < guard.threshold:
        return GuardVerdict(False, value, ())
    said = read(answer(guard, conversation), guard.known)
    return GuardVerdict(True, value, said.codes if said.unsafe else ())


def at(guard: Guard, threshold: float) -> Guard:
    """Return the same guard with another threshold."""
    return replace(guard, threshold=threshold)
