"""Profiles: every setting of a run, in one place. A stage is given its own part, never the whole.

TINY is the default: a Llama of one million parameters that this project pre-trained, on a CPU. All
its choices were made on validation prompts (EXPERIMENTS.md has the runs). ONE_B and EIGHT_B are the same code on one
GPU, with published data. Their choices follow the paper and common practice, and nothing was trained with them here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from llama3_lab.paper.facts import fact

# Copies of gated weights, of the same shape, that need no licence page to be visited (the licence still holds).
STAND_INS = {
    "meta-llama/Llama-3.1-8B": "NousResearch/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.2-1B": "unsloth/Llama-3.2-1B",
}


def _added(default: Any) -> Any:
    """Return a field that came later: at its default it leaves digests as they were, so that older runs go on."""
    return field(default=default, metadata={"added": True})


@dataclass(frozen=True)
class Model:
    """Which base, and where. path: a folder or a hub id; "data/tiny_base" is the committed one.

    stand_in: take the ungated copy of `path` (STAND_INS) instead. method: LoRA on 16-bit weights, or on 4-bit ones
    (QLoRA; bitsandbytes); "auto": LoRA where the planner says that it fits. attention: "auto" is flash_attention_2
    where it is installed, on a GPU, else sdpa. checkpointing: run layers again in the backward pass. launcher: a file
    of configs/accelerate/, by whose processes the stages are trained; "" trains in this process. keep: what a stage
    leaves, "merged" weights, which any program reads, or "adapters" and the name of what they belong on: a hundredth
    of the room at 8B, and merged whenever they are loaded (QLoRA's are always merged).
    """

    path: str = "data/tiny_base"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int = 2  # OpenMP threads; set explicitly, because the default suits an idle machine only
    memory_gb: float = 2.0  # needed beside what is in use; checked before anything is loaded
    stand_in: bool = _added(False)
    method: Literal["auto", "lora", "qlora"] = _added("lora")
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = _added("sdpa")
    checkpointing: bool = _added(False)
    launcher: str = _added("")
    keep: Literal["merged", "adapters"] = _added("merged")

    @property
    def source(self) -> str:
        """The folder or hub id that is loaded: `path`, or its stand-in.

        Raises:
            ValueError: if there is no stand-in for `path`.
        """
        if self.stand_in and self.path not in STAND_INS:
            raise ValueError(f"model.stand_in: none is known for {self.path}; there is one for {', '.join(STAND_INS)}")
        return STAND_INS[self.path] if self.stand_in else self.path


@dataclass(frozen=True)
class Benchmarks:
    """Published data for subject "benchmarks": each a hub id, or a local .jsonl, .json, .csv or .parquet file.

    Columns as published: gsm8k: question, answer; mbpp: task_id, prompt (or text), code, test_list; preferences:
    prompt, chosen, rejected; borderline: prompt, for false refusals, asked of every policy ("": not measured).
    preferences_split: the name of its training split on the hub.
    """

    gsm8k_train: str = "openai/gsm8k"
    gsm8k_test: str = "openai/gsm8k"
    mbpp: str = "google-research-datasets/mbpp"
    preferences: str = "HuggingFaceH4/ultrafeedback_binarized"
    preferences_split: str = "train_prefs"
    borderline: str = ""


@dataclass(frozen=True)
class Data:
    """How many prompts each stage draws. Test prompts: per skill, all levels.

    subject: "world", the small world with its known truth; or "benchmarks", published problems with checkers.
    """

    train_prompts: int = 800  # per round, fresh ones, over the four skills
    preference_prompts: int = 1280  # per round, fresh ones again: what the newest preference batch is collected on
    test_per_skill: int = 200
    demonstrations: int = 400  # round zero: written by the world's authors, flaws included
    prompts_file: str = ""  # a JSONL file of Prompt records that replaces the drawn training prompts
    subject: Literal["world", "benchmarks"] = _added("world")
    benchmarks: Benchmarks = field(default=Benchmarks(), metadata={"added": True})


@dataclass(frozen=True)
class Serving:
    """An OpenAI-compatible server. urls: one or more, with commas between; kind: what may be asked of it."""

    urls: str = ""
    kind: Literal["vllm", "transformers"] = "vllm"
    concurrency: int = 8


@dataclass(frozen=True)
class Sampling:
    """K answers per prompt. temperature 0 is greedy. The paper: K is typically 10–30 (§4.2.2).

    more_for_unsolved: how often a round draws K more for the prompts whose answers have all failed.
    by: "loop", our own, in this process, each prompt read once for its K answers; "continuous", transformers'
    continuous batching, which fills a row's place as soon as it has ended; "server", the one that `serving` names,
    which must serve the policy that is asked (docs/scaling.md).
    """

    k: int = 16
    more_for_unsolved: int = 2
    temperature: float = 1.0
    max_new_tokens: int = 96
    batch_prompts: int = 32  # prompts read at once; rows in flight are k times as many
    seed: int = 0
    by: Literal["loop", "continuous", "server"] = _added("loop")
    serving: Serving = field(default=Serving(), metadata={"added": True})


@dataclass(frozen=True)
class Lora:
    """r: rank; alpha: scale is alpha / r; applied to every linear layer of every block."""

    r: int = 16
    alpha: int = 32


@dataclass(frozen=True)
class Fit:
    """One training run. Names as in TRL. max_steps counts optimizer steps.

    micro_batch: rows (pairs, for reward model and DPO) that a GPU takes at once; 0 leaves it to the planner. The batch
    of an optimizer step stays per_device_train_batch_size. A CPU takes it in two halves.
    """

    learning_rate: float = 2e-3
    max_steps: int = 60
    per_device_train_batch_size: int = 32
    max_length: int = 256
    warmup_steps: int = 5
    adam_beta2: float = 0.95  # a short memory for a short training
    seed: int = 0
    micro_batch: int = _added(0)


@dataclass(frozen=True)
class Sft:
    """Supervised finetuning from the base; loss on the answer only (§4.1.3).

    special_rows: first prepare the base's untrained special-token rows (special_tokens.py). False leaves them as
    they are: a known trap, kept so that it can be shown. embeddings: they and the output layer train in full too. At
    8B they are a billion weights, and without them the prepared rows and LoRA have to do.
    """

    fit: Fit = field(default_factory=lambda: Fit(learning_rate=4e-3, max_steps=120))
    lora: Lora = field(default_factory=Lora)
    special_rows: bool = True
    embeddings: bool = _added(True)


@dataclass(frozen=True)
class Reward:
    """Bradley–Terry without margin (§4.1.2) on pairs of at least `min_strength`.

    margins: Llama 2's term, left out by Llama 3: by how many logits the better answer must win, one number for
    each of `records.STRENGTHS`, weakest first. Empty: no margin. embeddings: as in `Sft`.
    """

    fit: Fit = field(default_factory=lambda: Fit(learning_rate=4e-3, max_steps=100))
    lora: Lora = field(default_factory=Lora)
    pairs: int = 1600  # comparisons before round one, and 3 times those of open requests again
    edit_share: float = 0.15
    min_strength: Literal[
        "marginally better", "slightly better", "better", "significantly better"
    ] = "better"
    margins: tuple[float, ...] = ()
    embeddings: bool = _added(True)


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
# One GPU, published data. Learning rates are those usual for LoRA at this size; the 8B needs a card of 24 GB.
EIGHT_B = Profile(
    name="8b",
    model=Model("meta-llama/Llama-3.1-8B", "bfloat16", "cuda", threads=8, memory_gb=20.0, method="auto",
                attention="auto", checkpointing=True, keep="adapters"),
    data=Data(train_prompts=2000, preference_prompts=1000, test_per_skill=250, subject="benchmarks"),
    sampling=Sampling(k=10, more_for_unsolved=0, max_new_tokens=512, batch_prompts=16, by="continuous"),
    sft=Sft(fit=Fit(1e-4, 300, 32, 1024, 20, 0.999), embeddings=False),
    reward=Reward(fit=Fit(5e-5, 300, 32, 1024, 20, 0.999), pairs=9600, embeddings=False),
    dpo=Dpo(fit=Fit(2e-5, 100, 32, 1024, 10, 0.999), pairs=3200, runs=1),
    evaluation=EvaluationPlan(samples=4, base_samples=4, best_of_k=(1, 2, 4, 8), best_of_k_prompts=100),
    safety=Safety(on=False, guard=Guarding("meta-llama/Llama-Guard-3-8B", "8B")),
)  # fmt: skip
ONE_B = dataclasses.replace(
    EIGHT_B, name="1b",
    model=dataclasses.replace(EIGHT_B.model, path="meta-llama/Llama-3.2-1B", memory_gb=8.0),
    sampling=dataclasses.replace(EIGHT_B.sampling, batch_prompts=64),
    safety=dataclasses.replace(EIGHT_B.safety, guard=Guarding("meta-llama/Llama-Guard-3-1B", "1B")),
)  # fmt: skip
PROFILES = {"tiny": TINY, "course": COURSE, "1b": ONE_B, "8b": EIGHT_B}


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
