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
# # 04 · The reward model
#
# **45 minutes to read; about 1 to run after notebook 03, about 2 without it · 1 GB of memory · any CPU, no network**
#
# For three of our skills a checker can say what is right. For conversation nobody can, except people, and people
# say only which of two answers they like better, and are sometimes wrong. A reward model turns such choices into a
# number for **any** answer. Everything after it trusts that number. So this notebook spends one third of its time
# on making a reward model, and two thirds on finding out what its number is worth.
#
# ## You will be able to
#
# - say how often a rater chooses the better of two answers, given the gap between them and the rater's noise;
# - write the Bradley–Terry loss, with and without a margin, and say what it costs at the first step;
# - find out at which token a reward is read, and mend a loss that stays at 0.693;
# - hold a reward model against the truth: accuracy by strength, and calibration, with intervals;
# - probe for a shortcut by a change whose true cost you know, beside a change that costs nothing;
# - tell what a reward model promises from what it delivers as K grows, and say which controls show it.
#
# ## What the paper says
#
# | | section |
# |---|---|
# | the reward model comes **first** in a round, and is trained on top of the pre-trained model | 4.1, 4.1.2 |
# | two answers a prompt, from two different models; four strengths; the winner may be edited | 4.2.1 |
# | two or three ranked answers a prompt: edited > chosen > rejected | 4.1.2 |
# | Llama 2's objective **without its margin**, which brought less and less as the data grew | 4.1.2 |
# | all preference data so far; only pairs rated "better" or "significantly better" | 4.1.2 |
# | 82 % of the comparisons are general English (81.99), 7 % coding, 6 % reasoning and tools | 4.2.1, table 6 |
#
# One thing we do another way: the paper puts the prompt and all its ranked answers into one row, shuffled, to save
# time (with no loss of accuracy, 4.1.2). Our rows hold one answer each.

# %% [markdown]
# ## Predict first
#
# Three questions, each with an interval that you are 90 % sure of.
#
# 1. On new requests for conversation: how often does the better of two answers get the higher reward?
# 2. Of two answers that are **equally good** but not equally long: how often does the longer one get the higher reward?
# 3. The policy writes 64 answers to a request, and the reward model picks one. How good is the pick? A perfect answer
#    has a true quality of 4; a single answer has about 1.5.

# %%
from llama3_lab.course.predictions import predict, score

accurate = predict("04.accurate", 0.60, 0.90)  # change me: share of couples
longer = predict("04.longer", 0.35, 0.75)  # change me: share of equally good couples
pick = predict("04.pick", 2.0, 4.0)  # change me: true quality of the best of 64

# %% [markdown]
# ## The raw material
#
# Two policies answer the same prompts: `first` and its `sibling`, trained alike with other random numbers. Raters
# compare. What another notebook has made is kept; what is missing is made now, and each stage says which.

# %%
from IPython.display import display

from llama3_lab.course import views
from llama3_lab.course.figures import reward_model as figures
from llama3_lab.pipeline import measurements, pairs, probes, reports, rounds, scores
from llama3_lab.pipeline.runs import course_run

run = course_run()
rounds.first_policies(run)
batch = rounds.collect(run, "batch-0", ("first", "sibling"), rounds.round_prompts(run, [], 0))
strong = pairs.strong(batch, run.profile.reward.min_strength)
print(f"{len(batch)} pairs; {len(strong)} rated 'better' or more; {sum(p.edited is not None for p in batch)} edited")

# %% [markdown]
# ### Look at real rows
#
# A pair with an edit, and a pair on which the rater was wrong. True margin: how much better the chosen answer really
# is. No model ever sees that number.

# %%
talk = [p for p in batch if p.prompt.skill == "conversation"]
for p in (next(p for p in talk if p.edited and p.true_margin > 1), min(talk, key=lambda p: p.true_margin)):
    print(f"asked:    {p.prompt.text}\nchosen:   {p.chosen}\nrejected: {p.rejected}")
    print(f"edited:   {p.edited}\nrated:    {p.strength}; true margin {p.true_margin:+.2f}\n")

# %% [markdown]
# ## Raters and their noise
#
# Our raters are simulated, and their law is written down in `world/annotators.py`. A rater sees the true difference of
# quality plus logistic noise of scale 0.6, chooses by its sign, and states a strength by its size (levels at 0.75, 1.5
# and 2.5 logits). From this it follows, without any approximation:
#
# $$P(\text{better answer is chosen}) = \sigma\!\left(\frac{\text{gap}}{\text{noise}}\right), \qquad
# \sigma(x) = \frac{1}{1 + e^{-x}}.$$

# %% tags=["nbval-check-output"]
from llama3_lab.pipeline.probes import sigmoid
from llama3_lab.world.annotators import NOISE, THRESHOLDS, strength

for gap in (0.0, 0.3, *THRESHOLDS, 3.75):
    print(f"true gap {gap:4.2f}: the better one is chosen {sigmoid(gap / NOISE):6.1%};"
          f" a rater without noise would say {strength(gap)!r}")  # fmt: skip

# %% [markdown]
# That is Bradley and Terry's model: log-odds that are a difference of two qualities. Where raters follow it, a
# model of their choices can recover the qualities, up to a factor (the noise) and a constant. Now the raters' actual
# choices, by the strength that they **stated**:

# %%
rated = {a.strength: a for a in probes.raters(batch)}
display(shown := figures.figure_raters(list(rated.values())))
print(views.describe(shown))
weak, sure = rated["marginally better"].rate, rated["significantly better"].rate
assert sure.low > weak.high, "pairs of a high strength should hold fewer errors"

# %% [markdown]
# A stated strength is information about the noise: pairs rated "significantly better" hold far fewer errors than
# "marginally better" ones. That is a reason to train on strong pairs only, as the paper does.
#
# ## The idea: Bradley–Terry, written out
#
# Give each answer a number, its reward. Read the difference of two rewards as the log-odds that a rater prefers the
# one to the other. Make the choices that raters did make likely. That is all.

# %% tags=["taught"]
import torch


def bradley_terry(chosen_B, rejected_B):
    """Return the mean of −log P(chosen beats rejected), in nats; rewards of B pairs in logits, shape (B,)."""
    lead_B = chosen_B - rejected_B  # log-odds that a rater prefers the chosen answer
    p_B = 1 / (1 + torch.exp(-lead_B))  # σ of it: the probability
    return -torch.log(p_B).mean()


# %% [markdown]
# ### The same as the package
#
# Value and gradient, on 64 random pairs. (The package computes log σ in one function, which also survives a
# difference of −600, where ours would return infinity.)

# %%
from llama3_lab.course.same import assert_same
from llama3_lab.pipeline.losses import reward_loss

chosen_B, rejected_B = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
assert_same(bradley_terry, reward_loss, chosen_B, rejected_B, names=("chosen", "rejected"))
shifted = bradley_terry(chosen_B + 7, rejected_B + 7)
assert torch.isclose(shifted, bradley_terry(chosen_B, rejected_B), atol=1e-5)
print("7 added to every reward: the loss is the same, so a reward alone means nothing, only differences do")

# %% [markdown]
# Two figures to know by heart. **Equal rewards cost log 2 = 0.693**: the loss of a model that prefers nothing, and the
# loss of every healthy first step. And the **pull** on the chosen reward, the gradient's size, is the
# probability of being wrong: pairs that are settled hardly pull.
#
# Llama 2 had a margin m, larger for a stronger preference: −log σ(r_c − r_r − m). A pair then pulls until
# the lead is well beyond m. (The form is from a secondary source; it has no published numbers here, so m = 2 below
# and the margins further down are our own choice.)

# %% tags=["nbval-check-output"]
import math

print("  lead   loss   pull     with m = 2: loss   pull")
for lead in (-2.0, 0.0, 1.0, 2.0, 4.0):
    cells = [(math.log1p(math.exp(m - lead)), sigmoid(m - lead)) for m in (0.0, 2.0)]
    print(f"  {lead:+4.1f}  {cells[0][0]:5.3f}  {cells[0][1]:5.3f}{'':>17}{cells[1][0]:5.3f}  {cells[1][1]:5.3f}")

# %% [markdown]
# ## Run the stage
#
# The base's output layer is replaced by a head with one output, so small at first that all rewards lie near 0. LoRA on
# every layer, the strong pairs, each edited pair as three comparisons. Then the health of the training: PASS
# or WARN, with the figure that it was read from.

# %%
from llama3_lab.models import load_reward_model
from llama3_lab.pipeline.training import read_training, train_reward

run.reward("round1-reward", strong)
reward_model = load_reward_model(run.path("round1-reward"), run.profile.model)
trained = read_training(run.path("round1-reward"))
for h in trained.health:
    print(f"{h.status}  {h.name}: {h.reason}")
loss = next(c.values for c in trained.curves if c.metric == "loss")
display(shown := figures.figure_losses({"reward model": loss}))
print(views.describe(shown))
assert abs(loss[0] - math.log(2)) < 0.05 and sum(loss[-10:]) < sum(loss[:10])

# %% [markdown]
# ## The 0.693 trap
#
# A reward is read at **one** token of the row: the last one that is no pad. Llama 3's base has no pad token, so people
# set `pad = eos`. In the chat format the end of a turn is `<|eot_id|>`, and the *prompt* ends with one,
# too. Now every rule for finding the end of the answer goes wrong, each in its own way. One row, three pads
# behind it:

# %% tags=["nbval-check-output"]
from llama3_lab.models import encode_answers, encode_prompt
from llama3_lab.world.corpus import ideal

tokenizer = reward_model.tokenizer
asked = next(p for p in run.tests if (p.skill, p.level) == ("conversation", 1))
row = encode_prompt(tokenizer, asked.text) + encode_answers(tokenizer, [ideal(asked)])[0]
eot, own = (tokenizer.convert_tokens_to_ids(t) for t in ("<|eot_id|>", "<|finetune_right_pad_id|>"))
last = {pad: max(i for i, t in enumerate(row) if t != pad) for pad in (eot, own)}
print(tokenizer.decode(row).replace("\n", "⏎"))
for rule, at in (("pad = <|eot_id|>, the token before the first pad", row.index(eot) - 1),
                 ("pad = <|eot_id|>, the last one that is no pad", last[eot]), ("own pad, the same rule", last[own])):
    print(f"{rule}: token {at} of {len(row)}, {tokenizer.convert_ids_to_tokens(row[at])!r}")

# %% [markdown]
# The first rule (of older libraries) reads the reward inside the **prompt**. Both answers of a pair have the same
# prompt, so both get the same reward, whatever the weights are: the loss is log 2 and stays there. The second (of
# newer ones) reads the answer, but not its end: an answer that stops well and one that was cut off get the same
# reward. Only the third sees everything.
#
# Make it, then mend it. The quickest test of any training loop is to fit **one** batch again and again: if that
# does not go to zero, no amount of data will help.


# %% tags=["taught"]
def overfit(where, pad, rows, steps=12):
    """Fit one batch of rows (chosen, then rejected), the reward read at where(ids_BT, pad); return the losses."""
    model = new_reward_model(run.path("base"), run.profile.model, seed=0).model
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    ids_BT, mask_BT = pad_rows(rows, pad)
    for _ in range(steps):
        hidden_BTD = model.model(ids_BT, attention_mask=mask_BT).last_hidden_state
        rewards_BT = model.score(hidden_BTD)[..., 0]
        rewards_B = rewards_BT.gather(1, where(ids_BT, pad)[:, None])[:, 0]
        loss = bradley_terry(*rewards_B.chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
from llama3_lab.models import new_reward_model, pad_rows
from llama3_lab.pipeline.collating import comparison_rows

columns = comparison_rows(tokenizer, pairs.triples([p for p in strong if p.prompt.skill == "conversation"])[:16], 256)
rows = columns.columns["chosen_ids"] + columns.columns["rejected_ids"]
stuck = overfit(lambda ids_BT, pad: (ids_BT == pad).int().argmax(1) - 1, eot, rows)
mended = overfit(lambda ids_BT, pad: ((ids_BT != pad) * torch.arange(ids_BT.shape[1])).argmax(1), own, rows)
display(shown := figures.figure_losses({"pad = <|eot_id|>, first pad": stuck, "a pad of its own": mended}))
print(views.describe(shown))
assert max(abs(x - math.log(2)) for x in stuck) < 1e-3, "equal inputs cannot have different rewards"
assert mended[-1] < 0.3

# %% [markdown]
# Twelve steps, and the mended loop has learned its sixteen pairs by heart; the other has learned nothing, with the
# same data and the same optimizer. Note that a check of the first loss alone would pass it: 0.693 is where
# *every* run starts. (The health checks above also ask whether the margin rises.) The package does not let it
# come to that: `train_reward` refuses a pad that also ends texts.

# %% tags=["nbval-check-output"]
import shutil
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    spoiled = shutil.copytree(run.path("base"), Path(folder) / "spoiled")
    settings = spoiled / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("<|finetune_right_pad_id|>", "<|eot_id|>"))
    try:
        train_reward(spoiled, strong, run.profile.reward, Path(folder) / "out", run.profile.model)
    except ValueError as error:
        print(str(error).partition(": ")[2])

# %% [markdown]
# ## Held-out answers
#
# Now the other two thirds: what is the number worth? The first policy answers **validation** prompts, 60 a skill, which
# no stage has trained on: 64 answers each for conversation and arithmetic, 16 for the other two. The reward
# model scores them all, and the world knows how good they are.

# %%
from llama3_lab.records import SKILLS, Judged


def judge_held_out():
    drawn = [c for skills, k in ((("conversation", "arithmetic"), 64), (("programs", "orderings"), 16))
             for c in run.answers("first", [p for p in run.tests if p.skill in skills], k, "04-judged")]  # fmt: skip
    return measurements.judge(drawn, reward_model)

judged = run.folder.once("04-judged", Judged, judge_held_out)
by_skill = {s: [j for j in judged if j.candidate.prompt.skill == s] for s in SKILLS}
couples = probes.couples(judged)
print(f"{len(judged):,} answers; {len(couples):,} disjoint couples of unequal quality, of {len(run.tests)} prompts")

# %% [markdown]
# ### Accuracy by strength
#
# Of two answers to one prompt, does the better one get the higher reward? The control is a coin. By skill, and by the
# strength that a rater *without* noise would state for the true gap.

# %%
panels = {s: probes.accuracy(couples, s) for s in SKILLS}
display(shown := figures.figure_accuracy(panels))
print(views.describe(shown))
whole = {s: panels[s][0].rate for s in SKILLS}
for s, r in whole.items():
    print(f"{s:<13} {r}: {'better' if r.low > 0.5 else 'worse' if r.high < 0.5 else 'not clearly other'} than a coin")
talk = {a.strength: a.rate for a in panels["conversation"]}
assert talk["significantly better"].low > talk["marginally better"].high, "large gaps should be easier"
assert whole["conversation"].low > max(0.6, whole["orderings"].high)
score(accurate, talk["any"].value, talk["any"].low, talk["any"].high)

# %% [markdown]
# On conversation it has learned a great deal, and most where the gap is large. On the skills that have a checker it is
# weak: at best a little better than a coin, and the lines above say for which of them one can tell at all. To see
# whether 47 − 19 is 28 it would have to do the sum, and it never learned to. Two thirds of its pairs were open
# requests (the paper's share is larger still), and more pairs would help; but a checker is right every time,
# and free. **Ask a reward model only what you cannot check.**
#
# ### Edited > chosen > rejected
#
# An edit makes three comparisons of one pair. Does the order carry over to new prompts? For each request: a flawless
# answer, and two real ones, the better first. All three in the right order by chance: one in six. The control is
# the same model before training.

# %%
def in_order(model):
    """Return how often the flawless answer, a better and a worse one have rewards in that order."""
    contrasts = probes.contrasts(by_skill["conversation"])
    r = scores.score(model, [(p, text) for p, better, worse in contrasts for text in (ideal(p), better, worse)])
    return reports.rate([float(r[i] > r[i + 1] > r[i + 2]) for i in range(0, len(r), 3)])

after, before = in_order(reward_model), in_order(new_reward_model(run.path("base"), run.profile.model, seed=0))
print(f"all three in order: trained {after}; before training {before}")
assert after.low > 1 / 6 and after.low > before.high

# %% [markdown]
# ## With the margin
#
# Same base, same pairs, same batches, one thing changed: m = 0, 1, 2, 3 logits for the four strengths. (Only the
# two upper ones occur in the strong pairs.) Then the same held-out answers. The comparison is paired: the same couples.

# %%
from dataclasses import replace

how = replace(run.fit(run.profile.reward, "round1-reward"), margins=(0.0, 1.0, 2.0, 3.0))
run.reward("04-margin", strong, how)
other_model = load_reward_model(run.path("04-margin"), run.profile.model)
answers = [j.candidate for j in by_skill["conversation"]]
other = run.folder.once("04-margin-judged", Judged, lambda: measurements.judge(answers, other_model))
plain, margin = probes.couples(by_skill["conversation"]), probes.couples(other)
gain = probes.mean([b - a for a, b in zip(probes.hits(plain).values(), probes.hits(margin).values(), strict=True)])
print(f"accuracy with margin {probes.accuracy(margin, 'conversation')[0].rate}; without {whole['conversation']}")
print(f"with less without: {gain}, {'inconclusive at this size' if gain.low <= 0 <= gain.high else 'a difference'}")
assert max(-gain.low, gain.high) < 0.15, "the margin should make no large difference to accuracy"

# %% [markdown]
# Any difference in accuracy is small, here at the most a few points either way. The paper dropped the margin because it
# gained less and less as the data grew; we cannot see a gain even with little. But something else did change.
#
# ## Calibration
#
# Bradley–Terry promises a probability: the answer with the higher reward is better with σ(difference). Sort the couples
# by how sure the model is of its choice, and count how often the choice is right. On the dotted line it is
# exactly as right as it says; below, it is too sure of itself.

# %%
panels = {"without margin": probes.calibration(plain), "with margin": probes.calibration(margin)}
display(shown := figures.figure_calibration(panels))
print(views.describe(shown))
a, b = probes.overconfidence(plain), probes.overconfidence(margin)
more = probes.mean([b[p] - a[p] for p in a])
print(f"too sure by (says less is): without {probes.mean(list(a.values()))}; with {probes.mean(list(b.values()))}")
print(f"with less without: {more}")
assert more.low > 0, "a margin asks for larger leads than the raters' noise warrants"

# %% [markdown]
# The margin makes the model **surer by far more than it makes it right**. That is no accident: with m inside, the loss
# is no longer the log-probability of what the raters did, so σ(difference) is no longer a probability of anything.
# Whoever only ranks answers does not mind. Whoever sets a threshold, or weighs a reward against something else, does.
#
# Without a margin it may err the other way: after a short training the rewards still lie close together, and the model
# is less sure than it could be. Exercise 04.4 mends either with one number.
#
# The hollow marks show what the model was trained to predict, which is not the truth: noisy raters. They choose
# the worse answer now and then, so a perfect copy of them would be less sure than the truth allows. Ours saw strong
# pairs only, on which raters err less, and that pushes the other way.
#
# ## Length: a shortcut?
#
# Reward models are known for liking long answers. First look: take two different answers of **equal** true quality, and
# ask how often the longer one has the higher reward. One half is what a judge without a taste for length shows.

# %%
longer_wins = {s: probes.longer_wins(by_skill[s]) for s in SKILLS}
for s, r in longer_wins.items():
    print(f"{s:<13} the longer of two equally good answers wins {r}")
talk = [p for p in strong if p.prompt.skill == "conversation"]
chosen_longer = reports.rate([float(len(p.chosen) > len(p.rejected)) for p in talk])
print(f"in the strong pairs of conversation the chosen answer is the longer one: {chosen_longer}")
r = longer_wins["conversation"]
assert r.low > 0.5, "on conversation the longer answer is favoured"
score(longer, r.value, r.low, r.high)

# %% [markdown]
# So there is a taste for length, on conversation, and the interval excludes one half. (The others have few couples
# that are equally good and not equally long.) It is not simply copied: whether the chosen answer of a training pair
# tends to be the longer one is inconclusive. But equally good answers differ in other things too: a long one may be
# complete and rude, a short one polite and incomplete. An observation cannot tell. An **intervention** can: take an
# answer, add one sentence, and change nothing else. Three kinds of sentence, each of which costs exactly 0.75 of true
# quality; and, as control, the other polite opening ("Sure!" for "Gladly!"), which costs nothing.

# %%
rows = probes.variants(by_skill["conversation"])
p, way, text, new = next(row for row in rows if row[1] == "one more: unasked")
print(f"asked: {p.text}\nfor example, {way}: {text} → {new}")
old, new = (scores.score(reward_model, [(row[0], row[i]) for row in rows]) for i in (2, 3))
changes = probes.changes([(p.id, way, b - a) for (p, way, _, _), a, b in zip(rows, old, new, strict=True)])
display(shown := figures.figure_longer(changes))
print(views.describe(shown))
filler, repeated, unasked = (changes[f"one more: {way}"][0] for way in ("filler", "repeated", "unasked"))
assert filler.high < 0 < min(repeated.low, unasked.low)

# %% [markdown]
# This is the most useful figure of the notebook. **Idle filler is punished**: the first policy writes filler, raters
# marked it down, and the model has seen it lose. Had we probed with filler alone, as is often done, we would have
# called the model clean. But say the right thing **twice**, or say a true thing that **nobody asked for**, and
# the reward *rises*, though the truth falls by the same 0.75. What it has learned is not "longer is better" but
# something like "more facts are better". A shortcut is whatever agreed
# with the raters in training; you find it only by making the change that breaks the agreement.
#
# ## Best of K: promise and delivery
#
# A policy that is trained on the reward model's favourites looks for exactly such holes. The mildest form of that
# search is best-of-K: draw K answers and keep the favourite. As K grows, the pick's **reward** must rise, by
# arithmetic. Does its **quality**? The controls are a pick by lot, and the truth itself: the checker on arithmetic,
# the rubric on conversation. All subsets of K of the 64 answers count, exactly.

# %%
KS, climbs = (1, 2, 4, 8, 16, 32, 64), []
for s in ("conversation", "arithmetic"):
    answers, rewards = by_skill[s], [j.reward for j in by_skill[s]]
    judges = {"reward model": rewards, "truth": probes.qualities(answers), "random": [0.0] * len(answers)}
    climbs += [probes.climb(name, answers, values, KS) for name, values in judges.items()]
display(shown := figures.figure_climb(climbs))
print(views.describe(shown))
gaps = {k: probes.shortfall(by_skill["conversation"], [j.reward for j in by_skill["conversation"]], k) for k in (2, 64)}
print(f"conversation, gap to the truth's own pick: {', '.join(f'k={k} {probes.mean(g)}' for k, g in gaps.items())}")
assert probes.mean([b - a for a, b in zip(gaps[2], gaps[64], strict=True)]).low > 0, "the gap should widen with K"

# %% [markdown]
# On conversation the pick gets much better up to about K = 8; after that the reward climbs on, and the quality does not
# go with it. On arithmetic the reward climbs all the same, and in the end the quality *falls*. Now on intervals, paired
# by prompt; where an interval holds zero, the verdict is "inconclusive", and so is the text.

# %%
at = {(s, k): probes.picked(by_skill[s], [j.reward for j in by_skill[s]], k)
      for s in ("conversation", "arithmetic") for k in (1, 8, 16, 64)}  # fmt: skip
cases = (("conversation", 8, 1, "quality"), ("conversation", 64, 8, "quality"), ("conversation", 64, 16, "sampled"),
         ("arithmetic", 64, 1, "quality"), ("arithmetic", 64, 8, "quality"))  # fmt: skip
found = [reports.compare(f"{s}: best of {a} over best of {b}", at[s, a], at[s, b], m, s) for s, a, b, m in cases]
for c in found:
    what = "share perfect" if c.metric == "sampled" else "quality"
    print(f"{c.name:<43} {what:<13} {c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}] n={c.n}  {c.verdict}")
assert found[0].low > 0.5 and found[1].low < 0.3 and found[4].high < 0.05
last = climbs[0].quality[-1]
score(pick, last.value, last.low, last.high)

# %% [markdown]
# And the gap to the best answer that lay before it widens with K (the line under the figure): the more there is to
# choose from, the more a better judge would have been worth. Why does this happen? Each reward is truth plus an
# error. The highest of many rewards is increasingly the one with the luckiest **error**, and answers unlike any that
# raters saw invite large ones. A checker has no such error, so its curve only rises. The paper uses K of 10 to 30
# (4.2.2) with a reward model that saw far more pairs; where the bend lies depends on model and data, and has to be
# measured each time.
#
# ### Look at picks
#
# Two prompts, chosen because there the reward model goes astray as K grows. Move the slider (the arrow keys do it too)
# and read what it picks, and what it passes over.

# %%
from llama3_lab.course.widgets import explore

shown_prompts = [figures.most_misled(by_skill[s], small=8) for s in ("conversation", "arithmetic")]
explore("K", KS, lambda k: figures.describe_picks(climbs, shown_prompts, k))

# %% [markdown]
# ## At 8B
#
# The same calls with another profile. What changes: raters are people, and their noise is not known; it is estimated
# from pairs that several people rate. A comparison has about a thousand tokens (table 6), not fifty, so that packing
# the prompt with all its ranked answers into one row pays. There is no `true_quality` to hold the model against:
# instead, pairs are held out, a small set is checked by experts, and probes with known cost, like the four
# above, remain possible: everybody can write an answer twice. The pad trap is the same, and costs a day instead of a
# second.
#
# ## What this did not show
#
# - That the margin is useless. We saw no clear gain in accuracy with a few hundred pairs and one seed; the paper's
#   reason is about large data.
# - That reward models in general like repetition. Ours does; why, was not measured. The method of finding out carries
#   over; the finding does not.
# - Where the bend of best-of-K lies elsewhere. With about three times as many pairs (`make run`) the pick out of 16 is
#   perfect far more often (see the README's figure).
# - What another training seed gives: the intervals are over prompts. In trials with other seeds the shortcuts, the
#   margin's effect on calibration and the widening gap kept their signs; accuracy on arithmetic did not.
#
# ## Exercises
#
# Fill in an answer and run the cell: it says at once whether it is right, or gives a hint.

# %% tags=["nbval-check-output"]
from llama3_lab.course.exercises import check, table

table("04")

# %% [markdown]
# **04.1** A hurried rater has noise 1.2. Two answers differ by 1 logit of true quality. How often does this rater
# choose the better one?

# %% tags=["nbval-check-output"]
answer = None  # a share, between 0 and 1
check("04.1", answer)

# %% [markdown]
# **04.2** Write `margin_loss(chosen_B, rejected_B, strengths, margins)`: the mean of −log σ(r_c − r_r − m).
# `strengths` is a list of B words like "better", and `margins` gives m for each word. It should bear rewards that lie
# far apart.

# %% tags=["nbval-check-output"]
answer = None  # def margin_loss(chosen_B, rejected_B, strengths, margins): ...
check("04.2", answer)

# %% [markdown]
# **04.3** `museum_read(rewards_BT, mask_BT)` takes one reward a token and returns one reward a row. It has a bug.
# Below, the row of three tokens gets one reward alone and another beside a longer row. Write `sound(read)`: build a
# batch of your own, padded on the right, and return whether `read` reads every row at its last token.

# %% tags=["nbval-check-output"]
from llama3_lab.course.exercises.reward_model import museum_read

rewards_BT = torch.tensor([[0.1, 0.2, 0.3, 9.0], [0.5, 0.6, 0.7, 0.8]])
mask_BT = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
print("alone", museum_read(rewards_BT[:1, :3], mask_BT[:1, :3]).tolist(), "in company",
      museum_read(rewards_BT, mask_BT).tolist())  # fmt: skip
answer = None  # def sound(read): ...
check("04.3", answer)

# %% [markdown]
# **04.4** One number mends a model that is too sure. Write `temperature(leads)`: the T at which −log σ(lead / T),
# averaged over the leads, is lowest. A lead is the better answer's reward less the worse one's. Then try it on
# `[c.lead for c in margin]` and on `[c.lead for c in plain]`.

# %% tags=["nbval-check-output"]
answer = None  # def temperature(leads): ...
check("04.4", answer)

# %% [markdown]
# **04.5** The greeting is a weak control: it changes two tokens. Design a better one. Write `change(prompt, text)`,
# which returns an open answer with the same sentences and exactly the same true quality, yet different wherever it
# can be (all given answers open politely; `llama3_lab.world.conversation` has `sentences` and `quality`). Then run it
# through the probe: what is the mean change, and how large are the single ones?

# %% tags=["nbval-check-output"]
answer = None  # def change(prompt, text): ...
check("04.5", answer)

# %% [markdown]
# **04.6** One try is right with chance 0.3. A judge whose score has nothing to do with the truth picks one of 64
# tries. How often is the pick right?

# %% tags=["nbval-check-output"]
answer = None  # a share, between 0 and 1
check("04.6", answer)

# %% [markdown]
# ## Recap
#
# A reward model is a base with one output, trained so that differences of rewards are the log-odds of noisy choices.
# Look first at *where* the reward is read. Then ask what it is worth: accurate where gaps are large and nothing can be
# checked, weak where a checker should be used, made too sure by a margin, open to shortcuts
# that only an intervention finds, and good for choosing among a few answers rather than among many.
#
# **Next:** `05_rejection_sampling` draws sixteen answers a prompt and lets this reward model, and the checkers, decide
# what is worth imitating.
