"""The safety study: each layer alone and all together, rounds of a red team, quality against quantity.

Every arm trains from the base on the same ordinary demonstrations, and differs in what it learns about safety. The
arms' answers to the same held-out requests are compared in pairs. tools/safety_study.py runs it over three seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random

from llama3_lab.models import load_policy
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.prompts import draw_prompts, held_out
from llama3_lab.pipeline.reports import compare, pooled
from llama3_lab.pipeline.training import train_dpo, train_sft
from llama3_lab.profiles import Dpo, Profile
from llama3_lab.records import Candidate, Comparison, Demonstration, Prompt, PromptScore, SafetyAnswer, SafetyPrompt
from llama3_lab.safety import finetuning, layers, redteam
from llama3_lab.safety.guard import Guard
from llama3_lab.world import hazards
from llama3_lab.world.corpus import ideal

ORDINARY = 400  # demonstrations of the four skills, ideal ones, the same in every arm
K = 4  # answers to a request that the filter chooses from
TARGETS = 40  # of the red team, each in every known wording
QUANTITIES = (120, 960)
NOISES = (0.0, 0.3)  # share of safety demonstrations that treat their request the wrong way round


@dataclass(frozen=True)
class Study:
    """One seed of the study. out: a folder for checkpoints. tests: the held-out requests."""

    profile: Profile
    guard: Guard
    seed: int
    out: Path
    tests: tuple[SafetyPrompt, ...]

    @property
    def known(self) -> tuple[str, ...]:
        """Return the wordings that training may use."""
        return tuple(f for f in hazards.FAMILIES if f != self.profile.safety.held_out)

    def ordinary(self) -> list[Demonstration]:
        """Return ideal demonstrations of the four skills."""
        drawn = draw_prompts(ORDINARY // 4, "train", self.seed, "study", self.benign)
        return [Demonstration(p, ideal(p), "ideal") for p in drawn]

    @property
    def benign(self) -> list[Prompt]:
        """Return the ordinary test prompts."""
        return [t.prompt for t in self.tests if t.kind == "benign"]

    def requests(self, n: int, kind: str, families: Sequence[str], label: str) -> list[SafetyPrompt]:
        """Return n fresh training requests; hazards never in the held-out wording."""
        return finetuning.draw_requests(n, kind, families, "train", self.seed, label)  # type: ignore[arg-type]

    def sft(self, name: str, rows: Sequence[Demonstration]) -> Path:
        """Return the folder of the base finetuned on ordinary demonstrations and `rows`."""
        fit = replace(self.profile.sft.fit, seed=self.seed)
        how, out = replace(self.profile.sft, fit=fit), self.out / name
        if not (out / "training.json").is_file():
            base = Path(self.profile.model.path)
            train_sft(base, [*self.ordinary(), *rows], how, out, self.profile.model)
        return out

    def dpo(self, name: str, parent: Path, asked: Sequence[SafetyPrompt], how: Dpo) -> Path:
        """Return the folder of `parent` after DPO on its own mistakes, put right."""
        out = self.out / name
        if not (out / "training.json").is_file():
            rows = finetuning.pairs(asked, self.answers(parent, asked, 1), self.seed)
            train_dpo(parent, rows, how, out, self.profile.model, self.seed)
        return out

    def answers(self, policy: Path, asked: Sequence[SafetyPrompt], k: int) -> list[Candidate]:
        """Return k sampled answers to each request."""
        how = replace(self.profile.sampling, k=k, seed=self.seed, max_new_tokens=40)
        return sample(load_policy(policy, self.profile.model), [a.prompt for a in asked], how)

    def measure(self, policy: Path) -> list[SafetyAnswer]:
        """Return the policy's answers to the held-out requests."""
        how, model = self.profile.sampling, load_policy(policy, self.profile.model)
        return layers.answer_all(model, self.guard, self.tests, how, self.input_scores)

    @cached_property
    def input_scores(self) -> list[float]:
        """Return the guard's scores of the held-out requests, which are the same for every arm."""
        return layers.input_scores(self.guard, self.tests)


def test_requests(profile: Profile, n: int) -> tuple[SafetyPrompt, ...]:
    """Return n hazards in known wordings, n // 5 in the held-out one, n look-alikes and n ordinary requests."""
    unseen, split = profile.safety.held_out, profile.evaluation.split
    known = [f for f in hazards.FAMILIES if f != unseen]
    draw = finetuning.draw_requests
    return (
        *draw(n, "adversarial", known, split, 0, "study"),
        *draw(max(1, n // 5), "adversarial", (unseen,), split, 0, "out"),
        *draw(n, "borderline", hazards.FAMILIES, split, 0, "study"),
        *layers.benign(held_out(-(-n // 3), split))[:n],
    )  # fmt: skip


def layer_arms(study: Study) -> dict[str, list[SafetyAnswer]]:
    """Return the answers of every arm: no layer, each layer alone, all together; and the filter's control.

    none: people who help with everything. refusal training: annotators refuse hazards asked plainly, and help with
    look-alikes. red-team data: refusals where the helpful model fell to known wordings. filter: the helpful model's
    own answers, without those that the guard calls unsafe; its control: as they are. all: refusal training, red-team
    data, filtered own answers, DPO on safety pairs, both guards.
    """
    n = study.profile.safety.requests // 2
    look_alikes = finetuning.helpful(study.requests(n, "borderline", hazards.FAMILIES, "look-alikes"))
    plain = finetuning.demonstrations(study.requests(n, "adversarial", ("plain",), "plain"))
    everything = finetuning.helpful(study.requests(n, "adversarial", study.known, "everything"))
    none = study.sft("none", [*look_alikes, *everything])
    attacks = red_team(study, none, 0)
    patch = redteam.patch(attacks, n, study.seed)
    own, kept = own_answers(study, none, n)
    arms = {
        "none": none,
        "own answers, unfiltered": study.sft("unfiltered", own),
        "filter": study.sft("filter", kept),
        "refusal training": study.sft("refusal", [*look_alikes, *plain]),
        "red-team data": study.sft("red-team", [*look_alikes, *patch]),
    }
    trained = study.sft("all-sft", [*look_alikes, *plain, *patch, *kept])
    asked = [*study.requests(n, "adversarial", study.known, "pairs"),
             *study.requests(n, "borderline", hazards.FAMILIES, "pairs")]  # fmt: skip
    together = study.dpo("all", trained, asked, study.profile.dpo)
    rows = {name: study.measure(path) for name, path in arms.items()}
    limit = study.guard.threshold
    rows |= {part: layers.behind(rows["none"], part, limit) for part in layers.LAYERS[1:]}
    rows["all training"] = study.measure(together)
    rows["all"] = layers.behind(rows["all training"], "both guards", limit)
    return rows


def own_answers(study: Study, policy: Path, n: int) -> tuple[list[Demonstration], list[Demonstration]]:
    """Return one own answer to each of 2 n requests: by lot among all, and by lot among those that the guard passes."""
    asked = [*study.requests(n, "adversarial", study.known, "own"),
             *study.requests(n, "borderline", hazards.FAMILIES, "own")]  # fmt: skip
    drawn = [c for c in study.answers(policy, asked, K) if c.finished and c.text.strip()]
    kept = finetuning.drop_unsafe(study.guard, drawn).kept
    return _one_each(asked, drawn, study.seed), _one_each(asked, kept, study.seed)


def _one_each(asked: Sequence[SafetyPrompt], drawn: Sequence[Candidate], seed: int) -> list[Demonstration]:
    rng, said = Random(f"own-{seed}"), {a.prompt.id: list[str]() for a in asked}
    for c in drawn:
        said[c.prompt.id].append(c.text)
    return [Demonstration(a.prompt, rng.choice(said[a.prompt.id]), "own") for a in asked if said[a.prompt.id]]


def red_team(study: Study, policy: Path, number: int) -> list[redteam.Attack]:
    """Return one round's attacks on a policy: fresh targets, each in every known wording."""
    targets = redteam.draw_targets(TARGETS, study.known, "train", 1000 * study.seed + number)
    return redteam.attack(load_policy(policy, study.profile.model), targets, study.profile.sampling)


def red_team_rounds(study: Study, rounds: int = 3) -> dict[str, list[SafetyAnswer]]:
    """Return the answers before and after each round of attack → failures → training data → retraining.

    Starts from the model that helps with everything. Failures of all rounds stay; look-alikes as many.
    """
    n = study.profile.safety.requests // 2
    look_alikes = finetuning.helpful(study.requests(n, "borderline", hazards.FAMILIES, "look-alikes"))
    everything = finetuning.helpful(study.requests(n, "adversarial", study.known, "everything"))
    policy, patches = study.sft("none", [*look_alikes, *everything]), list[Demonstration]()
    out = {"before": study.measure(policy)}
    for number in range(1, rounds + 1):
        patches += redteam.patch(red_team(study, policy, number), n, 1000 * study.seed + number)
        policy = study.sft(f"red-team-{number}", [*look_alikes, *patches])
        out[f"round {number}"] = study.measure(policy)
    return out


def quality_arms(study: Study) -> dict[str, list[SafetyAnswer]]:
    """Return the answers after refusal training on few or many demonstrations, carefully or carelessly written."""
    out = {}
    for n in QUANTITIES:
        for noise in NOISES:
            asked = [*study.requests(n // 2, "adversarial", study.known, "quality"),
                     *study.requests(n // 2, "borderline", hazards.FAMILIES, "quality")]  # fmt: skip
            rows = finetuning.demonstrations(asked, noise, study.seed)
            out[arm_name(n, noise)] = study.measure(study.sft(f"quality-{n}-{int(100 * noise)}", rows))
    return out


def arm_name(n: int, noise: float) -> str:
    """Return the name of an arm of the quality experiment."""
    return f"{n} demonstrations, {100 * noise:.0f} % careless"


FLAGS: Mapping[str, Callable[[SafetyAnswer], bool]] = {
    "vr": lambda r: r.violated, "held-out vr": lambda r: r.violated, "frr": lambda r: r.refused,
    "helped": lambda r: r.helped, "passed": lambda r: r.helped,
}  # fmt: skip


def flags(rows: Sequence[SafetyAnswer], metric: str, unseen: str) -> list[PromptScore]:
    """Return one row a request that the metric counts: 1.0 where it was violated, refused, helped or passed.

    Raises:
        ValueError: if there is no such metric.
    """
    if metric not in FLAGS:
        raise ValueError(f"unknown metric {metric!r}; there is: {', '.join(FLAGS)}")
    kind = {"vr": "adversarial", "held-out vr": "adversarial", "passed": "benign"}.get(metric, "borderline")
    wanted = [r for r in rows if r.kind == kind]
    if kind == "adversarial":
        wanted = [r for r in wanted if (r.family == unseen) == (metric == "held-out vr")]
    out = []
    for r in wanted:
        value = float(FLAGS[metric](r))
        out.append(PromptScore(r.prompt_id, hazards.SKILL, 1, value, value, value, value, 1.0, 0.0))
    return out


Seeds = Sequence[Mapping[str, Sequence[SafetyAnswer]]]


def change(seeds: Seeds, name: str, arms: tuple[str, str], metric: str, unseen: str) -> Comparison:
    """Return the paired difference of two arms on the same requests; over several seeds, of each request's mean."""
    pairs = [(flags(s[arms[0]], metric, unseen), flags(s[arms[1]], metric, unseen)) for s in seeds]
    if len(pairs) == 1:
        return replace(compare(name, *pairs[0], "sampled", hazards.SKILL, arms), metric=metric)
    return replace(pooled(name, pairs, "sampled", hazards.SKILL, arms), metric=metric)
