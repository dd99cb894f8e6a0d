"""model_card(): what a checkpoint is, in words: data, digests, figures with intervals, safety, licence, how to use it.

Every figure comes from the run's report; what the report does not hold is named as not measured.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from llama3_lab.paper.facts import fact
from llama3_lab.records import Checkpoint, Evaluation, RunReport

META = re.compile(r"llama[-_ ]?(3(?:\.\d)?)", re.I)
SAFETY = {"vr": "violations", "held_out_vr": "violations, unseen wording", "frr": "look-alikes refused",
          "helped": "look-alikes helped", "passed": "benign requests passed"}  # fmt: skip
STAGES = {"sft": "sft", "control": "sft on random", "dpo-1": "dpo", "policy": "policy"}
LEVEL = 0.05  # of significance
Digests = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Origin:
    """Where a run began. base: folder or hub id of the base. vocabulary: rows of its embedding table."""

    base: str
    profile: str
    seed: int
    vocabulary: int

    @property
    def metas(self) -> bool:
        """Whether the base is Meta's, by its name or by its vocabulary: then Meta's licence holds for what is made."""
        named = self.base.startswith("meta-llama/") or META.search(PurePath(self.base).name)
        return not self.own and bool(named or self.vocabulary == fact("architecture.vocabulary").value)

    @property
    def licence(self) -> str:
        """The licence's name as the hub writes it: "llama3.1", "apache-2.0" for this project's own base, or "other"."""
        if self.metas:
            version = META.search(PurePath(self.base).name)
            return f"llama{version[1]}" if version else "other"
        return "apache-2.0" if self.own else "other"

    @property
    def own(self) -> bool:
        """Whether the base is the one that this project pre-trained."""
        return self.base.rstrip("/").endswith("data/tiny_base")

    @property
    def hub(self) -> str:
        """The base's hub id; "" where it is a folder."""
        return self.base if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.base) and not self.own else ""

    @property
    def label(self) -> str:
        """The base's name without a path of the machine that the run was made on."""
        return self.hub or PurePath(self.base).name


def notice(origin: Origin) -> str:
    """Return the text of the NOTICE file that Meta's licence asks for; "" for another base."""
    if not origin.metas:
        return ""
    name = _llama(origin)
    return (f"{name} is licensed under the {name} Community License, "
            "Copyright © Meta Platforms, Inc. All Rights Reserved.\n")  # fmt: skip


def model_card(
    chain: Sequence[Checkpoint], origin: Origin, files: Digests, notes: Sequence[str], report: RunReport | None,
    adapter: bool = False,
) -> str:  # fmt: skip
    """Return the card as Markdown. chain: the checkpoint and its ancestors, newest first. files: (name, sha256)."""
    checkpoint = chain[0]
    parts = [
        _head(checkpoint, origin, adapter), _what(checkpoint, origin, adapter), _data(checkpoint, report),
        _figures(checkpoint, report), _safety(checkpoint, report), _digests(chain, files),
        _use(checkpoint, notes, adapter), _licence(origin), _limits(origin),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _llama(origin: Origin) -> str:
    version = META.search(PurePath(origin.base).name)
    return f"Llama {version[1]}" if version else "Llama 3"


def _head(checkpoint: Checkpoint, origin: Origin, adapter: bool) -> str:
    task = "text-classification" if checkpoint.kind == "reward" else "text-generation"
    lines = ["---", "language: en", f"license: {origin.licence}",
             *([f"base_model: {origin.hub}"] if origin.hub else []),
             f"library_name: {'peft' if adapter else 'transformers'}", f"pipeline_tag: {task}",
             "tags: [llama, llama3-lab]", "---"]  # fmt: skip
    title = f"# {checkpoint.name}"
    return "\n".join([*lines, "", title, *(["", "**Built with Llama**"] if origin.metas else [])])


def _what(checkpoint: Checkpoint, origin: Origin, adapter: bool) -> str:
    kind = "a reward model" if checkpoint.kind == "reward" else "a policy, which answers in Llama 3's chat format"
    form = "LoRA adapter" if adapter else "merged weights"
    return (f"Checkpoint `{checkpoint.name}` of a run of Llama 3 Lab: {kind}. This folder holds its {form}.\n"
            f"Base: `{origin.label}`; profile {origin.profile}, seed {origin.seed}.")  # fmt: skip


def _round(name: str) -> int:
    match = re.match(r"round(\d+)-", name)
    return int(match[1]) if match else 0


def _data(checkpoint: Checkpoint, report: RunReport | None) -> str:
    lines = ["## Data", ""]
    if report is None:
        return "\n".join([*lines, "This run wrote no report; the digests below say what it was trained on."])
    rows = []
    for done in report.rounds:
        if done.round <= _round(checkpoint.name):
            counts = [sum(getattr(f, c) for f in done.funnel) for c in ("prompts", "candidates", "passed", "selected")]
            rows.append([str(done.round), *map(str, counts), str(done.pairs.annotated), str(done.pairs.dpo)])
    if not rows:
        return "\n".join([*lines, "Demonstrations by the world's authors, flaws included; no round's own answers."])
    names = ["round", "prompts", "candidates", "passed", "demonstrations", "pairs annotated", "pairs for DPO"]
    return "\n".join([*lines, f"Order of a round: {report.order}. No test prompt was trained on.", "",
                      *_table(names, rows)])  # fmt: skip


def stage_of(name: str) -> str:
    """Return the stage under which a report holds a checkpoint's figures; "" where it holds none."""
    match = re.fullmatch(r"round(\d+)-(.+)", name)
    if match and match[2] in STAGES:
        return f"round {match[1]} {STAGES[match[2]]}"
    return "first policy" if name == "first" else ""


def _figures(checkpoint: Checkpoint, report: RunReport | None) -> str:
    lines = ["## Figures", ""]
    stage = stage_of(checkpoint.name)
    everywhere = [*report.start, *(e for r in report.rounds for e in r.evaluations)] if report else []
    own = [e for e in everywhere if e.stage == stage]
    if not report or not own:
        return "\n".join([*lines, "Not measured: the run's report holds no evaluation of this checkpoint."])
    before = [e for e in report.start if e.stage == "base, own format"]
    samples = "".join([str(own[0].samples), *(f" (the base: {e.samples})" for e in before)])
    lines += [f"Share of right answers with its 95 % interval over prompts; {own[0].split} prompts, greedy and "
              f"{samples} sampled answers at temperature 1.", ""]  # fmt: skip
    lines += _table(["stage", "skill", "greedy", "sampled", "ended", "quality"], _scores([*before, *own]))
    held = [c for c in report.comparisons if checkpoint.name in (c.a, c.b)]
    if held:
        rows = [[c.name, c.metric, c.skill, f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] n={c.n}",
                 "<0.001" if c.p_holm < 0.001 else f"{c.p_holm:.3f}",
                 c.verdict + "*" * (c.verdict != "inconclusive" and c.p_holm >= LEVEL)] for c in held]  # fmt: skip
        lines += ["", "Against others on the same prompts (paired; p after Holm's correction; * not so after it):", "",
                  *_table(["comparison", "metric", "skill", "difference", "p", "verdict"], rows)]  # fmt: skip
    return "\n".join(lines)


def _scores(evaluations: Iterable[Evaluation]) -> list[list[str]]:
    return [[e.stage, s.skill, str(s.greedy), str(s.sampled), str(s.ended),
             f"{s.quality:+.2f}" if s.skill == "conversation" else "–"]
            for e in evaluations for s in e.scores if s.level == 0]  # fmt: skip


def _safety(checkpoint: Checkpoint, report: RunReport | None) -> str:
    rows = [r for r in getattr(report, "safety", ()) if r.stage == stage_of(checkpoint.name)]
    lines = ["## Safety", ""]
    if not rows:
        return "\n".join([*lines, "Not measured: the run's report holds no safety figures of this checkpoint. Do not "
                          "put it before users."])  # fmt: skip
    names = [f.name for f in dataclasses.fields(rows[0]) if f.name not in ("stage", "round")]
    lines += ["With 95 % intervals, on the run's own toy hazards and their look-alikes. \"model\" is the model alone; "
              "elsewhere a guard stands before it, after it, or both.", "",
              *_table([SAFETY.get(n, n.replace("_", " ")) for n in names],
                      [[_cell(getattr(r, n)) for n in names] for r in rows])]  # fmt: skip
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _digests(chain: Sequence[Checkpoint], files: Digests) -> str:
    rows = [[c.name, c.parent, f"`{c.data_digest}`", f"`{c.profile_digest}`"] for c in chain]
    return "\n".join(["## Digests", "", "What it was made from, newest first (sha256 of rows, and of settings):", "",
                      *_table(["checkpoint", "from", "data", "settings"], rows), "",
                      "Files here:", "", *_table(["file", "sha256"], [[n, f"`{d}`"] for n, d in files])])  # fmt: skip


def _use(checkpoint: Checkpoint, notes: Sequence[str], adapter: bool) -> str:
    if checkpoint.kind == "reward":
        code = ["from transformers import AutoModelForSequenceClassification, AutoTokenizer", "",
                'model = AutoModelForSequenceClassification.from_pretrained(".", num_labels=1)']  # fmt: skip
    else:
        code = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "",
                f'model = AutoModelForCausalLM.from_pretrained("{"PARENT" if adapter else "."}")']  # fmt: skip
    code += ["from peft import PeftModel", "", 'model = PeftModel.from_pretrained(model, ".")'] if adapter else []
    code += ['tokenizer = AutoTokenizer.from_pretrained(".")']
    return "\n".join(["## Use", "", "```python", *code, "```", "", "```text", *notes, "```"])


def _licence(origin: Origin) -> str:
    lines = ["## Licence", ""]
    if origin.metas:
        name = _llama(origin)
        lines += [f"Built with Llama. The weights derive from {name} and are under the {name} Community License (file "
                  "NOTICE), with its acceptable use policy: whoever passes them on gives the licence along, shows "
                  "\"Built with Llama\", and begins the model's name with \"Llama\"."]  # fmt: skip
    elif origin.own:
        lines += ["Apache-2.0, as the base, which Llama 3 Lab pre-trained itself. No weights of Meta's are in it."]
    else:
        lines += [f"That of its base, `{origin.label}`; look there before you pass it on."]
    return "\n".join(lines)


def _limits(origin: Origin) -> str:
    tiny = " It knows a small world of sums, short programs and orderings, and nothing else." if origin.own else ""
    return (f"## Limits\n\nMade for study, not for use.{tiny} What stands under Figures was measured on prompts of the "
            "run's own kind; nothing else was.")  # fmt: skip


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return [line(names), "|" + "---|" * len(names), *map(line, rows)]
