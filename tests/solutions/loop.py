"""Solutions of 08_the_loop, and the mistakes that each hint is for."""

from itertools import chain


def feed(earlier, newest):
    return [p for batch in earlier for p in batch], list(newest)


def changes_its_input(earlier, newest):
    earlier.append(newest)
    return list(chain(*earlier[:-1])), newest


def same_prompts(control, best):
    return [d.prompt.id for d in control] == [d.prompt.id for d in best]


FOLLOWING = {"round1-reward", "round1-judged", "round1-sft", "batch-1", "round1-policy"}
SOLUTIONS = {
    "08.1": 0.56,
    "08.2": feed,
    "08.3": same_prompts,
    "08.4": [(order, seed) for order in ("paper", "field_report") for seed in (0, 1, 2)],
    "08.5": FOLLOWING,
}
WRONG = {
    "08.1": [(56, "share"), (0.05, "one try"), (0.8, "expected"), (0.44, "none"), (0.95, "far")],
    "08.2": [
        (changes_its_input, "changed"),
        (lambda earlier, newest: feed(earlier, newest)[::-1], "swapped"),
        (lambda earlier, newest: (earlier, newest), "nested"),
        (lambda earlier, newest: (list(chain(*earlier)), [*chain(*earlier), *newest]), "stale"),
        (lambda earlier, newest: ([*chain(*earlier), *newest], newest), "future"),
        (lambda earlier, newest: (earlier[-1], newest), "lost"),
    ],
    "08.3": [
        (lambda control, best: control == best, "alarm"),
        (lambda control, best: len(control) == len(best), "missed"),
        (lambda control, best: len({d.prompt.id for d in control}) == len(control), "missed"),
    ],
    "08.4": [
        ([("paper", 0), ("report", 0)], "order"),
        ([("paper", 0), ("paper", 1)], "one side"),
        ([("paper", 0), ("paper", 1), ("field_report", 2)], "unpaired"),
        ([("paper", 0), ("field_report", 0)], "anecdote"),
    ],
    "08.5": [
        ("round1-reward", "names"),
        ({"reward"}, "names"),
        (FOLLOWING | {"sibling"}, "before"),
        ({"round1-policy"}, "reader"),
        ({"round1-reward"}, "rewards"),
        ({"round1-reward", "round1-judged"}, "on"),
    ],
}
