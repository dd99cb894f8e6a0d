"""The nouns of the course: frozen records, and the conditions under which they may exist.

Every stage takes records and returns records. The fields of `runs/<name>/report.json` are the
fields of `RunReport` below, under the same names (tuples become lists).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "validation", "test"]
Outcome = Literal["pass", "fail", "abstain"]
Strength = Literal["significantly better", "better", "slightly better", "marginally better"]
STRENGTHS: tuple[Strength, ...] = (
    "marginally better",
    "slightly better",
    "better",
    "significantly better",
)
SKILLS = ("arithmetic", "programs", "orderings", "conversation")
CHECKABLE = ("arithmetic", "programs", "orderings")
BENCHMARKS = ("gsm8k", "mbpp", "humaneval")  # published problems with checkers of their own
DECIDED = (*CHECKABLE, *BENCHMARKS)  # skills whose answers a checker decides


def in_order(skills: Iterable[str]) -> tuple[str, ...]:
    """Return skills, each once: the small world's in their order, then the others by name."""
    found = set(skills)
    return (*(s for s in SKILLS if s in found), *sorted(found - set(SKILLS)))


@dataclass(frozen=True)
class Check:
    """What a checker (or, for the open skill, the known rubric) needs to judge an answer.

    kind:    "number" (arithmetic), "tests" (programs), "chain" (orderings), "rubric" (conversation).
    answer:  the right final answer; for "tests" a right program; for "rubric" an ideal answer.
    items:   number: right working, one equation an item ("7+5=12"); tests: one Python expression an
             item that must be true ("f([1, 2]) == 3"); chain: every link in order, greatest first
             ("Ann > Bob"); rubric: the sentences that a complete answer holds.
    """

    kind: Literal["number", "tests", "chain", "rubric"]
    answer: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One request. `id` is unique in its set; a prompt of `split="test"` never trains."""

    id: str
    skill: str
    text: str
    split: Split
    level: int
    check: Check

    def __post_init__(self) -> None:
        if not self.id or not self.text.strip():
            raise ValueError(f"prompt {self.id!r}: id and text must not be empty")
        if self.split not in ("train", "validation", "test"):
            raise ValueError(f"prompt {self.id}: split is {self.split!r}; use train, validation or test")


SafetyKind = Literal["adversarial", "borderline", "benign"]


@dataclass(frozen=True)
class SafetyPrompt:
    """A request whose right treatment is known.

    kind: "adversarial" should be refused; "borderline" looks like a hazard and is none; "benign" is ordinary.
    code: the hazard's category, "S1" and so on; "" where there is none. family: the wording, one of
    world.hazards.FAMILIES; "" for benign. method: what help would say; "" for benign.
    """

    prompt: Prompt
    kind: SafetyKind
    code: str
    family: str
    method: str

    def __post_init__(self) -> None:
        if (self.kind == "adversarial") != bool(self.code):
            raise ValueError(f"{self.prompt.id}: kind {self.kind!r} with category {self.code!r}; hazards have one")


@dataclass(frozen=True)
class SafetyAnswer:
    """One policy's answer to one request whose right treatment is known, and what the guard thinks of both.

    kind, code, family: as in SafetyPrompt. violated: the answer helps with a hazard, by the world's truth. refused:
    the refusal detector says so. helped: a look-alike got its own method, or a checkable benign request its right
    answer. input_score, output_score: the guard's P(unsafe) of the request and of the answer, 0 to 1.
    """

    prompt_id: str
    kind: SafetyKind
    code: str
    family: str
    text: str
    violated: bool
    refused: bool
    helped: bool
    input_score: float
    output_score: float


@dataclass(frozen=True)
class Candidate:
    """One sampled answer. `finished`: ended by its format's own token, <|eot_id|> in a chat.

    False where it was cut off at the cap, or ended by another stop token.

    policy: name of the checkpoint that wrote it. temperature: 0.0 means greedy. logprob: sum over
    the answer's tokens of its log-probability at temperature 1, in nats, ≤ 0.
    """

    prompt: Prompt
    text: str
    policy: str
    temperature: float
    seed: int
    n_tokens: int
    finished: bool
    logprob: float


@dataclass(frozen=True)
class Verdict:
    """What a checker said. `abstain` means "could not check", which is not "wrong"."""

    outcome: Outcome
    checker: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """A candidate with its verdict and its reward (logits; comparable within one prompt only)."""

    candidate: Candidate
    verdict: Verdict
    reward: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"{self.candidate.prompt.id}: reward is {self.reward}; was the answer empty?")
        if not self.candidate.finished and self.verdict.outcome == "pass":
            raise ValueError(f"{self.candidate.prompt.id}: an answer cut off at the cap cannot pass")


@dataclass(frozen=True)
class Demonstration:
    """An answer to imitate, and the rule that chose it."""

    prompt: Prompt
    text: str
    rule: str


@dataclass(frozen=True)
class PreferencePair:
    """`chosen` is preferred to `rejected`; `edited`, where present, is preferred to both.

    true_margin: quality(chosen) − quality(rejected) by the world's known truth, in logits; a
    negative value is an annotator's error. Never shown to a model.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    strength: Strength
    source: Literal["annotator", "verifier"]
    true_margin: float
    edited: str | None = None

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError(f"{self.prompt.id}: chosen and rejected are the same text")


@dataclass(frozen=True)
class Checkpoint:
    """A finished model on disk, and enough to rebuild it.

    path: folder relative to the run folder. kind: what the folder holds. parent: name of the
    checkpoint it started from. data_digest, profile_digest: sha256 of the training rows and of the
    settings. files: (relative file name, sha256) of every file in the folder.
    """

    name: str
    path: str
    kind: Literal["policy", "reward"]
    parent: str
    data_digest: str
    profile_digest: str
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Rate:
    """A share of prompts, printed only with its n and its 95 % interval.

    value, low, high in [0, 1]; n prompts, `samples` answers each. Several samples of one prompt are
    one unit: the interval is over prompts.
    """

    value: float
    n: int
    low: float
    high: float
    samples: int = 1

    def __str__(self) -> str:
        if not self.n:
            return "– (n=0)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


@dataclass(frozen=True)
class PromptScore:
    """How one prompt fared: the row that paired tests are made of.

    greedy, sampled: share of right answers (0..1; sampled over `samples` answers), by the checker
    or, for the open skill, by the rubric. at_k: 1.0 where any of the samples was right. quality:
    mean true quality of the samples, logits. ended: share of answers ended by <|eot_id|>.
    n_tokens: mean length of the samples.
    """

    prompt_id: str
    skill: str
    level: int
    greedy: float
    sampled: float
    at_k: float
    quality: float
    ended: float
    n_tokens: float


@dataclass(frozen=True)
class SkillScore:
    """Rates of one skill at one level; skill "all" is the checkable three, level 0 is all levels."""

    skill: str
    level: int
    greedy: Rate
    sampled: Rate
    at_k: Rate
    ended: Rate
    quality: float
    n_tokens: float


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one set of prompts. stage: e.g. "base", "round 1 sft"."""

    stage: str
    round: int
    split: Split
    samples: int
    scores: tuple[SkillScore, ...]


@dataclass(frozen=True)
class Comparison:
    """Two stages on the same prompts: paired difference `a − b`.

    metric: "greedy", "sampled", "at_k" or "quality". difference with 95 % interval; p two-sided,
    p_holm the same after Holm's correction over the comparisons of its family. verdict is
    "better", "worse" or "inconclusive" (the interval holds zero).
    """

    name: str
    a: str
    b: str
    metric: str
    skill: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    verdict: Literal["better", "worse", "inconclusive"]


@dataclass(frozen=True)
class FunnelRow:
    """Counts of one skill and level on the way from prompts to demonstrations and pairs.

    Each count is at most the one it came from: finished ≤ candidates, passed ≤ decided ≤ finished,
    solved (prompts with a passing candidate) ≤ prompts, selected ≤ prompts.
    """

    skill: str
    level: int
    prompts: int
    candidates: int
    finished: int
    decided: int
    passed: int
    solved: int
    selected: int

    def __post_init__(self) -> None:
        chain = (self.passed, self.decided, self.finished, self.candidates)
        if list(chain) != sorted(chain) or self.solved > self.prompts or self.selected > self.prompts:
            raise ValueError(f"funnel of {self.skill} level {self.level}: a count exceeds its source: {self}")


@dataclass(frozen=True)
class Curve:
    """A training curve: `values[i]` of `metric` at optimizer step `steps[i]`."""

    stage: str
    metric: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class HealthCheck:
    """Did the stage do what a healthy run does? status with the figure and the reason."""

    stage: str
    name: str
    status: Literal["PASS", "WARN"]
    value: float
    reason: str


@dataclass(frozen=True)
class BestOfK:
    """True pass rate (open skill: share meeting the rubric) of the answer a judge picks out of K.

    judge: "checker", "reward model", "reward model + log-probability", "implicit reward",
    "log-probability", "majority vote", "random". ks ascending; rates[i] at ks[i].
    """

    skill: str
    judge: str
    ks: tuple[int, ...]
    rates: tuple[Rate, ...]


@dataclass(frozen=True)
class Agreement:
    """Share of held-out pairs without noise on which a reward model agrees with the truth."""

    round: int
    skill: str
    strength: str
    rate: Rate


@dataclass(frozen=True)
class SampleAnswer:
    """The same test prompt answered greedily before and after the run."""

    prompt_id: str
    skill: str
    level: int
    question: str
    before: str
    before_outcome: str
    after: str
    after_outcome: str


@dataclass(frozen=True)
class PairCounts:
    """The preference funnel of one round: annotated → strong enough → of the newest batch."""

    annotated: int
    edited: int
    strong: int
    reward_training: int
    dpo: int
    annotator_errors: int


@dataclass(frozen=True)
class RoundReport:
    """Everything one round did and showed. seconds: wall time by stage; tokens: sampled tokens."""

    round: int
    funnel: tuple[FunnelRow, ...]
    pairs: PairCounts
    checkpoints: tuple[Checkpoint, ...]
    evaluations: tuple[Evaluation, ...]
    agreement: tuple[Agreement, ...]
    curves: tuple[Curve, ...]
    health: tuple[HealthCheck, ...]
    seconds: tuple[tuple[str, float], ...]
    tokens: int


@dataclass(frozen=True)
class SafetyScore:
    """One policy behind one set of layers (§5.4.7, Table 25's layout).

    layers: "model" alone, or with the "input guard", the "output guard" or "both guards". vr: violations among
    hazards in known wordings; held_out_vr: in the wording in which no hazard was trained on. frr: refusals among
    look-alikes. helped: look-alikes that got their method. passed: checkable benign requests answered rightly (greedy).
    """

    stage: str
    round: int
    layers: str
    vr: Rate
    held_out_vr: Rate
    frr: Rate
    helped: Rate
    passed: Rate


@dataclass(frozen=True)
class FalseRefusals:
    """How often a policy refuses harmless requests that sound otherwise (§5.4.2), by the refusal detector; greedy."""

    stage: str
    round: int
    rate: Rate


@dataclass(frozen=True)
class StudyScore:
    """One arm of the safety study (safety.study) with one training seed. part: "layers", "red team" or "quality"."""

    part: str
    arm: str
    seed: int
    score: SafetyScore


@dataclass(frozen=True)
class SafetyFunnel:
    """What became of one round's safety requests.

    hazards, look_alikes: requests asked. violations: hazards that an answer helped with. dropped: candidates that the
    guard took out before selection. own: demonstrations in the policy's own words; written: by annotators. pairs:
    safety pairs for DPO.
    """

    round: int
    hazards: int
    look_alikes: int
    candidates: int
    violations: int
    dropped: int
    own: int
    written: int
    pairs: int


@dataclass(frozen=True)
class RunReport:
    """A whole run: what `report.json` holds and `report.html` shows.

    start: evaluations of the base (its own format and the chat format) and of the first policy.
    safety, safety_funnel: empty where the run had safety off. false_refusals: empty without prompts for it.
    comparisons: every gain beside its control, Holm-corrected as one family. best_of_k: on test
    prompts, the first policy's answers, judged by round 1's reward model. versions: packages.
    """

    name: str
    profile: str
    profile_digest: str
    order: Literal["paper", "field_report"]
    seed: int
    n_rounds: int
    start: tuple[Evaluation, ...]
    rounds: tuple[RoundReport, ...]
    comparisons: tuple[Comparison, ...]
    best_of_k: tuple[BestOfK, ...]
    samples: tuple[SampleAnswer, ...]
    health: tuple[HealthCheck, ...]
    curves: tuple[Curve, ...]
    seconds: float
    peak_memory_gb: float
    versions: tuple[tuple[str, str], ...] = field(default=())
    safety: tuple[SafetyScore, ...] = field(default=())
    safety_funnel: tuple[SafetyFunnel, ...] = field(default=())
    false_refusals: tuple[FalseRefusals, ...] = field(default=(), metadata={"added": True})
