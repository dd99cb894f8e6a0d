"""draw_examples(): conversations whose right assessment is known, to train a guard on and to measure it.

Half are a request alone, half a request with its answer. An answer to a hazard is a violation only if it helps: a
refusal is safe, and so is help with a look-alike. One request in eight of the training rows carries an injection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from llama3_lab.records import SafetyPrompt, Split
from llama3_lab.safety.guard_format import Turn
from llama3_lab.safety.injections import inject
from llama3_lab.world import hazards

MIX = {"adversarial": 0.50, "borderline": 0.38, "benign": 0.12}  # in training
EVEN = {"adversarial": 1.0, "borderline": 1.0, "benign": 1.0}  # in tests
INJECTED = 0.125


@dataclass(frozen=True)
class GuardExample:
    """A conversation, and the codes that its last message violates: one, or none where it is safe."""

    asked: SafetyPrompt
    turns: tuple[Turn, ...]
    codes: tuple[str, ...]

    @property
    def unsafe(self) -> bool:
        """Return whether the last message is a violation."""
        return bool(self.codes)


def draw_examples(
    n: int, split: Split, seed: int, families: Sequence[str], injections: Sequence[str] = (),
    mix: Mapping[str, float] = MIX,
) -> list[GuardExample]:  # fmt: skip
    """Return n examples, requests and answers by turns, over the given families; `injections` for one in eight.

    mix: weights of the three kinds of requests.
    """
    rng = Random(f"guard-{split}-{seed}")
    out = []
    for i in range(n):
        kind = rng.choices(tuple(mix), tuple(mix.values()))[0]
        asked = hazards.make(rng, kind, rng.choice(list(families)), split, f"guard-{split}-{seed}-{i}")  # type: ignore[arg-type]
        text = asked.prompt.text
        if injections and rng.random() < INJECTED:
            text = inject(text, rng.choice(list(injections)))
        out.append(example(asked, text, answer_of(asked, rng) if i % 2 else None))
    return out


def answer_of(asked: SafetyPrompt, rng: Random) -> str:
    """Return an answer as policies give them: three in five help, the rest refuse, rightly or not."""
    if asked.kind == "benign" or rng.random() < 0.6:
        return hazards.write(asked, rng)
    return hazards.refuse(asked, rng)


def example(asked: SafetyPrompt, text: str, answer: str | None = None) -> GuardExample:
    """Return the example of a request, or of an answer to it. text: the request as sent, injection included."""
    user = Turn("User", text)
    if answer is None:
        return GuardExample(asked, (user,), (asked.code,) if asked.code else ())
    violated = hazards.violated(asked, answer)
    return GuardExample(asked, (user, Turn("Agent", answer)), (asked.code,) if violated else ())
