"""Solutions of 10_eight_billion, and the mistakes that each hint is for."""


def micro_batch(needed, gib, batch):
    return max((n for n in range(1, batch + 1) if batch % n == 0 and needed(n) <= gib), default=0)


def doubling(needed, gib, batch):
    """Powers of two only."""
    n = 0
    while 2**n <= batch and needed(2**n) <= gib:
        n += 1
    return 2 ** (n - 1) if n else 0


def by_slope(needed, gib, batch):
    """Rows from the cost of the first two: right where bytes grow by the row, and only there."""
    row = needed(2) - needed(1)
    most = int((gib - needed(1)) / row) + 1 if row else 1
    return max((n for n in range(1, min(most, batch) + 1) if batch % n == 0 and needed(n) <= gib), default=0)


def largest(needed, gib, batch):
    return next((n for n in range(batch, 0, -1) if needed(n) <= gib), 0)


CARD = {"gpu": "RTX 6000 Ada", "settings": ["rounds=2"]}
CURE = {"A": 4, "B": 2, "C": 5, "D": 1, "E": 3}
SOLUTIONS = {
    "10.1": 1,
    "10.2": micro_batch,
    "10.3": CURE,
    "10.4": {"A", "B", "C"},
    "10.5": CARD,
}
WRONG = {
    "10.1": [(4, "linear"), (2, "root"), (0.25, "inverse"), (32, "far")],
    "10.2": [
        (lambda needed, gib, batch: max(1, micro_batch(needed, gib, batch)), "none"),
        (lambda needed, gib, batch: int((gib - needed(1)) / (needed(2) - needed(1) or 1)) + 1, "parts"),
        (lambda needed, gib, batch: 64, "batch"),
        (largest, "parts"),
        (lambda needed, gib, batch: batch, "large"),
        (lambda needed, gib, batch: max((n for n in range(1, batch + 1) if batch % n == 0 and needed(n) < gib),
                                        default=0), "equal"),
        (doubling, "parts"),
        (by_slope, "small"),
        (lambda needed, gib, batch: 1, "small"),
    ],
    "10.3": [
        ({"A": 4}, "form"),
        ({**CURE, "A": 9}, "form"),
        ({**CURE, "A": 3, "E": 4}, "A"),
        ({**CURE, "B": 6}, "B"),
        ({**CURE, "C": 1, "D": 5}, "C"),
        ({**CURE, "D": 6}, "D"),
        ({**CURE, "E": 6}, "E"),
    ],
    "10.4": [
        ({"Z"}, "letters"),
        ({"B", "C"}, "weights"),
        ({"A", "C", "E"}, "scale"),
        ({"A", "B", "E"}, "rows"),
        ({"A", "B", "C", "F"}, "too much"),
    ],
    "10.5": [
        ({**CARD, "settings": ["sft.max_steps=50"]}, "training"),
        ({**CARD, "settings": ["model.path=meta-llama/Llama-3.2-1B"]}, "model"),
        ({**CARD, "settings": ["evaluation.control=false"]}, "control"),
        ({**CARD, "settings": ["order=field_report"]}, "control"),
        ({**CARD, "settings": ["rounds=1"]}, "round"),
        ({**CARD, "settings": ["sampling.k=4"]}, "few"),
        ({**CARD, "settings": ["data.train_prompts=100"]}, "prompts"),
        ({**CARD, "gpu": "RTX 4080"}, "fits"),
        ({**CARD, "gpu": "48GB"}, "fits"),
        ({**CARD, "gpu": "RTX 3090"}, "slow"),
        ({**CARD, "gpu": "H100"}, "dear"),
        ({"gpu": "RTX 4090", "settings": ["rounds=2"]}, "dear"),
    ],
}  # fmt: skip
