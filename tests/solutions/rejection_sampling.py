"""Solutions of 05_rejection_sampling, and the mistakes that each hint is for."""

from collections import defaultdict
from itertools import cycle, islice

from llama3_lab.course.exercises import rejection_sampling as lesson
from llama3_lab.pipeline.demonstrations import by_prompt


def kinds(rows, key):
    out = defaultdict(list)
    for d in rows:
        out[key(d)].append(d)
    return out


def balance(rows):
    by_kind = kinds(rows, lambda d: (d.prompt.skill, d.prompt.level))
    most = {s: max(len(v) for (t, _), v in by_kind.items() if t == s) for s, _ in by_kind}
    return [d for (s, _), mine in by_kind.items() for d in islice(cycle(mine), most[s])]


def balance_over_all_skills(rows):
    by_level = kinds(rows, lambda d: d.prompt.level)
    most = max(map(len, by_level.values()))
    return [d for mine in by_level.values() for d in islice(cycle(mine), most)]


def repeats_the_first(rows):
    by_kind = kinds(rows, lambda d: (d.prompt.skill, d.prompt.level))
    most = {s: max(len(v) for (t, _), v in by_kind.items() if t == s) for s, _ in by_kind}
    return [d for (s, _), mine in by_kind.items() for d in [*mine, *mine[:1] * (most[s] - len(mine))]]


def grows_its_input(rows):
    rows.append(rows[-1])
    return balance(rows)


def renames(rows):
    from dataclasses import replace

    return [replace(d, rule="balanced") for d in balance(rows)]


def quarter(judged):
    out = []
    for group in by_prompt(judged):
        ended = sorted((j for j in group if j.candidate.finished), key=lambda j: -j.reward)
        out += ended[: len(ended) // 4]
    return out


def centred(judged):
    """Take each prompt's mean away, then rank all together: as many from each only by luck."""
    scored = []
    for group in by_prompt(judged):
        ended = [j for j in group if j.candidate.finished]
        mean = sum(j.reward for j in ended) / len(ended)
        scored += [(j.reward - mean + 0.01 * int(j.candidate.prompt.id[1:]), j) for j in ended]
    return [j for _, j in sorted(scored, key=lambda s: -s[0])[: len(scored) // 4 - 1]]


def finished_only(judged):
    return lesson.museum_quarter([j for j in judged if j.candidate.finished])


def one_too_low(judged):
    out = []
    for group in by_prompt(judged):
        ended = sorted((j for j in group if j.candidate.finished), key=lambda j: -j.reward)
        out += ended[1:3]
    return out


def per_prompt_cut_off_and_all(judged):
    return [j for g in by_prompt(judged) for j in sorted(g, key=lambda j: -j.reward)[: len(g) // 4]]


EVEN_TOKENS = {name: lesson.BUDGET // 5 // cost for name, (_, cost) in lesson.WAITING.items() if name != lesson.SOLVED}
EVEN_ANSWERS = dict.fromkeys(EVEN_TOKENS, lesson.BUDGET // sum(lesson.WAITING[n][1] for n in EVEN_TOKENS))
SOLUTIONS = {
    "05.1": 1.21,
    "05.2": balance,
    "05.3": quarter,
    "05.4": lesson.best_plan(),
    "05.5": 0.242,
}
WRONG = {
    "05.1": [(0.404, "share"), (1.165, "plug in"), (1.69, "pooled"), (2, "sixteen"), (2.25, "linear"), (0.75, "far")],
    "05.2": [
        (grows_its_input, "changed"),
        (renames, "invented"),
        (lambda rows: rows[:5], "dropped"),
        (lambda rows: rows * 2, "levels"),
        (balance_over_all_skills, "skills"),
        (repeats_the_first, "uneven"),
    ],
    "05.3": [
        (finished_only, "across"),
        (lesson.museum_quarter, "across"),
        (per_prompt_cut_off_and_all, "unfinished"),
        (centred, "number"),
        (one_too_low, "lower"),
    ],
    "05.4": [
        ({"arithmetic-4": 10}, "names"),
        ({"orderings-2": 2.5}, "names"),
        ({lesson.SOLVED: 10}, "solved"),
        (dict.fromkeys(EVEN_TOKENS, 64), "budget"),
        ({"orderings-2": 50}, "unused"),
        ({"orderings-2": 150, "orderings-3": 85}, "one"),
        (EVEN_ANSWERS, "better"),
    ],
    "05.5": [(0.06, "prior"), (0.8, "guess"), (0.248, "passes"), (0.758, "other"), (0.5, "far")],
}
