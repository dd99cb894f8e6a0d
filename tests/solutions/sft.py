"""Solutions of 03_sft_round_one, and the mistakes that each hint is for."""

import torch


def labels(ids, start, end, eot, assistant):
    out, mine, content = [], False, False
    for i, token in enumerate(ids):
        if token == start:
            mine, content = ids[i + 1] == assistant, False
        out.append(token if mine and content else -100)
        if i >= 1 and ids[i - 1] == end:  # the blank line: what follows is said
            content = True
    return out


def changed(change):
    """Return a wrong way to label: change(ids, right labels, eot) on top of the right one."""

    def wrong(ids, start, end, eot, assistant):
        return change(ids, labels(ids, start, end, eot, assistant), eot)

    return wrong


def with_header(ids, start, end, eot, assistant):
    out, mine = [], False
    for i, token in enumerate(ids):
        mine = ids[i + 1] == assistant if token == start else mine
        out.append(token if mine else -100)
    return out


def with_blank(ids, start, end, eot, assistant):
    right = labels(ids, start, end, eot, assistant)
    for i in range(2, len(ids)):
        if ids[i - 1] == end and ids[i - 2] == assistant:
            right[i] = ids[i]
    return right


def last_only(ids, start, end, eot, assistant):
    at = len(ids) - 1 - ids[::-1].index(start)
    return [-100] * at + labels(ids, start, end, eot, assistant)[at:]


def nearest(rows_VD):
    return torch.cdist(rows_VD, rows_VD).fill_diagonal_(float("inf")).min(1).values


def untrained(rows_VD):
    gap_V = nearest(rows_VD)
    return (gap_V < 0.2 * gap_V.max()).nonzero()[:, 0].tolist()


def by_median(rows_VD):
    gap_V = nearest(rows_VD)
    return (gap_V < 0.2 * gap_V.median()).nonzero()[:, 0].tolist()


def by_norm(rows_VD):
    norm_V = rows_VD.norm(dim=1)
    return (norm_V < 0.5 * norm_V.median()).nonzero()[:, 0].tolist()


def by_mean(rows_VD):
    far_V = (rows_VD - rows_VD.mean(0)).norm(dim=1)
    return (far_V < 0.5 * far_V.median()).nonzero()[:, 0].tolist()


MUSEUM = {"A": "end not learned", "B": "prompt learned", "C": "sound", "D": "wrong end", "E": "two beginnings"}
SOLUTIONS = {
    "03.1": 31,
    "03.3": labels,
    "03.4": MUSEUM,
    "03.5": untrained,
    "03.2": 41_943_040,
    "03.6": [(10, 5), (10, 20), (1000, 5), (1000, 20), (10, 0)],
}
WRONG = {
    "03.1": [(30, "begin"), (25, "blank"), (37, "two"), (6, "one"), (16, "half"), (35, "open"), (12, "far")],
    "03.3": [
        (changed(lambda ids, right, eot: right[:-1]), "length"),
        (changed(lambda ids, right, eot: [*right[1:], -100]), "shifted"),
        (changed(lambda ids, right, eot: [-100, *right[:-1]]), "shifted"),
        (changed(lambda ids, right, eot: [-100 if r == eot else r for r in right]), "end"),
        (changed(lambda ids, right, eot: ids), "everything"),
        (changed(lambda ids, right, eot: [i if i == eot else r for i, r in zip(ids, right, strict=True)]), "user"),
        (with_header, "header"),
        (with_blank, "header"),
        (last_only, "last"),
        (changed(lambda ids, right, eot: [-100 for _ in ids]), "far"),
    ],
    "03.4": [
        ({"A": "sound"}, "names"),
        ({**MUSEUM, "A": "broken"}, "names"),
        ({**MUSEUM, "A": "sound"}, "A"),
        ({**MUSEUM, "B": "sound"}, "B"),
        ({**MUSEUM, "C": "two beginnings"}, "C"),
        ({**MUSEUM, "D": "sound"}, "D"),
        ({**MUSEUM, "E": "sound"}, "E"),
    ],
    "03.5": [
        (lambda rows: nearest(rows) < 0.2 * nearest(rows).median(), "mask"),
        (lambda rows: [i for i in range(len(rows)) if i not in untrained(rows)], "turned round"),
        (by_norm, "norm"),
        (by_mean, "mean"),
        (by_median, "most"),
        (lambda rows: [630, 631], "far"),
    ],
    "03.2": [
        (45_088_768, "grouped"), (13_631_488, "attention"), (19_922_944, "one factor"), (22_020_096, "other factor"),
        (1_310_720, "one block"), (2_621_440, "rank"), (6_979_321_856, "whole"), (1e6, "far"),
    ],
    "03.6": [
        ([(10, 0)], "shape"),
        ([(10, 60), (1000, 60), (10, 0)], "budget"),
        ([(10, 5), (10, 20), (10, 0)], "examples"),
        ([(10, 5), (1000, 20), (10, 0)], "examples"),
        ([(10, 20), (1000, 20), (10, 0)], "steps"),
        ([(10, 10), (20, 10), (10, 20), (20, 20), (10, 0)], "close"),
        ([(10, 5), (1000, 5), (10, 20), (10, 0)], "corner"),
        ([(10, 5), (1000, 5), (10, 20), (1000, 20)], "control"),
    ],
}  # fmt: skip
