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
# # 06 · DPO
#
# **45 minutes to read; about 1½ to run after notebooks 03 to 05, about 4 without them · 1 GB of memory · any CPU, no
# network**
#
# A reward model learns from pairs, and then a policy learns from the reward model. Direct preference optimisation
# leaves out the middle: the policy learns from the pairs, and is its own reward model. The loss is one line. What the
# line does to a model is less simple, and most of it does not show in the loss. So this notebook derives the line,
# checks each step of the derivation by number, and then measures what a training with it does to answers that nobody
# trained on.
#
# ## You will be able to
#
# - derive the DPO loss from the best policy for a reward, and say what β brakes;
# - write the loss in plain torch, and say which changes of a policy it cannot see;
# - say which model is the reference after LoRA and after a round, and tell a wrong one by the first loss;
# - say what the NLL term and the masking of end tokens each do, and how that was measured;
# - hold DPO against its control, and choose the pairs that it learns from.
#
# ## What the paper says
#
# | | where |
# |---|---|
# | DPO rather than PPO: less compute at scale, and better, above all at following instructions (IFEval) | 4.1.4 |
# | learning rate 1e-5, β = 0.1 | 4.1.4 |
# | header and end tokens of **both** answers are left out of the loss: they stand in both, and would be pushed up and down at once. The symptoms were tails that repeat, and abrupt ends | 4.1.4 |
# | an NLL term on the chosen answers, weight 0.2: it keeps the format, and keeps the log-probability of the chosen answers from falling | 4.1.4 |
# | pairs: two answers from two different models, rated at four strengths; the newest batches only | 4.1.4, 4.2.1 |
# | runs with different data or settings are averaged | 4.1.5 |
#
# Not in the paper: the number of steps, the batch size, and which model is the reference. The last of these has
# confused many people, so it gets a section of its own.

# %% [markdown]
# ## Predict first
#
# Two questions, each with an interval that you are 90 % sure of.
#
# 1. We train with the bare DPO loss: no NLL term, no masks. Then we look at better and worse answers that were not in
#    the training. By how many nats has the log-probability of a **better** answer changed? (A nat is a factor of 2.7;
#    an answer has about 20 tokens.)
# 2. DPO learns from a chosen and a rejected answer. Its control, plain SFT, sees the chosen one only, for as many steps.
#    By how much will DPO's answers to open requests be better than the control's? (In quality, from about 0 to 4.)

# %%
from llama3_lab.course.predictions import predict, score

nats = predict("06.chosen", -1.0, 2.0)  # change me: nats, after the bare loss
gain = predict("06.control", -0.2, 0.6)  # change me: quality, DPO minus SFT on the chosen

# %% [markdown]
# ## The stages before
#
# Everything starts from the SFT model of round one. What another notebook has made is kept; what is missing is made
# now, and each stage says which. Two batches of pairs are at hand: **older** pairs, written by the first policy and its
# sibling before this round's SFT, and **fresh** pairs, two different answers of the SFT model itself.

# %%
from llama3_lab.pipeline import demonstrations, pairs, reports, rounds
from llama3_lab.pipeline.runs import course_run, seed_of

run = course_run()
rounds.begin(run)
older = pairs.strong(rounds.collect(run, "batch-0", ("first", "sibling"), rounds.round_prompts(run, [], 0)), "better")
run.reward("round1-reward", older)
prompts = rounds.round_prompts(run, [], 1)
judged = rounds.judge_round(run, 1, "first", prompts)
run.sft("round1-sft", demonstrations.select(judged, seed=seed_of(run.profile, "round1")))
asked = rounds.preference_prompts(run, 1, prompts)
fresh = pairs.strong(rounds.collect(run, "batch-1", ("round1-sft", "round1-sft"), asked), "better")

# %% [markdown]
# ### Look at real rows
#
# Two fresh pairs. The rater sees the true difference through noise and states a strength; pairs below "better" are left
# out. Now and then the rater is wrong.

# %%
for skill in ("arithmetic", "conversation"):
    pair = next(p for p in fresh if p.prompt.skill == skill and p.strength == "better")
    print(f"asked     {pair.prompt.text}")
    for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        print(f"{name:<9} {text.replace(chr(10), ' / ')}")
    print(f"rated     {pair.strength}; in truth better by {pair.true_margin:+.2f}\n")
for name, batch in (("older", older), ("fresh", fresh)):
    print(f"{name}: {len(batch)} pairs, {sum(p.true_margin < 0 for p in batch)} the wrong way round")

# %% [markdown]
# ### The tokens that the masks leave out
#
# Header and end tokens, in brackets. The model reads them all the same; only their log-probabilities do not count. In a
# pair of one-turn answers that is one token each: the `<|eot_id|>` that ends them. (The headers belong to the prompt.)

# %% tags=["nbval-check-output"]
from llama3_lab.models import encode_answers
from llama3_lab.pipeline.training import MASKED_IN_DPO

tokenizer = run.policy("round1-sft").tokenizer
for name, text in (("chosen", "It is red. It eats mice."), ("rejected", "Oh no. It is red.")):
    tokens = tokenizer.convert_ids_to_tokens(encode_answers(tokenizer, [text])[0])
    print(f"{name:<9}", *(f"[{t}]" if t in MASKED_IN_DPO else t.replace("Ġ", "_") for t in tokens))

# %% [markdown]
# ## Where the loss comes from, in five lines
#
# Let $r(y)$ be the reward of an answer $y$ to some prompt, and $\pi_{\text{ref}}$ the model that we start from.
#
# 1. We want reward, and pay β for each nat of distance: maximise over $\pi$ $\quad E_\pi[r] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_{\text{ref}})$.
# 2. The best policy is known in closed form: $\quad \pi^*(y) = \pi_{\text{ref}}(y)\, e^{r(y)/\beta} / Z$.
# 3. Solve that for the reward: $\quad r(y) = \beta \log \frac{\pi^*(y)}{\pi_{\text{ref}}(y)} + \beta \log Z$.
# 4. Raters follow Bradley–Terry: $P(\text{chosen}) = \sigma(r_c - r_r)$. In the difference $\beta \log Z$ cancels.
# 5. So fit the raters with a policy in place of the reward:
#    $\quad \mathcal{L} = -\log \sigma\Big(\beta \Big[\log\frac{\pi(y_c)}{\pi_{\text{ref}}(y_c)} - \log\frac{\pi(y_r)}{\pi_{\text{ref}}(y_r)}\Big]\Big)$.
#
# Line 2 is the only one that needs a thought. Put $\pi^*$ into line 1: what is maximised becomes
# $\beta \log Z - \beta\, \mathrm{KL}(\pi \,\|\, \pi^*)$, and a KL is never below zero. Now by number: one prompt, five possible answers.

# %% tags=["nbval-check-output"]
import torch

ref = torch.tensor([0.40, 0.30, 0.20, 0.08, 0.02], dtype=torch.float64)
reward = torch.tensor([0.0, 1.0, -1.0, 2.0, 3.0], dtype=torch.float64)

best = lambda beta: torch.softmax(ref.log() + reward / beta, 0)  # line 2
worth = lambda policy: policy @ reward - 0.5 * (policy * (policy / ref).log()).sum(-1)  # line 1, with β = 0.5

others = torch.distributions.Dirichlet(torch.ones(5, dtype=torch.float64)).sample((100_000,))
print("better than 100,000 other policies:", bool((worth(others) < worth(best(0.5))).all()))
implied = 0.5 * (best(0.5) / ref).log()
print("implied reward less reward:", [round(x, 4) for x in (implied - reward).tolist()])

# %% [markdown]
# Line 2 holds, and line 3 gives the reward back up to one constant. (Which? $-\beta \log Z$, and it cancels.)
#
# **β is a brake.** Its unit is reward per nat: how much reward an answer must bring to be worth one nat of distance from
# the reference.

# %% tags=["nbval-check-output"]
print("β      policy                          reward  nats")
for beta in (4.0, 1.0, 0.5, 0.25, 0.1):
    policy = best(beta)
    kl = (policy * (policy / ref).log()).sum()
    print(f"{beta:<5g} ", "  ".join(f"{p:.2f}" for p in policy), f"   {policy @ reward:+.2f}   {kl:.2f}")
print("ref   ", "  ".join(f"{p:.2f}" for p in ref), f"   {ref @ reward:+.2f}   0.00")

# %% [markdown]
# And line 5: does the loss, which has never seen a reward, lead to the same policy? Raters compare all pairs of the five
# answers; we minimise their expected loss by gradient descent, from the reference.

# %% tags=["nbval-check-output"]
from torch.nn.functional import logsigmoid


def expected_loss(logits, beta):
    implied = beta * (logits.log_softmax(0) - ref.log())
    preferred = torch.sigmoid(reward[:, None] - reward)  # how often raters prefer row to column
    return -2 * (preferred * logsigmoid(implied[:, None] - implied)).mean()


logits = ref.log().requires_grad_()
optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)
print(f"first loss {expected_loss(logits, 0.5):.4f}")
optimizer.step(lambda: (optimizer.zero_grad(), (loss := expected_loss(logits, 0.5)).backward(), loss)[-1])
print("by DPO    ", "  ".join(f"{p:.3f}" for p in logits.softmax(0)))
print("by line 2 ", "  ".join(f"{p:.3f}" for p in best(0.5)))

# %% [markdown]
# The same policy, and no reward model. What made that work: **every** answer was compared, by endless raters. A training
# has a few hundred pairs and a network that shares its weights among all answers. Everything that goes wrong
# further down goes wrong in this gap.
#
# ## The brake, on real answers
#
# Line 2 works for real answers, too. The first policy gave sixteen answers to each prompt; give each of them the weight
# $e^{r/\beta}$, with the reward model's $r$, and you have the best policy that can be made from these sixteen. As β goes to 0 only the favourite
# is left: **rejection sampling is line 2 with the brake let go**. Here the truth is known as well, so we can
# see what the reward model's optimum is really worth.

# %%
import numpy as np
from scipy.special import rel_entr, softmax

from llama3_lab.course.figures.dpo import Brake
from llama3_lab.pipeline.probes import mean
from llama3_lab.pipeline.truth import true_qualities

BETAS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05)
groups = demonstrations.by_prompt(judged)
rewards = {g[0].candidate.prompt: np.array([j.reward for j in g]) for g in groups}
truth = {g[0].candidate.prompt: np.array(true_qualities([j.candidate for j in g])) for g in groups}


# %%
def brake(skill):
    """Return what line 2 gains and spends at each β, over the prompts of one skill."""
    mine, found = [p for p in rewards if p.skill == skill], []
    for beta in BETAS:
        weights = {p: softmax(rewards[p] / beta) for p in mine}
        found.append([[w @ rewards[p] - rewards[p].mean(), w @ truth[p] - truth[p].mean(),
                       rel_entr(w, 1 / len(w)).sum()] for p, w in weights.items()])  # fmt: skip
    columns = [[mean(np.array(rows)[:, i]) for rows in found] for i in range(3)]
    return Brake(skill, BETAS, *map(tuple, columns))


# %%
from IPython.display import display

from llama3_lab.course import views
from llama3_lab.course.figures import dpo as figures

brakes = [brake("conversation"), brake("orderings")]
shown = figures.figure_brake(brakes)
display(shown)
print(views.describe(shown))
talk, order = brakes
assert talk.quality[-1].low > 0, "on the open skill the reward model's optimum should be truly better"
assert order.quality[-1].high < talk.quality[-1].low, "on orderings it should be worth less than on open requests"

# %% [markdown]
# The reward model's own opinion always rises as the brake is let go: that is what "optimum" means. The truth follows
# only where the reward model is right. On open requests it does; on orderings, where notebook 04 found
# the reward model no better than a coin, the same nats buy little or nothing, and the last row may even cost. β does not know which case
# it is in. It only limits how far a wrong reward can lead.
#
# Move β for one prompt. Each line is one of its different answers, with its weight, reward and true quality.

# %%
from llama3_lab.course.widgets import explore

asked = next(p for p in rewards if p.skill == "conversation" and p.level == 2)
answers = [j.candidate.text for j in next(g for g in groups if g[0].candidate.prompt == asked)]


def at(beta):
    weights, rows = softmax(rewards[asked] / beta), {}
    for text, w, r, q in zip(answers, weights, rewards[asked], truth[asked], strict=True):
        rows[text] = (rows.get(text, (0,))[0] + w, r, q)
    lines = [f"{w:5.2f} {'█' * round(20 * w):<20} {r:+6.2f} {q:+6.2f}  {t}" for t, (w, r, q) in sorted(rows.items(), key=lambda i: -i[1][1])]
    return "\n".join([asked.text, "weight                     reward  truth", *lines])


explore("β", [(f"{b:g}", b) for b in BETAS], at)

# %% [markdown]
# ## The idea in plain torch
#
# Three short functions. An answer's log-probability is a **sum** over its tokens: label −100 marks what does not count (the
# prompt, pads, and with masks the end tokens). The margin compares two *changes*. The reference gets no gradient. The NLL term is
# the chosen answers' cost per token.


# %% tags=["taught"]
def sequence_logps(logits_BTV, labels_BT):
    """Return each row's summed log-probability of its labelled tokens."""
    targets_BT = labels_BT[:, 1:]  # the logits at position t are about token t + 1
    logps_BTV = logits_BTV[:, :-1].log_softmax(-1)
    logps_BT = logps_BTV.gather(2, targets_BT.clamp(min=0)[..., None])[..., 0]
    return (logps_BT * (targets_BT != -100)).sum(1)


def dpo_loss(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta):
    """Return −log σ(β · margin), the mean over the pairs."""
    margin_B = (chosen_B - ref_chosen_B.detach()) - (rejected_B - ref_rejected_B.detach())
    return -logsigmoid(beta * margin_B).mean()


def dpo_nll_loss(dpo, chosen_B, n_chosen_tokens, nll_weight):
    """Return the DPO loss plus the weighted cost of the chosen answers, per token."""
    return dpo - nll_weight * chosen_B.sum() / n_chosen_tokens


# %%
from llama3_lab.course.same import assert_same
from llama3_lab.pipeline import losses

torch.manual_seed(0)
labels_BT = torch.randint(0, 50, (8, 12)).masked_fill(torch.rand(8, 12) < 0.4, -100)
assert_same(sequence_logps, losses.sequence_logps, torch.randn(8, 12, 50), labels_BT)
four = [-30 * torch.rand(8) for _ in range(4)]
assert_same(dpo_loss, losses.dpo_loss, *four, 0.1)
assert_same(dpo_nll_loss, losses.dpo_nll_loss, torch.tensor(0.6), four[0], 97, 0.2)

# %% [markdown]
# ### What the loss cannot see
#
# The loss knows one number a pair, the margin. Whatever leaves the margin alone is invisible to it; and a falling loss may hide that **both**
# answers become less likely. Where does that probability go? To answers that nobody has compared.

# %% tags=["nbval-check-output"]
cases = {"at the start": (-20, -21), "chosen up 2": (-18, -21), "rejected down 2": (-20, -23),
         "both down 5": (-25, -26), "chosen down 5, rejected down 15": (-25, -36)}  # fmt: skip
start = torch.tensor([-20.0]), torch.tensor([-21.0])
for name, pair in cases.items():
    logps = [torch.tensor([float(x)], requires_grad=True) for x in pair]
    loss = dpo_loss(*logps, *start, beta=0.1)
    loss.backward()
    print(f"{name:<32} loss {loss:.3f}   pull on chosen {-logps[0].grad.item():.3f}, on rejected {-logps[1].grad.item():+.3f}")

# %% [markdown]
# The pull is $\beta\,\sigma(-\beta \cdot \text{margin})$, up for the chosen answer and down for the rejected one, equal in size: strongest where
# the policy has the pair the wrong way round, fading where the pair is settled. In the last line the loss is the
# lowest of all, and the chosen answer is $e^5 \approx 150$ times less likely than before. Both added parts of the paper answer to this: the NLL term holds
# the chosen answer up, and the masks take out tokens on which the two pulls meet head on.

# %% [markdown]
# ## Which model is the reference?
#
# The one that the new adapter is put on. A new adapter changes nothing (its B is zero), so at step 0 policy and reference are the same
# model, each margin is 0, and the **first loss is log 2, exactly**.
#
# ```
#  round 1   base ──SFT──> merge ──> round1-sft ──new adapter──DPO──> merge ──> round1-policy
#                                    └─ reference                                    │ writes this
#                                                                                    ▼ round's answers
#  round 2   base ──SFT──> merge ──> round2-sft ──new adapter──DPO──> merge ──> round2-policy
#                                    └─ reference: not round1-policy, not the base
# ```
#
# Libraries save memory: with LoRA they run the reference as *the same model, adapter switched off*. What that gives depends on what
# is underneath:
#
# | you load | adapter off is | the reference? |
# |---|---|---|
# | merged SFT model, new adapter | the SFT model | yes |
# | base, and the SFT adapter, which DPO trains on | the **base** | no, and no error says so |
# | base, SFT adapter, new adapter; all switched off | the **base** | no: switch off the new one only |
#
# `train_dpo` merges, then takes the reference's log-probabilities once, before the new adapter is there. What would each wrong choice have done? No
# training is needed to see it: the pairs' log-probabilities under three models are enough.

# %%
from llama3_lab.pipeline import drift

names = ("round1-sft", "first", "base")  # the parent; the policy before it; the base
thought = {name: drift.pair_logps(run.policy(name), fresh) for name in names}
found = {}
for name, rows in thought.items():
    columns = [torch.tensor([getattr(r, c) for r in of]) for of in (thought["round1-sft"], rows) for c in ("chosen", "rejected")]
    found[name] = dpo_loss(*columns, beta=run.profile.dpo.beta).item()
    margins = [a.margin - b.margin for a, b in zip(thought["round1-sft"], rows, strict=True)]
    word = "PASS" if abs(found[name] - np.log(2)) < 1e-6 else "WARN"
    print(f"{word} reference {name:<11} first loss {found[name]:.4f}, margins {min(margins):+.1f} to {max(margins):+.1f} nats")
assert abs(found["round1-sft"] - np.log(2)) < 1e-6 < abs(found["base"] - np.log(2))

# %% [markdown]
# A margin away from 0 before any training means that pairs count as settled, or as lost, that the new adapter has never
# touched. And the mean can hide it: look at the spread, not only at the first loss. (This is a spread, not an interval: the
# pairs were not drawn to estimate anything.)

# %% [markdown]
# ## Run the stage
#
# DPO on the fresh pairs with the profile's settings: β and NLL weight of the paper, end tokens masked.

# %%
from llama3_lab.pipeline.training import read_training

run.dpo("round1-policy", "round1-sft", fresh)
training = read_training(run.path("round1-dpo-1"))
for h in training.health:
    print(f"{h.status}  {h.name}: {h.reason}")
shown = figures.figure_training({"round1-dpo-1": training.curves})
display(shown)
print(views.describe(shown))
