"""Run: a run in progress. It makes a stage once, keeps it, and hands it out again afterwards.

course_run() is the notebooks' run: one folder for all of them, so that each finds what the others made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llama3_lab import places
from llama3_lab.disk import digest_file
from llama3_lab.lock import Told
from llama3_lab.models import Policy, Style, load_policy
from llama3_lab.pipeline import material, measurements, reports
from llama3_lab.pipeline.averaging import average
from llama3_lab.pipeline.launches import launched
from llama3_lab.pipeline.samplers import draw
from llama3_lab.pipeline.training import train_dpo, train_reward, train_sft
from llama3_lab.profiles import COURSE, Dpo, Profile, Reward, Sampling, Sft
from llama3_lab.records import Candidate, Checkpoint, Demonstration, Evaluation, PreferencePair, Prompt, PromptScore
from llama3_lab.store import RunFolder, digest_records, digest_settings

BASE = "base"


def seed_of(profile: Profile, stage: str) -> int:
    """Return the stage's own seed: the run's seed and the stage's name, hashed."""
    return int.from_bytes(hashlib.sha256(f"{profile.seed}/{stage}".encode()).digest()[:4], "big") >> 1


def course_run(told: Told | None = print, profile: Profile = COURSE) -> Run:
    """Return the notebooks' run, shared by all of them: <runs>/course-<8 hex digits>.

    The digits follow from the profile and the base's weights. Where either changes, a fresh folder is
    begun, and the old one, which no longer fits, is left as it was (delete it to save space). `told`
    gets one line a stage: "round1-sft: kept from before", or "round1-sft: made in 12 s".
    OMP_NUM_THREADS, where it is set, caps the profile's threads: on a busy machine, fewer are faster.
    """
    weights = places.project() / profile.model.path / "model.safetensors"
    base = digest_file(weights) if weights.is_file() else profile.model.path
    key = hashlib.sha256(f"{digest_settings(profile)} {base}".encode()).hexdigest()[:8]
    folder = RunFolder(places.runs() / f"{profile.name}-{key}", profile, shared=True, told=told)
    threads = min(profile.model.threads, int(os.environ.get("OMP_NUM_THREADS") or profile.model.threads))
    profile = replace(profile, model=replace(profile.model, threads=threads))
    return Run(folder, profile, tuple(material.tests(profile)))


@dataclass(frozen=True)
class Run:
    """A run in progress: its folder, its settings, and the prompts that it is measured on."""

    folder: RunFolder
    profile: Profile
    tests: tuple[Prompt, ...]

    def path(self, name: str) -> Path:
        """Return the folder of a finished policy or reward model, or of the base."""
        if name != BASE:
            return self.folder.path / "checkpoints" / name
        source = self.profile.model.source
        wanted, own = Path(source), places.project() / source
        return own if own.is_dir() and not wanted.is_dir() else wanted

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
        stage_name = f"scores-{name}-{style}"

        def make() -> list[PromptScore]:
            policy = self.policy(name)
            by = partial(self._draw, policy, style=style, stage=stage_name)
            return measurements.measured(by, tests, how)

        rows = self.folder.once(stage_name, PromptScore, make)
        return reports.evaluate(stage, round, plan.split, rows, k)

    def rows(self, name: str, style: Style = "chat") -> list[PromptScore]:
        """Return the kept per-prompt scores of a policy that has been measured in this format."""
        return self.folder.once(f"scores-{name}-{style}", PromptScore, partial(_missing, name))

    def answers(self, name: str, prompts: Sequence[Prompt], k: int, stage: str) -> list[Candidate]:
        """Return k sampled answers a prompt; what they are is fixed by the stage's seed."""
        how = replace(self.profile.sampling, k=k, seed=seed_of(self.profile, stage))
        return self._draw(self.policy(name), prompts, how, stage=stage)

    def greedy(self, name: str, prompts: Sequence[Prompt], stage: str) -> list[Candidate]:
        """Return one greedy answer a prompt."""
        return self._draw(self.policy(name), prompts, replace(self.profile.sampling, k=1, temperature=0.0), stage=stage)

    def _draw(
        self, policy: Policy, prompts: Sequence[Prompt], how: Sampling, style: Style = "chat", stage: str = "answers"
    ) -> list[Candidate]:
        """Return candidates by the profile's sampler; a server's answers wait in a journal until all are there."""
        journal = self.folder.path / f".{stage}-{how.k}-{how.temperature:g}.journal"
        return draw(policy, self.path(policy.name), prompts, how, style, journal)

    def sft(
        self, name: str, rows: Sequence[Demonstration], how: Sft | None = None, parent: str = BASE
    ) -> Checkpoint:
        """Return the base finetuned on demonstrations; or another policy, of which LoRA alone then trains, as in DPO.

        how: other settings than the profile's, its seed taken as it stands; without, the stage has its own seed.
        """
        full = how or self.fit(self.profile.sft, name)
        full = full if parent == BASE else replace(full, special_rows=False)
        train = partial(self._stage("sft", train_sft), self.path(parent), rows, full, settings=self.profile.model,
                        embeddings=parent == BASE and full.embeddings)  # fmt: skip
        return self._keep(name, parent, _digest(rows, how), train)

    def reward(self, name: str, rows: Sequence[PreferencePair], how: Reward | None = None) -> Checkpoint:
        """Return a reward model trained on preference pairs, from the base; `how` as in `sft`."""
        full = how or self.fit(self.profile.reward, name)
        train = partial(self._stage("reward", train_reward), self.path(BASE), rows, full, settings=self.profile.model)
        return self._keep(name, BASE, _digest(rows, how), train, "reward")

    def dpo_run(
        self, name: str, parent: str, rows: Sequence[PreferencePair], how: Dpo | None = None
    ) -> Checkpoint:
        """Return one DPO run from `parent`, which is also its reference; `how` as in `sft`."""
        full, seed = how or self.profile.dpo, how.fit.seed if how else seed_of(self.profile, name)
        train = partial(self._stage("dpo", train_dpo), self.path(parent), rows, full, settings=self.profile.model,
                        seed=seed)  # fmt: skip
        return self._keep(name, parent, _digest(rows, how), train)

    def dpo(self, name: str, parent: str, rows: Sequence[PreferencePair]) -> tuple[Checkpoint, ...]:
        """Return the DPO runs of one stage and, last, their average under `name`."""
        names = [name.replace("policy", f"dpo-{i + 1}") for i in range(self.profile.dpo.runs)]
        made = [self.dpo_run(n, parent, rows) for n in names]
        adapters = [self.path(c.name) / "adapter" for c in made]
        join = partial(average, adapters, self.path(parent), settings=self.profile.model)
        return (*made, self._keep(name, parent, _digest(rows), join))

    def _stage(self, stage: Literal["sft", "reward", "dpo"], here: Callable[..., object]) -> Callable[..., object]:
        """Return what trains a stage: this process, or those that the profile's launcher starts."""
        launcher = self.profile.model.launcher
        return launched(stage, Path(launcher)) if launcher else here

    def _keep(
        self, name: str, parent: str, digest: str, train: Callable[..., object],
        kind: Literal["policy", "reward"] = "policy",
    ) -> Checkpoint:  # fmt: skip
        """Return the checkpoint: kept if it is there, else made by train(out=folder)."""

        def make(out: Path) -> None:
            train(out=out)

        return self.folder.checkpoint(name, kind, parent, digest, make)


def _digest(rows: Sequence[Any], how: Any = None) -> str:
    """Return the digest of what a checkpoint is made from: its rows, and settings that are not the profile's."""
    rows_digest = digest_records(rows)
    return rows_digest if how is None else hashlib.sha256(f"{rows_digest} {digest_settings(how)}".encode()).hexdigest()


def _missing(name: str) -> list[PromptScore]:
    raise ValueError(f"{name} has not been measured yet; run.scores({name!r}, stage, round) does that")
