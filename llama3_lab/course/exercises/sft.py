"""Exercises of 03_sft_round_one, and its museum: five ways to make a training row, not all of them sound."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from random import Random
from typing import Any

from llama3_lab.course.exercises import Exercise
from llama3_lab.paper.architecture import llama3

IGNORED = -100
TURNS = 6  # of 03.1: three questions, three answers
DIAGNOSES = ("sound", "two beginnings", "wrong end", "end not learned", "prompt learned")  # of 03.4
MUSEUM = ("A", "B", "C", "D", "E")
# Features in and out of the linear layers of one Llama 3 8B block, and its blocks: Table 3 of the paper.
_8B, RANK = llama3("8b"), 16
WIDTH, NARROW, FFN, BLOCKS = _8B.width, _8B.kv_heads * _8B.head_dim, _8B.ffn, _8B.layers
LAYERS_8B = {"q": (WIDTH, WIDTH), "k": (WIDTH, NARROW), "v": (WIDTH, NARROW), "o": (WIDTH, WIDTH),
             "gate": (WIDTH, FFN), "up": (WIDTH, FFN), "down": (FFN, WIDTH)}  # fmt: skip
BUDGET, APART = 100, (10, 2)  # of 03.6: optimizer steps in all; factors that make a difference worth measuring
CLOSE = 0.1  # of 03.5, in words: rows that lie this close, against a typical distance, are not two trained rows


def museum_row(exhibit: str, tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Return the token ids and the labels that exhibit "A" … "E" makes of a question and its answer."""
    from llama3_lab.models import encode_answers, encode_prompt

    prompt, (said,) = encode_prompt(tokenizer, question), encode_answers(tokenizer, [answer])
    hidden = [IGNORED] * len(prompt)
    if exhibit == "A":
        return [*prompt, *said], [*hidden, *said[:-1], IGNORED]
    if exhibit == "B":
        return [*prompt, *said], [*prompt, *said]
    if exhibit == "C":
        return [*prompt, *said], [*hidden, *said]
    if exhibit == "D":
        return [*prompt, *said[:-1], tokenizer.eos_token_id], [*hidden, *said[:-1], tokenizer.eos_token_id]
    if exhibit == "E":
        return [prompt[0], *prompt, *said], [IGNORED, *hidden, *said]
    raise ValueError(f"there is no exhibit {exhibit!r}; there are: {', '.join(MUSEUM)}")


def _template(answer: int) -> str | None:
    known = {1 + 5 * TURNS: None, 5 * TURNS: "begin", 1 + 4 * TURNS: "blank", 1 + 6 * TURNS: "two", 1 + 5: "one",
             1 + 5 * TURNS // 2: "half", 4 + 1 + 5 * TURNS: "open"}  # fmt: skip
    return known.get(answer, "far")


def _labels(labels: Callable[..., Sequence[int]]) -> str | None:
    """Grade on random chats whose labels are known because they were built piece by piece."""
    start, end, eot, assistant, user, blank = 90, 91, 92, 93, 94, 95
    rng = Random(3)
    for turns in (2, 4, 6):
        ids, right, heads, ends_hidden = [1], [IGNORED], [IGNORED], [IGNORED]
        for t in range(turns):
            said, mine = [rng.randrange(2, 80) for _ in range(rng.randint(1, 5))], t % 2 == 1
            piece = [start, assistant if mine else user, end, blank, *said, eot]
            ids += piece
            right += [IGNORED] * 4 + (piece[4:] if mine else [IGNORED] * (len(said) + 1))
            heads += piece if mine else [IGNORED] * len(piece)
            ends_hidden += [IGNORED] * 4 + (said if mine else [IGNORED] * len(said)) + [IGNORED]
        got = list(labels(list(ids), start=start, end=end, eot=eot, assistant=assistant))
        if got != right:
            return _label_mistake(got, ids, right, (heads, ends_hidden), (start, end, eot, blank))
    return None


def _label_mistake(
    got: list[int], ids: list[int], right: list[int], known: tuple[list[int], list[int]], special: tuple[int, ...]
) -> str:
    start, end, eot, blank = special
    if len(got) != len(ids):
        return "length"
    if got in ([*right[1:], IGNORED], [IGNORED, *right[:-1]]):
        return "shifted"
    if got == known[1]:
        return "end"
    if got == ids:
        return "everything"
    if got == [i if i == eot else r for i, r in zip(ids, right, strict=True)]:
        return "user"
    if got == known[0] or any(g in (start, end, blank) for g in got):
        return "header"
    last = len(ids) - 1 - ids[::-1].index(start)
    if got == [IGNORED] * last + right[last:]:
        return "last"
    return "far"


def _museum(names: Mapping[str, str]) -> str | None:
    right = {"A": "end not learned", "B": "prompt learned", "C": "sound", "D": "wrong end", "E": "two beginnings"}
    if set(names) != set(MUSEUM) or set(names.values()) - set(DIAGNOSES):
        return "names"
    return next((exhibit for exhibit in MUSEUM if names[exhibit] != right[exhibit]), None)


def _cases() -> list[tuple[str, Any, list[int]]]:
    """Return (hint, rows_VD, ids of the untrained): each case takes away one sign by which they could be told."""
    import torch

    g = torch.Generator().manual_seed(0)
    out = []
    few, most = [0, 5, 6, 30], [i for i in range(60) if i % 3]
    for hint, ids in (("far", [3, 17, 40, 41]), ("norm", few), ("mean", [9, 10, 58, 59]), ("most", most)):
        own_VD = torch.nn.functional.normalize(torch.randn(60, 32, generator=g), dim=1)
        common_D, aside_D = (torch.nn.functional.normalize(torch.randn(32, generator=g), dim=0) for _ in range(2))
        common_D = common_D * (0 if hint == "far" else 4)
        rows_VD = common_D + own_VD
        noise = 0.003 * torch.randn(len(ids), 32, generator=g)
        rows_VD[ids] = (common_D + aside_D if hint == "mean" else common_D) + noise
        if hint != "far":  # every row is as long as every other
            rows_VD = torch.nn.functional.normalize(rows_VD, dim=1) * 4
        out.append((hint, rows_VD, ids))
    return out


def _untrained(find: Callable[[Any], Any]) -> str | None:
    for hint, rows_VD, ids in _cases():
        found = find(rows_VD.clone())
        if getattr(found, "dtype", None) is not None and str(found.dtype) == "torch.bool":
            return "mask"
        found = sorted(int(i) for i in found)
        if found == [i for i in range(len(rows_VD)) if i not in ids]:
            return "turned round"
        if found != ids:
            return hint
    return None


def _trained_at_8b(answer: float) -> str | None:
    def count(layers: Mapping[str, tuple[int, int]], a: int = 1, b: int = 1) -> int:
        return BLOCKS * RANK * sum(a * i + b * o for i, o in layers.values())

    full = {**LAYERS_8B, "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH)}
    right = count(LAYERS_8B)
    known = {
        "grouped": count(full), "attention": count({n: LAYERS_8B[n] for n in "qkvo"}),
        "one factor": count(LAYERS_8B, 1, 0), "other factor": count(LAYERS_8B, 0, 1),
        "one block": right / BLOCKS, "rank": right / RANK,
        "whole": BLOCKS * sum(i * o for i, o in LAYERS_8B.values()),
    }  # fmt: skip
    if math.isclose(answer, right, rel_tol=0.005):
        return None
    return next((hint for hint, value in known.items() if math.isclose(answer, value, rel_tol=0.005)), "far")


def _design(runs: Sequence[tuple[int, int]]) -> str | None:
    runs = [(int(n), int(steps)) for n, steps in runs]
    trained = [r for r in runs if r[1] > 0]
    if not trained:
        return "shape"
    if sum(steps for _, steps in runs) > BUDGET:
        return "budget"
    sides = [_values(trained, 0, 1), _values(trained, 1, 0)]
    for hint, side in zip(("examples", "steps"), sides, strict=True):
        if not side:
            return hint
    if all(b < APART[0] * a for a, b in sides[0]) or all(b < APART[1] * a for a, b in sides[1]):
        return "close"
    square = any(
        {(n, s), (n, t), (m, s), (m, t)} <= set(trained) for n, m in sides[0] for s, t in sides[1]
        if m >= APART[0] * n and t >= APART[1] * s
    )  # fmt: skip
    if not square:
        return "corner"
    return None if any(steps == 0 for _, steps in runs) else "control"


def _values(runs: Sequence[tuple[int, int]], vary: int, hold: int) -> set[tuple[int, int]]:
    """Return the pairs (smaller, larger) in place `vary` of two runs that agree in place `hold`."""
    found = {tuple(sorted((a[vary], b[vary]))) for a, b in combinations(runs, 2) if a[hold] == b[hold]}
    return {(a, b) for a, b in found if a < b}


EXERCISES = (
    Exercise(
        "03.1", "predict", "What the template costs", 1, 2, 4, 1, _template,
        {"begin": "Something stands before the first header, once for the whole chat.",
         "blank": "Between a header and its text stands one more token.",
         "two": "The blank line after a header is two line breaks, but how many tokens? Look at the table.",
         "one": "That is the cost of one message. How many messages are there?",
         "half": "A question and its answer are two messages, each with a header of its own.",
         "open": "No new header is open: the chat ends with the third answer's end of turn.",
         "far": "Count what the template adds to one message, multiply, and add what stands there once."},
        "A short answer can be shorter than its own wrapping: one more reason to count only what is learned.",
    ),
    Exercise(
        "03.2", "predict", "What LoRA trains at 8B", 2, 2, 8, 4, _trained_at_8b,
        {"grouped": "Keys and values have 8 heads, not 32: their layers are narrower (Table 3).",
         "attention": "Here every linear layer of a block has an adapter, those of the feed-forward part too.",
         "one factor": "That is A alone; B has parameters as well.",
         "other factor": "That is B alone; A has parameters as well.",
         "one block": "That is one block; there are 32.",
         "rank": "You counted rank 1; each factor has 16 rows or columns.",
         "whole": "Those are the layers themselves, which are frozen.",
         "far": "From I to O features, 16 × (I + O) adapter parameters; a block has 7 layers, and there are 32."},
        "Half a percent of the model. Its embeddings and output layer, trained whole, would be "
        f"2 × {_8B.vocabulary:,} × {WIDTH:,} = {2 * _8B.vocabulary * WIDTH / 1e9:.2f} billion more: one more reason to "
        "mend rows rather than to train whole tables.",
    ),
    Exercise(
        "03.3", "implement", "Labels for a chat of many turns", 2, 3, 10, 2, _labels,
        {"length": "One label for each token: the list must be as long as `ids`.",
         "shifted": "Labels stand at their own token's place; sft_loss does the shifting.",
         "end": "The answer's own <|eot_id|> must be learned: who else would end the turn?",
         "everything": "These labels teach the model to write the questions as well.",
         "user": "A user's end of turn is not for the model to say: whose turn does this <|eot_id|> close?",
         "header": "A header, and the blank line after it, are given to the model, not said by it.",
         "last": "Only the last answer is learned; the earlier answers are target tokens too.",
         "far": "Walk through the ids and keep in mind whose turn it is; print your labels beside the tokens."},
        "In the paper's SFT mix a dialog has 4.7 turns on average (Table 7): many turns are the usual case.",
    ),
    Exercise(
        "03.4", "diagnose", "A museum of training rows", 2, 3, 10, 1, _museum,
        {"names": f"Give a dict with the exhibits {', '.join(MUSEUM)}, each one of: {', '.join(DIAGNOSES)}.",
         "A": "Look at A again: compare the last token with the last label.",
         "B": "Look at B again: on how many of the tokens is there a label?",
         "C": "Look at C again, from both ends: which token begins it, which closes it, where do labels start?",
         "D": "Look at D again: which token closes the row?",
         "E": "Look at E again: read the first three tokens."},
        "None of the four raises an error, and under each of them the loss falls: only rows show such bugs.",
    ),
    Exercise(
        "03.5", "implement", "Find the rows that nobody trained", 3, 2, 15, 3, _untrained,
        {"mask": "Return the ids, not a mask: `mask.nonzero()[:, 0].tolist()` turns one into the other.",
         "turned round": "Those are the trained rows; return the others.",
         "norm": "In this table every row is as long as every other, so length tells nothing.",
         "mean": "In this table they lie as far from the mean as the trained ones. What else do they share?",
         "most": "In this table most rows are untrained, so a median speaks of them. What do trained rows look like?",
         "far": "How near is each row's nearest neighbour? Untrained rows were moved alike; trained ones went apart."},
        "By this sign you also find ordinary tokens that a corpus never held, which no list of special tokens names.",
    ),
    Exercise(
        "03.6", "design", "Examples or steps?", 2, 3, 8, 5, _design,
        {"shape": "Give a list of pairs (examples, steps), at least one of them with steps to train.",
         "budget": f"That is more than {BUDGET} steps in all.",
         "examples": "No two runs differ in examples alone, so nothing can be laid to the examples.",
         "steps": "No two runs differ in steps alone, so nothing can be laid to the steps.",
         "close": f"Small differences drown: at least {APART[0]} times the examples, and {APART[1]} times the steps.",
         "corner": "A corner of the square is missing: do examples matter only with many steps? You could not tell.",
         "control": "You do not know where you start: what is the rate with the rows prepared and no step at all?"},
        "Four corners and a start: five small runs answer a question that one big run cannot.",
    ),
)  # fmt: skip


def around_the_mean(model: Any, ids: Sequence[int], noise: float) -> None:
    """Set the rows `ids` of both tables to the mean of the others plus `noise` of their spread; in place.

    noise 0 is the advice that is given most: one and the same row for every new token.
    """
    import torch

    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows_VD = layer.weight.data
        others = torch.ones(len(rows_VD), dtype=torch.bool).index_fill(0, torch.tensor(ids), False)
        mean_D, spread_D = rows_VD[others].mean(0), rows_VD[others].std(0)
        rows_VD[list(ids)] = mean_D + noise * spread_D * torch.randn(len(ids), rows_VD.shape[1])


def show_row(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> str:
    """Return a row as text, learned stretches in [brackets]; the blank line after a header as ⏎⏎."""
    learned = [label != IGNORED for label in labels]
    edges = [0, *(i for i, (a, b) in enumerate(pairwise(learned), 1) if a != b), len(ids)]
    parts = []
    for a, b in pairwise(edges):
        text = "".join(tokenizer.decode([i]) for i in ids[a:b]).replace("\n", "⏎")
        parts.append(f"[{text}]" if learned[a] else text)
    return "".join(parts)
