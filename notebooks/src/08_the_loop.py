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
# **25 minutes to read; about 1 to run after notebooks 03 to 06, about 3 without them · 1 GB of memory · any CPU,
# no network**
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
# - tell a gain from noise, and a gain from its control;
# - say what a run keeps, and what no longer follows when one of its stages changes.
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
# answers rise by the end of round two, on validation prompts? Give an interval that you are 90 % sure of.

# %%
from llama3_lab.course.predictions import predict, score

my_prediction = predict("08.gain", 0.05, 0.45)  # change me: low and high gain, in shares

# %% [markdown]
# ## Settings
#
# The same profile as `make run`, with fewer prompts and steps. All notebooks of this course share one run: what
# another notebook has made is kept, what is missing is made now, and each stage says which. Everything below
# works on full TINY as it stands.

# %% tags=["nbval-check-output"]
from llama3_lab import profiles

for name in ("tiny", "course"):
    p = profiles.get_profile(name)
    print(f"{p.name:<7} {p.rounds} rounds, {p.data.train_prompts} prompts each, K = {p.sampling.k}, "
          f"read on the {p.evaluation.split} prompts")

# %% [markdown]
# ## Round zero: a first policy
#
# Before anything can be compared, somebody has to write answers. A few hundred demonstrations, flaws included,
# teach the chat format. `Run` knows the folder, the settings and the prompts that measure; every stage that
# has finished is kept, so running this cell again is free.

# %%
from llama3_lab.pipeline.rounds import begin
from llama3_lab.pipeline.runs import course_run

run = course_run()
start = begin(run)

# %%
for e in start:
    whole = next(s for s in e.scores if s.skill == "all")
    print(f"{e.stage:<18} ended {whole.ended}   sampled {whole.sampled}")

# %% [markdown]
# The format is there at once. Skill did not come with it: asked in the chat format, the first policy is no
# better than the base was in the base's own format. Hold the text to that, on intervals:

# %%
from llama3_lab.pipeline import reports

base, chat, first = (next(s for s in e.scores if s.skill == "all") for e in start)
cost = reports.compare("format", run.rows("first"), run.rows("base", "base"), "sampled", "all")
assert chat.ended.high < 0.2 < 0.9 < first.ended.low, "finetuning should teach the format"
assert cost.high < 0.05, "written demonstrations, flaws included, should not teach skill"
print("format", f"{chat.ended.value:.2f} to {first.ended.value:.2f}")
print(f"skill  {cost.difference:+.2f} [{cost.low:+.2f}, {cost.high:+.2f}]  {cost.verdict}")

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
wrong = reports.rate([float(p.true_margin < 0) for p in batches[0]])
print(f"raters chose the worse answer in {wrong} pairs")
assert wrong.low > 0 and wrong.high < 0.5

# %% [markdown]
# ## One round, written out
#
# This is all of it. Compare with the picture in notebook 00, and with the report's order.

# %% tags=["taught"]
from llama3_lab.pipeline import demonstrations, pairs
from llama3_lab.pipeline.rounds import judge_round, preference_prompts, winners


def my_round(number: int, last: str) -> str:
    """Run one round from the policy named `last`; return the new policy's name."""
    r, prompts = f"round{number}", round_prompts(run, [], number)
    strong = [p for batch in batches for p in pairs.strong(batch, "better")]
    run.reward(f"{r}-reward", strong)                            # 1 reward model, on all preferences so far
    judge_round(run, number, last, prompts)                      # 2 K answers a prompt: verdict and reward
    best, lot = winners(run, number)                             #   the chosen of all rounds so far
    run.sft(f"{r}-sft", best)                                    # 3 the winners feed SFT, from the base
    run.sft(f"{r}-control", lot)                                 #   and the control: as many, by lot
    fresh = preference_prompts(run, number, prompts)             #   prompts that the SFT has not learned
    batches.append(collect(run, f"batch-{number}", (f"{r}-sft", f"{r}-sft"), fresh))
    newest = pairs.strong(batches[-1], "better")
    run.dpo(f"{r}-policy", f"{r}-sft", newest)                   # 4 DPO on the newest batch, 5 averaging
    return f"{r}-policy"


# %%
last = my_round(1, "first")
print(f"{last}, made from {len(batches[1])} new preference pairs")

# %% [markdown]
# ## Same as the package
#
# `run_round` does what you just wrote, and reports on it. It finds your round's stages finished, checks their
# digests, and only measures. If the two differed in a single byte of training data, it would train again.

# %%
from llama3_lab.pipeline.rounds import run_round


def trained() -> set[str]:
    return {f"{p.name} {p.stat().st_mtime_ns}" for p in (run.folder.path / "checkpoints").glob("round1-*")}


before = trained()
report_1 = run_round(run, 1, batches[:1], round_prompts(run, [], 1))
assert trained() == before, "the package made a stage that my_round did not make"
print("stages:", ", ".join(c.name for c in report_1.checkpoints))

# %% [markdown]
# ## The second round
#
# The same call, from the new policy. Rejection sampling now draws from a better model; SFT starts from the
# base again, as in the paper (section 4.1.3). Round two goes without the control, which costs a training and
# teaches the same thing again; `make run` has it in every round.

# %%
from dataclasses import replace

plan = replace(run.profile, evaluation=replace(run.profile.evaluation, control=False))
report_2 = run_round(replace(run, profile=plan), 2, batches, round_prompts(run, [], 2))
print(f"sampled {report_1.tokens:,} tokens for round 1, {report_2.tokens:,} for round 2")

# %% [markdown]
# Is the machinery well? Each training is checked against what a healthy one does. A WARN stops nothing; it
# asks to be looked at.

# %%
for check_up in (*report_1.health, *report_2.health):
    print(f"{check_up.status}  {check_up.stage:<15} {check_up.name}: {check_up.reason}")

# %% [markdown]
# ## The funnel
#
# Candidates → finished → passed → prompts solved → demonstrations. Watch the hard levels: a strict filter
# removes hard prompts first, the paper's own warning (section 4.3.1). `make run` draws again for prompts that
# nobody solved (`sampling.more_for_unsolved`); the course's run does not, so that you can see the loss.

# %%
for report in (report_1, report_2):
    print(f"round {report.round}")
    for f in report.funnel:
        print(f"  {f.skill:<13} level {f.level}: {f.candidates:>4} drawn, {f.passed:>4} passed, "
              f"{f.solved:>2} of {f.prompts} prompts solved, {f.selected:>2} chosen")

# %% [markdown]
# How sure is that? A sample passes less often on the hard level, and the intervals are apart. For the prompts
# that yield nothing, sixty a level are few: where the intervals overlap, the loss is inconclusive at this size.

# %%
from llama3_lab.records import CHECKABLE

judged = judge_round(run, 1, "first", round_prompts(run, [], 1))
groups = [g for g in demonstrations.by_prompt(judged) if g[0].candidate.prompt.skill in CHECKABLE]
passed = {}
for level in (1, 2, 3):
    hits = [[j.verdict.outcome == "pass" for j in g] for g in groups if g[0].candidate.prompt.level == level]
    passed[level], solved = reports.rate([sum(h) / len(h) for h in hits]), reports.rate([float(any(h)) for h in hits])
    print(f"level {level}: a sample passes {passed[level]}; a prompt is solved {solved}")
assert passed[3].high < passed[1].low, "harder prompts should pass the checker less often"

# %%
from llama3_lab.course import views
from llama3_lab.course.figures.loop import describe_step, figure_funnel, figure_rounds

funnel = figure_funnel(report_1)
print(views.describe(funnel))
funnel

# %% [markdown]
# ## Did it learn? The gain beside its control
#
# SFT on the winners against SFT on as many answers drawn by lot from the same candidates: the same prompts,
# the same number, the same steps. The interval decides; where it holds zero, the verdict is "inconclusive",
# and so is the text.

# %%
rows = {name: run.rows(name) for name in ("first", "round1-sft", "round1-control", "round1-policy", "round2-policy")}
for a, b in (("round1-sft", "round1-control"), ("round1-policy", "round1-sft"),
             ("round2-policy", "round1-policy"), ("round2-policy", "first")):
    c = reports.compare(f"{a} over {b}", rows[a], rows[b], "sampled", "all", (a, b))
    print(f"{c.name:<34} {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] n={c.n}  {c.verdict}")

# %%
picked = reports.compare("selection", rows["round1-sft"], rows["round1-control"], "sampled", "all")
gain = reports.compare("two rounds", rows["round2-policy"], rows["first"], "sampled", "all")
assert picked.low > 0, "imitating winners should beat imitating answers drawn by lot"
assert gain.low > 0, "two rounds should beat the first policy by more than chance"
score(my_prediction, gain.difference, gain.low, gain.high)

# %% [markdown]
# The chain as a picture, and the same facts as text:

# %%
chain = figure_rounds(start, [report_1, report_2])
chain

# %%
print(views.describe(chain))

# %% [markdown]
# Which skill moved at which stage? Move the slider along the chain (with the arrow keys, too): each position
# compares a stage with the one before it, on the same prompts. Look for the stage that a skill owes most to.

# %%
from llama3_lab.course.widgets import browse_answers, explore

stages = ["first", "round1-sft", "round1-policy", "round2-sft", "round2-policy"]
steps = list(zip(stages[1:], stages[:-1], strict=True))
explore("stage", [(a, (a, b)) for a, b in steps],
        lambda step: describe_step(step[0], run.rows(step[0]), step[1], run.rows(step[1])))

# %% [markdown]
# ## Safety inside the loop
#
# `make run` has safety on: every round also asks hazards and harmless look-alikes (notebook 07 has both). The
# guard takes unsafe answers out before selection, annotators write the refusals that are missing, and the SFT
# model's mistakes become preference pairs. So each round has two more rates beside its pass rates: violations
# among hazards (VR) and refusals among look-alikes (FRR). The run that you made above leaves safety off, to
# stay short; here is a recorded one with it on, three full rounds.

# %%
from llama3_lab import places
from llama3_lab.course.figures.loop import figure_safety
from llama3_lab.course.latest import read_report

recorded = {on: [read_report(p) for p in sorted((places.project() / "data" / "runs").glob(f"tiny-{on}-seed*.json"))]
            for on in ("safety", "paper")}
safety = figure_safety(recorded["safety"][0])
print(views.describe(safety))
safety

# %% [markdown]
# Violations fall, and not in a straight line: preference training gives back some of what finetuning took away, and
# false refusals move the other way. What the policy lets through, the guards stop. And the wording in which no
# hazard was ever trained on stays open to the policy alone, to the last round.
#
# That was one of three seeds. What does it cost? The same seeds with safety off, recorded earlier: the share of right
# answers after the last round, all guards aside. Of greedy answers the intervals overlap; **sampled ones lose 9 to 14
# points**. Nearly two fifths of the rows that SFT now reads are about safety, in as many steps. It is the price in one
# small world.

# %% tags=["nbval-check-output"]
for with_it in recorded["safety"]:
    without = next(r for r in recorded["paper"] if r.seed == with_it.seed)
    on, off = (next(s for s in r.rounds[-1].evaluations[-1].scores if s.skill == "all") for r in (with_it, without))
    print(f"seed {with_it.seed}, with safety and without: greedy {on.greedy} and {off.greedy}")
    print(f"                                 sampled {on.sampled} and {off.sampled}")
    assert on.sampled.high < off.sampled.low and on.greedy.high > off.greedy.low, "sampled answers pay for safety"
    assert 0.085 < off.sampled.value - on.sampled.value < 0.145
    first, last = (s for s in with_it.safety if s.layers == "model" and s.stage in ("first policy", "round 3 policy"))
    assert last.vr.high < first.vr.low, "three rounds should lower violations by more than chance"

# %% [markdown]
# ## Look at answers
#
# Numbers are not answers. The same validation prompts, before and after; with a kernel, the widget lets you
# browse all of them.

# %%
from llama3_lab.pipeline.rounds import before_and_after

answers = before_and_after(run, "round2-policy")
for s in answers[::3]:
    print(f"asked:  {s.question}\nbefore: {s.before!r} ({s.before_outcome})\nafter:  {s.after!r} ({s.after_outcome})\n")

# %%
browse_answers(answers)

# %% [markdown]
# ## Where each figure comes from
#
# `make run` writes `report.json` and `report.html` from exactly these records. Each file in the run folder is
# one stage's result with its digest; a killed run goes on from the last one that finished. The ledger keeps
# the order: when a stage is made again and comes out differently, what was made after it no longer follows
# from it, and is made again too.

# %%
for path in sorted(run.folder.path.glob("round1-*.jsonl")):
    print(f"{path.name:<36} {path.stat().st_size // 1024:>5} KB")

# %% [markdown]
# ## At 8B
#
# The loop is the same call with another profile (notebook 10). What changes: an open preference set stands in for the
# raters, the problems are published ones, and a round takes hours instead of a minute.
#
# ## What this did not show
#
# - That two rounds at this size say anything about Meta's gains per round: the paper prints none.
# - That the paper's order is better than the report's. Run `--order field_report` with several seeds and
#   compare; one seed is an anecdote.
# - One deviation: our newest preference batch is collected after the round's SFT, two different answers of the
#   SFT model each time. The paper collects it from the best models of earlier rounds.

# %% [markdown]
# ## Exercises
#
# Fill in an answer and run the cell: it says at once whether it is right, or gives a hint.

# %% tags=["nbval-check-output"]
from llama3_lab.course.exercises import check, table

table("08")

# %% [markdown]
# **08.1** At the hardest level, one sample in twenty passes the checker (a share of 0.05). With 16 samples a
# prompt, what share of these prompts yields a demonstration?

# %% tags=["nbval-check-output"]
answer = None  # a share, between 0 and 1
check("08.1", answer)

# %% [markdown]
# **08.2** Write `feed(earlier, newest)`. `earlier` is a list of the preference batches before this round, each
# a list of pairs; `newest` is the batch that this round collects. Return two lists: the pairs that train this
# round's reward model, and the pairs that train its DPO.

# %% tags=["nbval-check-output"]
answer = None  # def feed(earlier, newest): ...
check("08.2", answer)

# %% [markdown]
# **08.3** `museum_control(judged, best)` makes a control with one bug in it. Run both on `sample_of_judged()` and
# look at the rows; then write `fair(control, best)`, which is true for the package's control and false for
# the museum's. It would have to hold for any judged candidates.

# %% tags=["nbval-check-output"]
from llama3_lab.course.exercises.loop import museum_control, sample_of_judged

toy = sample_of_judged()
best = demonstrations.select(toy)
print([d.text for d in museum_control(toy, best)], "against", [d.text for d in best])
answer = None  # def fair(control, best): ...
check("08.3", answer)

# %% [markdown]
# **08.4** Is the paper's order better than the report's, in this small world? List the runs that you would make
# to find out, as pairs `("paper" or "field_report", seed)`. As few as would convince you.

# %% tags=["nbval-check-output"]
answer = None  # [("paper", 0), ...]
check("08.4", answer)

# %% [markdown]
# **08.5** Somebody deletes `batch-0.jsonl`, and other pairs are drawn in its place. Which of the other stages no
# longer follow from what is there? Give a set of names.

# %% tags=["nbval-check-output"]
from llama3_lab.course.exercises.loop import ORDER

print(*ORDER)
answer = None  # {"...", "..."}
check("08.5", answer)

# %% [markdown]
# ## Recap
#
# A round is twelve lines of calls. The winners feed SFT from the base; the newest preferences feed DPO; the
# new policy draws the next round's candidates. Every gain is printed beside its control, with an interval.
#
# **Back to** `00_start_here`, or on to the report: `make run`, then open `report.html` in the run's folder.
