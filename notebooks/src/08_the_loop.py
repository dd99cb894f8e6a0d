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
# # 08 · The loop
#
# **20 minutes to read, about 4 to run · 1 GB of memory · any CPU, no network**
#
# "Post-training is a loop, not a one-shot", says the field report, and here the paper agrees: six rounds,
# each with new preferences, new samples and a new model (section 4.1.6). What the report gets wrong is the
# order and what feeds what. In this notebook you write a round out, run two of them, and see where every
# figure of the final report comes from.
#
# ## You will be able to
#
# - write one round down, in the paper's order, and say which data feeds which stage;
# - read the funnel: how many answers were drawn, passed, chosen;
# - tell a gain from noise, and a gain from its control.
#
# ## What the paper says, and what the report says
#
# | | paper (4.1, figure 7) | field report |
# |---|---|---|
# | order | reward model → rejection sampling → SFT → DPO → averaging | SFT → reward model → DPO |
# | winners of rejection sampling feed | SFT, from the pre-trained base | the next round's preferences |
# | DPO learns from | the newest human preference batches | filtered self-generated data |
#
# The package knows both orders (`--order paper` and `--order field_report`), so that you can run them
# against each other.

# %% [markdown]
# ## Predict first
#
# Round one starts from a policy that has only learned the format. By how much will the share of right sampled
# answers rise by the end of round two, on test prompts? Set an interval before you run.

# %%
my_prediction = (0.05, 0.30)  # change me: low and high gain, in shares

# %% [markdown]
# ## Settings
#
# The same profile as `make run`, with fewer prompts and steps, so that two rounds fit into a few minutes.
# Everything below works on full TINY as it stands.

# %%
from pathlib import Path

from llama3_lab import profiles

root = Path("..").resolve() if Path("../data").is_dir() else Path(".").resolve()
profile = profiles.TINY
smaller = """rounds=2 data.train_prompts=240 data.test_per_skill=60 sampling.k=8 dpo.runs=1 dpo.pairs=480
    reward.pairs=480 evaluation.best_of_k=1,2,4,8 evaluation.best_of_k_prompts=30
    evaluation.split=validation sft.max_steps=60 reward.max_steps=40 dpo.max_steps=25"""
for setting in [*smaller.split(), f"model.path={root / profile.model.path}"]:
    profile = profiles.override(profile, setting)
print(profile.rounds, "rounds,", profile.data.train_prompts, "prompts each, K =", profile.sampling.k)

# %% [markdown]
# ## Round zero: a first policy
#
# Before anything can be compared, somebody has to write answers. A few hundred demonstrations, flaws included,
# teach the chat format. `Run` knows the folder, the settings and the prompts that measure; every stage that
# has finished is kept, so running this cell again is free.

# %%
import tempfile

from llama3_lab.pipeline.prompts import held_out
from llama3_lab.pipeline.rounds import begin
from llama3_lab.pipeline.runs import Run
from llama3_lab.store import RunFolder

folder = Path(tempfile.mkdtemp()) / "two-rounds"
tests = held_out(profile.data.test_per_skill, profile.evaluation.split)
run = Run(RunFolder(folder, profile), profile, tuple(tests))
start = begin(run)

# %%
for e in start:
    whole = next(s for s in e.scores if s.skill == "all")
    print(f"{e.stage:<18} ended {whole.ended.value:.2f}   sampled {whole.sampled}")

# %% [markdown]
# The format is there at once; the skill has not grown, it has even paid for the new format. Hold the text
# to that:

# %%
base, chat, first = (next(s for s in e.scores if s.skill == "all") for e in start)
assert chat.ended.value < 0.05 < 0.9 < first.ended.value, "finetuning should teach the format"
assert first.sampled.value < base.sampled.high, "written demonstrations, flaws included, should not teach skill"
print("format", f"{chat.ended.value:.2f} to {first.ended.value:.2f}")

# %% [markdown]
# ## Preferences: the raw material
#
# Two policies answer the same prompt; a rater says which answer is better, and how much. Our raters are
# simulated: they see the true quality through logistic noise, so their errors can be counted.

# %%
from llama3_lab.pipeline.rounds import collect, round_prompts

batches = [collect(run, "batch-0", ("first", "sibling"), round_prompts(run, [], 0))]
pair = next(p for p in batches[0] if p.prompt.skill == "conversation" and p.strength == "better")
print(pair.prompt.text, f"\n  chosen:   {pair.chosen}\n  rejected: {pair.rejected}\n  rated:    {pair.strength}")
wrong = sum(p.true_margin < 0 for p in batches[0])
print(f"raters chose the worse answer in {wrong} of {len(batches[0])} pairs")
assert 0 < wrong < len(batches[0]) / 2

# %% [markdown]
# ## One round, written out
#
# This is all of it. Compare with the picture in notebook 00, and with the report's order.

# %% tags=["taught"]
from llama3_lab.pipeline import demonstrations, pairs
from llama3_lab.pipeline.rounds import judge_round
from llama3_lab.pipeline.runs import seed_of


def my_round(number: int, last: str) -> str:
    """Run one round from the policy named `last`; return the new policy's name."""
    r, prompts = f"round{number}", round_prompts(run, [], number)
    strong = [p for batch in batches for p in pairs.strong(batch, "better")]
    run.reward(f"{r}-reward", strong)                            # 1 reward model, on all preferences so far
    judged = judge_round(run, number, last, prompts)             # 2 K answers a prompt: verdict and reward
    best = demonstrations.select(judged, seed=seed_of(profile, r))
    lot = demonstrations.select_at_random(judged, best, seed_of(profile, r))
    run.sft(f"{r}-sft", best)                                    # 3 the winners feed SFT, from the base
    run.sft(f"{r}-control", lot)                                 #   and the control: as many, by lot
    batches.append(collect(run, f"batch-{number}", (f"{r}-sft", f"{r}-sft"), prompts))
    newest = pairs.strong(batches[-1], "better")
    run.dpo(f"{r}-policy", f"{r}-sft", newest)                   # 4 DPO on the newest batch, 5 averaging
    return f"{r}-policy"


# %%
last = my_round(1, "first")
print(last, "made from", len(batches[1]), "new preference pairs")

# %% [markdown]
# ## Same as the package
#
# `run_round` does what you just wrote, and reports on it. It finds your round's stages finished, checks their
# digests, and only measures. If the two differed in a single byte of training data, it would train again.

# %%
from llama3_lab.pipeline.rounds import run_round

before = sorted(p.name for p in (folder / "checkpoints").iterdir())
report_1 = run_round(run, 1, batches[:1], round_prompts(run, [], 1))
after = sorted(p.name for p in (folder / "checkpoints").iterdir())
assert before == after, "the package made a stage that my_round did not make"
print("stages:", ", ".join(c.name for c in report_1.checkpoints))

# %% [markdown]
# ## The second round
#
# The same call, from the new policy. Rejection sampling now draws from a better model; SFT starts from the
# base again, as in the paper (section 4.1.3).

# %%
report_2 = run_round(run, 2, batches, round_prompts(run, [], 2))
print(f"sampled {report_1.tokens:,} tokens for round 1, {report_2.tokens:,} for round 2")

# %% [markdown]
# ## The funnel
#
# Candidates → finished → passed → prompts solved → demonstrations. Watch the hard levels: a strict filter
# removes hard prompts first, the paper's own warning (section 4.3.1).

# %%
for report in (report_1, report_2):
    print(f"round {report.round}")
    for f in report.funnel:
        print(f"  {f.skill:<13} level {f.level}: {f.candidates:>4} drawn, {f.passed:>4} passed, "
              f"{f.solved:>2} of {f.prompts} prompts solved, {f.selected:>2} chosen")

# %%
from llama3_lab.course import views

views.figure_funnel(report_1)

# %% [markdown]
# ## Did it learn? The gain beside its control
#
# SFT on the winners against SFT on as many answers drawn by lot from the same candidates: the same prompts,
# the same number, the same steps. The interval decides.

# %%
from llama3_lab.pipeline import reports

rows = {name: run.rows(name) for name in ("first", "round1-sft", "round1-control", "round1-policy", "round2-policy")}
for a, b in (("round1-sft", "round1-control"), ("round1-policy", "round1-sft"),
             ("round2-policy", "round1-policy"), ("round2-policy", "first")):
    c = reports.compare(f"{a} over {b}", rows[a], rows[b], "sampled", "all", (a, b))
    print(f"{c.name:<34} {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]  {c.verdict}")

# %%
c = reports.compare("two rounds", rows["round2-policy"], rows["first"], "sampled", "all")
assert c.low > 0, "two rounds should beat the first policy by more than chance"
low, high = my_prediction
print("your interval holds the gain" if low <= c.difference <= high else "outside your interval: why?")

# %% [markdown]
# ## Look at answers
#
# Numbers are not answers. The same validation prompts, before and after; with a kernel, the widget lets you
# browse all of them.

# %%
from llama3_lab.pipeline.rounds import before_and_after

for s in before_and_after(run, "round2-policy")[::3]:
    print(f"asked:  {s.question}\nbefore: {s.before!r} ({s.before_outcome})\nafter:  {s.after!r} ({s.after_outcome})\n")

# %%
from llama3_lab.course.widgets import browse_answers

browse_answers(before_and_after(run, "round2-policy"))

# %% [markdown]
# ## Where each figure comes from
#
# `make run` writes `report.json` and `report.html` from exactly these records. Each file in the run folder is
# one stage's result with its digest; a killed run goes on from the last one that finished.

# %%
for path in sorted(folder.glob("*.jsonl"))[:12]:
    print(f"{path.name:<36} {path.stat().st_size // 1024:>5} KB")

# %% [markdown]
# ## At 8B
#
# The loop is the same call with another profile. What changes: the raters are people, the checkers run on real
# programs, and a round takes days instead of a minute.
#
# ## What this did not show
#
# - That two rounds at this size say anything about Meta's gains per round: the paper prints none.
# - That the paper's order is better than the report's. Run `--order field_report` with several seeds and
#   compare; one seed is an anecdote.
# - One deviation: our newest preference batch is collected after the round's SFT, two different answers of the
#   SFT model each time. The paper collects it from the best models of earlier rounds.
#
# ## Exercises
#
# 1. **Predict** (2 min). Will a third round add more or less than the second? Run `make run` and check.
# 2. **Change** (10 min). Replace `select` by its rule `"reward"`: no checker. What does the funnel look like
#    then, and what becomes of arithmetic?
# 3. **Diagnose** (10 min). Give `my_round` the pairs of `batches[0]` for DPO in round two (stale pairs).
#    Which comparison notices?
# 4. **Design** (15 min). A control for DPO: as many steps of SFT on the chosen answers. Write it in three lines.
#
# ## Recap
#
# A round is twelve lines of calls. The winners feed SFT from the base; the newest preferences feed DPO; the
# new policy draws the next round's candidates. Every gain is printed beside its control, with an interval.
#
# **Back to** `00_start_here`, or on to the report: `make run`, then open `report.html` in the run's folder.
