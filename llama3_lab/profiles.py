"""Profiles: every setting of a run, in one place. A stage is given its own part, never the whole.

TINY is the default: a Llama of one million parameters that this project pre-trained, on a CPU. All
its choices were made on validation prompts (EXPERIMENTS.md has the runs).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from llama3_lab.paper.facts import fact


@dataclass(frozen=True)
class Model:
    """Which base, and where. path: a folder or a hub id; "data/tiny_base" is the committed one."""

    path: str = "data/tiny_base"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int = 2  # OpenMP threads; set explicitly, because the default suits an idle machine only
    memory_gb: float = 2.0  # needed beside what is in use; checked before anything is loaded


@dataclass(frozen=True)
class Data:
    """How many prompts each stage draws from the world. Test prompts: per skill, all levels."""

    train_prompts: int = 800  # per round, fresh ones, over the four skills
    preference_prompts: int = 1280  # per round, fresh ones again: what the newest preference batch is collected on
    test_per_skill: int = 200
    demonstrations: int = 400  # round zero: written by the world's authors, flaws included
    prompts_file: str = ""  # a JSONL file of Prompt records that replaces the drawn training prompts


@dataclass(frozen=True)
class Sampling:
    """K answers per prompt. temperature 0 is greedy. The paper: K is typically 10–30 (§4.2.2).

    more_for_unsolved: how often a round draws K more for the prompts whose answers have all failed.
    """

    k: int = 16
    more_for_unsolved: int = 2
    temperature: float = 1.0
    max_new_tokens: int = 96
    batch_prompts: int = 32  # prompts read at once; rows in flight are k times as many
    seed: int = 0


@dataclass(frozen=True)
class Lora:
    """r: rank; alpha: scale is alpha / r; applied to every linear layer of every block."""

    r: int = 16
    alpha: int = 32


@dataclass(frozen=True)
class Fit:
    """One training run. Names as in TRL. max_steps counts optimizer steps."""

    learning_rate: float = 2e-3
    max_steps: int = 60
    per_device_train_batch_size: int = 32
    max_length: int = 256
    warmup_steps: int = 5
    adam_beta2: float = 0.95  # a short memory for a short training
    seed: int = 0


@dataclass(frozen=True)
class Sft:
    """Supervised finetuning from the base; loss on the answer only (§4.1.3).

    special_rows: first prepare the base's untrained special-token rows (special_tokens.py). False leaves them as
    they are: a known trap, kept so that it can be shown.
    """

    fit: Fit = field(default_factory=lambda: Fit(learning_rate=4e-3, max_steps=120))
    lora: Lora = field(default_factory=Lora)
    special_rows: bool = True


@dataclass(frozen=True)
class Reward:
    """Bradley–Terry without margin (§4.1.2) on pairs of at least `min_strength`.

    margins: Llama 2's term, left out by Llama 3: by how many logits the better answer must win, one number for
    each of `records.STRENGTHS`, weakest first. Empty: no margin.
    """

    fit: Fit = field(default_factory=lambda: Fit(learning_rate=4e-3, max_steps=100))
    lora: Lora = field(default_factory=Lora)
    pairs: int = 1600  # comparisons before round one, and 3 times those of open requests again
    edit_share: float = 0.15
    min_strength: Literal[
        "marginally better", "slightly better", "better", "significantly better"
    ] = "better"
    margins: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dpo:
    """β and the NLL weight are the paper's (§4.1.4). `runs` runs of one stage are averaged (§4.1.5)."""

    fit: Fit = field(default_factory=lambda: Fit(learning_rate=1e-3, max_steps=40))
    lora: Lora = field(default_factory=Lora)
    beta: float = field(default_factory=lambda: float(fact("dpo.beta").value))
    nll_weight: float = field(default_factory=lambda: float(fact("dpo.nll_weight").value))
    mask_special: bool = True
    pairs: int = 1600  # comparisons a round at the most, for DPO: the newest batch only
    runs: int = 2


@dataclass(frozen=True)
class Guarding:
    """The guard (§5.4.7). path: a folder, or a hub id such as meta-llama/Llama-Guard-3-8B.

    scheme: which categories it is asked about: "toy", the small world's eight, or "8B" or "1B", Llama Guard 3's.
    threshold: a score from here on is unsafe; 0 takes the one that was chosen on validation when the guard was
    trained (guard.json beside its weights; 0.5 where there is none).
    """

    path: str = "data/tiny_guard"
    scheme: Literal["toy", "8B", "1B"] = "toy"
    threshold: float = 0.0
    fit: Fit = field(default_factory=lambda: Fit(learning_rate=4e-3, max_steps=400, max_length=400, warmup_steps=10))
    lora: Lora = field(default_factory=Lora)
    examples: int = 12800
    max_fpr: float = 0.03  # on validation, when the threshold is chosen


@dataclass(frozen=True)
class Safety:
    """Safety inside the loop (§5.4). Each part can be switched off, to see what it does.

    on: all of it. written: refusals and help written by annotators, in SFT. filter: the guard takes unsafe
    candidates out before selection. pairs: safety pairs in DPO. held_out: the wording in which no hazard
    is trained on (look-alikes in it are: policies learn what it says, not when to refuse it; the guard never sees it).
    requests: safety requests a round, half of them hazards; also as many, all helped with, for the first policy.
    k: answers to each. test_requests: hazards in known wordings, as many look-alikes, a fifth in the held-out wording.
    """

    on: bool = True
    written: bool = True
    filter: bool = True
    pairs: bool = True
    held_out: str = "encoding"
    requests: int = 480
    k: int = 4
    test_requests: int = 600
    guard: Guarding = field(default_factory=Guarding)


@dataclass(frozen=True)
class EvaluationPlan:
    """How checkpoints are measured: greedy once, and `samples` answers at temperature 1."""

    samples: int = 4
    base_samples: int = 16
    best_of_k: tuple[int, ...] = (1, 2, 4, 8, 16)
    best_of_k_prompts: int = 120  # per skill; also where the reward model's agreement is measured
    control: bool = True  # train SFT on random candidates too, each round
    split: Literal["validation", "test"] = "test"


@dataclass(frozen=True)
class Profile:
    """The dial. `rounds` may be changed on the command line; everything else by `--set part.name=value`."""

    name: str = "tiny"
    rounds: int = 3
    order: Literal["paper", "field_report"] = "paper"
    seed: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    sampling: Sampling = field(default_factory=Sampling)
    sft: Sft = field(default_factory=Sft)
    reward: Reward = field(default_factory=Reward)
    dpo: Dpo = field(default_factory=Dpo)
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    safety: Safety = field(default_factory=Safety)


TINY = Profile()
# The notebooks' run: TINY with fewer prompts and steps, read on validation prompts; about two minutes a round.
COURSE = dataclasses.replace(
    TINY, name="course", rounds=2,
    data=dataclasses.replace(TINY.data, train_prompts=240, preference_prompts=320, test_per_skill=60),
    sampling=dataclasses.replace(TINY.sampling, more_for_unsolved=0),
    sft=dataclasses.replace(TINY.sft, fit=dataclasses.replace(TINY.sft.fit, max_steps=60)),
    reward=dataclasses.replace(TINY.reward, fit=dataclasses.replace(TINY.reward.fit, max_steps=40), pairs=480),
    dpo=dataclasses.replace(TINY.dpo, fit=dataclasses.replace(TINY.dpo.fit, max_steps=25), pairs=480, runs=1),
    evaluation=dataclasses.replace(TINY.evaluation, base_samples=4, best_of_k_prompts=30, split="validation"),
    # Lessons 03 to 06 and 08 are about helpfulness; 07 adds safety to their run, stage by stage.
    safety=dataclasses.replace(TINY.safety, on=False, requests=240, test_requests=200),
)  # fmt: skip
PROFILES = {"tiny": TINY, "course": COURSE}


def get_profile(name: str) -> Profile:
    """Return the profile of that name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name.lower() not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; there is: {', '.join(PROFILES)}")
    return PROFILES[name.lower()]


def override(profile: Profile, setting: str) -> Profile:
    """Return `profile` with one setting changed, e.g. "sft.fit.learning_rate=0.001".

    The short form "sft.learning_rate" finds `fit` or `lora` by itself where the name is in only one.

    Raises:
        ValueError: if the setting has no such name, or the value is not of its type.
    """
    path, eq, text = setting.partition("=")
    if not eq or not path:
        raise ValueError(f"cannot read --set {setting!r}; write name=value, e.g. sft.learning_rate=0.002")
    return _set(profile, path.strip().split("."), text.strip(), path.strip())


def _set(part: Any, path: list[str], text: str, whole: str) -> Any:
    names = {f.name: f for f in dataclasses.fields(part)}
    head = path[0]
    if head not in names:
        nested = [
            n for n in names if dataclasses.is_dataclass(getattr(part, n)) and n in ("fit", "lora")
            and head in {f.name for f in dataclasses.fields(getattr(part, n))}
        ]
        if len(nested) != 1:
            raise ValueError(f"unknown setting {whole!r}: {head!r} is not one of {', '.join(names)}")
        return _set(part, [nested[0], *path], text, whole)
    old = getattr(part, head)
    if len(path) > 1:
        if not dataclasses.is_dataclass(old):
            raise ValueError(f"unknown setting {whole!r}: {head!r} has no parts")
        return dataclasses.replace(part, **{head: _set(old, path[1:], text, whole)})
    if dataclasses.is_dataclass(old):
        inside = ", ".join(f.name for f in dataclasses.fields(old))
        raise ValueError(f"setting {whole!r} is a group; name one of its parts: {inside}")
    return dataclasses.replace(part, **{head: _read(old, text, whole)})


def _read(old: Any, text: str, whole: str) -> Any:
    kind = type(old)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is tuple:
            return tuple(float(t) if "." in t else int(t) for t in text.split(","))
        return kind(text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"setting {whole!r} must be a {kind.__name__}, not {text!r}") from error
