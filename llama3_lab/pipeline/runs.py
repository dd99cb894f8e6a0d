"""Run: a run in progress. It makes a stage once, keeps it, and hands it out again afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llama3_lab.models import Policy, Style, load_policy
from llama3_lab.pipeline import measurements, reports
from llama3_lab.pipeline.averaging import average
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.training import train_dpo, train_reward, train_sft
from llama3_lab.profiles import Profile
from llama3_lab.records import Candidate, Checkpoint, Demonstration, Evaluation, PreferencePair, Prompt, PromptScore
from llama3_lab.store import RunFolder, digest_records

BASE = "base"


def seed_of(profile: Profile, stage: str) -> int:
    """Return the stage's own seed: the run's seed and the stage's name, hashed."""
    return int.from_bytes(hashlib.sha256(f"{profile.seed}/{stage}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Run:
    """A run in progress: its folder, its settings, and the prompts that it is measured on."""

    folder: RunFolder
    profile: Profile
    tests: tuple[Prompt, ...]

    def path(self, name: str) -> Path:
        """Return the folder of a finished policy or reward model, or of the base."""
        return Path(self.profile.model.path) if name == BASE else self.folder.path / "checkpoints" / name

    def policy(self, name: str) -> Policy:
        """Return the policy of that name, loaded."""
        return load_policy(self.path(name), self.profile.model, name)

    def fit(self, part: Any, stage: str) -> Any:
        """Return a stage's settings with the stage's own seed in them."""
        return replace(part, fit=replace(part.fit, seed=seed_of(self.profile, stage)))

    def scores(self, name: str, stage: str, round: int, style: Style = "chat") -> Evaluation:
        """Return the policy's evaluation on the run's test prompts; its rows are kept beside it."""
        plan = self.profile.evaluation
        k = plan.base_samples if style == "base" else plan.samples
        how = replace(self.profile.sampling, k=k)
        # The base in the chat format hardly ever ends an answer: a quarter of the prompts shows that.
        tests = self.tests[::4] if (name, style) == (BASE, "chat") else self.tests
        rows = self.folder.once(f"scores-{name}-{style}", PromptScore,
                                lambda: measurements.measure(self.policy(name), tests, how, style))  # fmt: skip
        return reports.evaluate(stage, round, plan.split, rows, k)

    def rows(self, name: str) -> list[PromptScore]:
        """Return the kept per-prompt scores of a policy that has been measured in the chat format."""
        return self.folder.once(f"scores-{name}-chat", PromptScore, _missing)

    def answers(self, name: str, prompts: Sequence[Prompt], k: int, stage: str) -> list[Candidate]:
        """Return k sampled answers a prompt; what they are is fixed by the stage's seed."""
        how = replace(self.profile.sampling, k=k, seed=seed_of(self.profile, stage))
        return sample(self.policy(name), prompts, how)

    def sft(self, name: str, rows: Sequence[Demonstration]) -> Checkpoint:
        """Return the base finetuned on demonstrations."""
        how, settings = self.fit(self.profile.sft, name), self.profile.model
        return self._keep(name, BASE, rows, partial(train_sft, self.path(BASE), rows, how, settings=settings))

    def reward(self, name: str, rows: Sequence[PreferencePair]) -> Checkpoint:
        """Return a reward model trained on preference pairs, from the base."""
        how, settings = self.fit(self.profile.reward, name), self.profile.model
        train = partial(train_reward, self.path(BASE), rows, how, settings=settings)
        return self._keep(name, BASE, rows, train, "reward")

    def dpo(self, name: str, parent: str, rows: Sequence[PreferencePair]) -> tuple[Checkpoint, ...]:
        """Return the DPO runs of one stage and, last, their average under `name`."""
        start, settings, made = self.path(parent), self.profile.model, []
        for i in range(self.profile.dpo.runs):
            run = name.replace("policy", f"dpo-{i + 1}")
            seed = seed_of(self.profile, run)
            train = partial(train_dpo, start, rows, self.profile.dpo, settings=settings, seed=seed)
            made.append(self._keep(run, parent, rows, train))
        adapters = [self.path(c.name) / "adapter" for c in made]
        made.append(self._keep(name, parent, rows, partial(average, adapters, start, settings=settings)))
        return tuple(made)

    def _keep(
        self,
        name: str,
        parent: str,
        rows: Sequence[Any],
        train: Callable[..., object],
        kind: Literal["policy", "reward"] = "policy",
    ) -> Checkpoint:
        """Return the checkpoint: kept if it is there, else made by train(out=folder)."""

        def make(out: Path) -> None:
            train(out=out)

        return self.folder.checkpoint(name, kind, parent, digest_records(rows), make)


def _missing() -> list[PromptScore]:
    raise ValueError("this policy has not been measured yet")
