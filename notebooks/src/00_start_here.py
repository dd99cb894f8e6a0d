# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# **10 minutes to read, under a minute to run · under 1 GB of memory · any CPU, no network, no gated weights**
#
# ## What this is
#
# "The Llama 3 Herd of Models" describes how a base model becomes an assistant: human preferences, a reward
# model, rejection sampling, supervised finetuning (SFT), DPO, averaging, and all of that again, six rounds
# long (sections 4.1 and 4.2). The paper does it with 405 billion parameters. This course does it with one
# million, on your machine, in minutes, and measures every step.
#
# The million-parameter Llama is real: the same architecture, the same kind of tokenizer, the same chat
# format. We pre-trained it ourselves on a **small world** in which the truth is known. So wherever the paper
# has to ask human raters whether something got better, we can also look the answer up.
#
# ## You will be able to
#
# - name the stages of a round and say what each one takes and makes;
# - tell the four skills of the small world apart, and say how an answer of each is checked;
# - read a pass rate with its interval, and say what the base model can and cannot do before any training.

# %% [markdown]
# ## Is my machine fine?
#
# `llama3-lab doctor` answers that, on the command line or here. A WARN is worth reading; a FAIL must be
# mended first.

# %%
from llama3_lab import doctor

for finding in doctor.examine("tiny"):
    if finding.name in ("base model", "sandbox", "python"):
        print(f"{finding.status:<5} {finding.name}")

# %% [markdown]
# ## The map
#
# One round, in the order in which data moves (paper, figure 7):
#
# ```
#  prompts ─> candidates ─> verdicts, rewards ─> winners ─> SFT ─> DPO ─> average
#     ^       16 a prompt   checker, reward                 from   on     of the
#     │                     model                           base   pairs  runs
#     └──────────── the next round starts from the new policy <──────────┘
# ```
#
# Each word is a module of `llama3_lab.pipeline`, and each arrow carries one kind of record:

# %% tags=["nbval-check-output"]
import dataclasses

from llama3_lab import records

for noun in (records.Prompt, records.Candidate, records.Verdict, records.Judged, records.PreferencePair):
    print(f"{noun.__name__:<15}", ", ".join(f.name for f in dataclasses.fields(noun)))

# %% [markdown]
# ## The small world: look at real rows first
#
# Three skills have a checker, as in the field report: numbers are compared, programs are run against unit
# tests, chains are checked link by link. The fourth, conversation, has none: there a reward model is needed.

# %% tags=["nbval-check-output"]
from random import Random

from llama3_lab.world.corpus import ideal, make_prompt

rng = Random(2024)
for skill in records.SKILLS:
    prompt = make_prompt(rng, skill, level=2, split="train")
    print(f"{skill}\n  asked: {prompt.text}")
    print("  right: " + ideal(prompt).replace("\n", "\n         "), end="\n\n")

# %% [markdown]
# The text that the base has read was written by **authors who are often wrong**, and wrong in a systematic
# way. Some take the smaller digit from the larger instead of borrowing; some are unsure of `>` and `>=`.
# Here are eight authors answering the same question.

# %% tags=["nbval-check-output"]
from llama3_lab.pipeline.verdicts import check_text
from llama3_lab.world.corpus import write

prompt = make_prompt(Random(5), "arithmetic", level=1, split="train")
print(prompt.text)
for _ in range(8):
    answer = write(prompt, rng)
    verdict = check_text(prompt, answer)
    print(f"{verdict.outcome:<5} {answer.splitlines()}")

# %% [markdown]
# ## Predict first
#
# The base has read thirteen million tokens of such text. Now it gets test questions that put together operations
# and names in ways that no document did. **What share of its greedy answers will be right?** Set your
# interval, low and high, before you run on.

# %%
my_prediction = (0.2, 0.8)  # change me: low and high, both between 0 and 1

# %% [markdown]
# ## The base answers
#
# The base knows no chat format. We ask in the format of its text, `Q:` … `A:` …, and it ends with
# `<|end_of_text|>`, as Llama's base does.

# %%
from pathlib import Path

from llama3_lab.models import load_policy
from llama3_lab.profiles import TINY

root = Path("..").resolve() if Path("../data").is_dir() else Path(".")
base = load_policy(root / TINY.model.path, TINY.model, "base")
n = sum(p.numel() for p in base.model.parameters())
print(f"{n:,} parameters, {base.model.config.num_hidden_layers} layers, {len(base.tokenizer)} tokens")
assert n <= 2_000_000

# %%
from llama3_lab.pipeline.candidates import sample
from llama3_lab.pipeline.prompts import held_out
from llama3_lab.profiles import Sampling

tests = held_out(40, "validation")
greedy = sample(base, tests, Sampling(k=1, temperature=0.0), style="base")
for c in [next(c for c in greedy if c.prompt.skill == s) for s in records.SKILLS]:
    print(f"asked: {c.prompt.text}\nsaid:  " + c.text.replace("\n", "\n       "), end="\n\n")

# %% [markdown]
# ## How often is it right?
#
# A rate without its interval says nothing: with 40 prompts a skill, a true rate of one half shows up as
# anything between about 0.35 and 0.65. `pass@16` asks whether any of 16 sampled answers is right: that is what
# rejection sampling lives on.

# %%
from llama3_lab.pipeline import reports
from llama3_lab.pipeline.measurements import scores_of

drawn = sample(base, tests, Sampling(k=16), style="base")
found = reports.evaluate("base", 0, "validation", scores_of(tests, greedy, drawn), samples=16)
whole = [s for s in found.scores if s.level == 0]
for s in whole:
    print(f"{s.skill:<13} greedy {s.greedy}   sampled {s.sampled}   pass@16 {s.at_k.value:.2f}")

# %% [markdown]
# Three things to see, and the cell below holds them to it: the base is **useful** (for almost every checkable
# prompt some sample is right), **imperfect** (far from always), and **weaker on harder levels**.

# %%
checkable = next(s for s in whole if s.skill == "all")
by_level = {s.level: s.sampled.value for s in found.scores if s.skill == "arithmetic" and s.level}
assert checkable.at_k.low > checkable.sampled.high, "16 tries should beat one by more than chance"
assert checkable.greedy.high < 0.95, "the base should have room to grow"
assert by_level[1] > by_level[3], "more steps should be harder"
low, high = my_prediction
print(f"greedy {checkable.greedy}")
print("your interval holds it" if low <= checkable.greedy.value <= high else "outside your interval: why?")

# %% [markdown]
# ## See it
#
# The same numbers as a figure: sampled pass rate and pass@16 by skill, bars for the 95 % intervals.

# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(7, 2.6))
for offset, (name, mark) in zip((-0.12, 0.12), (("sampled", "o"), ("at_k", "s")), strict=True):
    for i, s in enumerate(whole):
        r = getattr(s, name)
        ax.plot([r.low, r.high], [i + offset] * 2, color="black", lw=1)
        ax.plot(r.value, i + offset, mark, color="black", mfc="white" if name == "at_k" else "black")
ax.set(yticks=range(len(whole)), yticklabels=[s.skill for s in whole], xlim=(0, 1),
       xlabel="share right (filled: one sample, open square: any of 16)")
plt.show()

# %% [markdown]
# ## And in the chat format?
#
# The same base, asked with Llama 3.1's chat template. Its header tokens never occurred in the corpus: their
# rows in the embedding are untrained, exactly as in the real Llama 3 base. An answer counts as well-formed
# when it ends with `<|eot_id|>`.

# %%
chat = sample(base, tests, Sampling(k=4, max_new_tokens=48))
ended = sum(c.finished for c in chat) / len(chat)
print(f"well-formed answers: {ended:.3f} of {len(chat)}")
assert ended < 0.05
print(repr(chat[0].text[:70]))

# %% [markdown]
# ## At 8B
#
# Nothing above names a size: `load_policy`, `sample` and `evaluate` take a real Llama just the same. What
# changes is the profile (which weights, which precision, how many prompts) and the price.
#
# ## What this did not show
#
# - That the small world is like the real one. It is not: its questions are templates and its answers short.
#   What carries over is the machinery and the traps; no figure here is evidence about Meta's models.
# - That these rates are the model's over other questions. They hold for questions drawn as these were.
#
# ## Exercises
#
# 1. **Predict** (2 min). Which skill gains most between `sampled` and `pass@16`? Say it before you look up.
# 2. **Change** (5 min). Sample at temperature 0.5 and 1.5. What happens to `sampled` and to `pass@16`, and
#    why do they not move the same way?
# 3. **Diagnose** (10 min). Take the greedy failures in programs. How many share one misconception?
# 4. **Design** (10 min). The rubric of conversation is *complete, brief, polite*. Write two answers that a
#    hurried rater would rank wrongly.
#
# ## Recap
#
# A round turns prompts into candidates, candidates into verdicts and rewards, and these into training data.
# The base can do a good part of the work already, but not reliably, and not in a chat.
#
# **Next:** `08_the_loop` strings the stages together and lets two rounds run.
