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
# # 03 · SFT, round one
#
# **45 minutes to read, about 1 to run, 2 when it is the first notebook that you run · 1 GB of memory · any CPU, no
# network**
#
# A base model continues texts. Supervised finetuning (SFT) shows it some hundred conversations, and afterwards it
# answers, and stops. That is the plainest stage of all, and full of traps: nearly everything that goes wrong here
# raises no error and lets the loss fall. So this notebook looks at tokens before it looks at losses, makes
# the worst trap on purpose, and asks what SFT really taught: the format, or the skill?
#
# ## You will be able to
#
# - read a chat token by token, and find out what is wrong with a training row;
# - put the loss on the answers and their ends, and on nothing else;
# - find special-token rows that nobody trained, and mend them;
# - write LoRA out in fifteen lines, and count what it trains;
# - tell format from skill and examples from steps, each with an interval.
#
# ## What the paper says
#
# | | where |
# |---|---|
# | a chat format: header tokens say who speaks, termination tokens say that a turn is over | 4.1.1 |
# | cross-entropy on target tokens only; prompt tokens are masked | 4.1.3 |
# | learning rate 1e-5; 8.5 to 9 thousand steps for the largest models | 4.1.3 |
# | from the pre-trained model, in every round | 4.1.3, 4.1.6 |
# | examples: rejection-sampled answers, synthetic data, and a little that people wrote | 4.2.2 |
# | 4.7 turns and 846 tokens an example on average; the number of examples is not given | Table 7 |
#
# The first round has no earlier policy to sample from. Somebody has to write the first answers, and here the authors
# of the small world do, flaws and all.

# %% [markdown]
# ## Predict first
#
# Two questions, each with an interval that you are 90 % sure of. The base has never seen a chat. We show it 400
# conversations, for 60 steps.
#
# 1. **Format.** What share of its sampled answers will then end as a chat answer should?
# 2. **Skill.** By how much will the share of *right* answers change, against the same base asked in the format of its
#    own corpus? (Negative: it got worse.)

# %%
from llama3_lab.course.predictions import predict, score

format_rate = predict("03.format", 0.4, 0.95)  # change me: share of answers that end properly
skill_gain = predict("03.skill", 0.0, 0.3)  # change me: change of the share of right answers

# %% [markdown]
# ## Round zero
#
# `first_policies` makes the **first policy**: the base, finetuned on written demonstrations. Then it is measured. What
# is there already is kept, and each stage says so. While it works, read on: nothing below depends on how it was done,
# and the rest of the notebook takes it apart.

# %%
from llama3_lab.pipeline import rounds
from llama3_lab.pipeline.runs import course_run

run = course_run()
rounds.first_policies(run, ["first"])
_ = run.scores("first", "first policy", 0)

# %% [markdown]
# ## Real rows
#
# Look before you train. A demonstration is a question and somebody's answer. These authors borrow and carry badly,
# mix up `>` and `>=`, are rude, or forget half of what was asked: this data teaches no skill that the base lacks.

# %% tags=["nbval-check-output"]
from random import Random

from llama3_lab import records
from llama3_lab.pipeline.prompts import draw_prompts
from llama3_lab.world.corpus import write

rng = Random(3)
written = [records.Demonstration(p, write(p, rng), "written") for p in draw_prompts(250, "train", 3, "03", run.tests)]
rng.shuffle(written)
for d in written[:3]:
    print(f"{d.prompt.text}\n   " + d.text.replace("\n", "\n   "), end="\n\n")

# %% [markdown]
# ## The chat, token by token, and what of it is learned
#
# Llama 3.1's template wraps each message: `<|start_header_id|>`, the role, `<|end_header_id|>`, a blank line, the
# text, `<|eot_id|>`. Before all of it stands one `<|begin_of_text|>`. A model reads all tokens, but only those with a
# **label** cost anything: the answer, and the `<|eot_id|>` that ends it. Everything else has the label −100, which
# cross-entropy leaves out.
#
# Two ends, not to be confused. `<|end_of_text|>` ends a **document**; it is what the base learned to say. `<|eot_id|>`
# ends a **turn**. A chat model is taught the second; a program that waits for the first waits in vain.

# %% tags=["nbval-check-output"]
from llama3_lab.course.figures import sft as figures
from llama3_lab.models import load_policy

base = load_policy(run.path("base"), run.profile.model, "base")
tokenizer = base.tokenizer
short = written[1]
print(figures.token_table(tokenizer, short))

# %% [markdown]
# Browse a few more, with the arrow keys. Whatever the skill, the pattern is the same: eleven tokens of wrapping, and
# the word "learned" from the first token of the answer to its `<|eot_id|>`.

# %%
from llama3_lab.course.widgets import explore

options = [(f"{i + 1}: {d.prompt.skill}", d) for i, d in enumerate(written[:8])]
explore("Row", options, lambda demonstration: figures.token_table(tokenizer, demonstration))

# %% [markdown]
# ## Two beginnings
#
# The template writes `<|begin_of_text|>`. The tokenizer that comes with Llama 3 puts one before every text as well (for
# example in OpenRLHF#393). Render first and tokenise afterwards, and the row begins twice. Ours adds none, so we give a
# copy of it the same habit.

# %% tags=["nbval-check-output"]
from copy import deepcopy

from tokenizers.processors import TemplateProcessing

BEGIN = "<|begin_of_text|>"
published, chat = deepcopy(tokenizer), [{"role": "user", "content": short.prompt.text}]
habit = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.bos_token_id)])
published.backend_tokenizer.post_processor = habit
text = published.apply_chat_template(chat, tokenize=False)
print("in one go          ", published.apply_chat_template(chat, return_dict=False)[:4])
print("text, then ids     ", published(text).input_ids[:4])
print("the same, mended   ", published(text, add_special_tokens=False).input_ids[:4])

# %% [markdown]
# Does it matter? Measure it: what do the authors' answers to fresh questions cost the first policy, in nats, with one
# beginning and with two? For this model, about as much; the interval tells how much a difference could have hidden. A
# model that was **trained** with two and is asked with one, or the other way round, is another case, and so is another
# model. It costs one line to look, so look.

# %%
from llama3_lab.models import encode_answers, encode_prompt, token_logprobs
from llama3_lab.pipeline.probes import mean

asked = run.tests[::2]  # validation prompts; no stage trains on them
answers = encode_answers(tokenizer, [write(p, rng) for p in asked])
once = [encode_prompt(tokenizer, p.text) for p in asked]
twice = [[tokenizer.bos_token_id, *ids] for ids in once]
taught = run.policy("first")
costs = [token_logprobs(taught, list(zip(ids, answers, strict=True))) for ids in (once, twice)]
extra = mean([a - b for a, b in zip(*costs, strict=True)])
print(f"an answer costs {-sum(costs[0]) / len(asked):.2f} nats; two beginnings add {extra}")
assert -0.5 < extra.low < extra.high < 0.5, "no great matter for this model"

# %% [markdown]
# ## The loss
#
# Cross-entropy of the labelled tokens, and nothing else. Two details decide whether it is right. The logits at place
# *t* speak about token *t* + 1, so one side must be shifted, once. And the mean is over labelled tokens of the whole
# batch, so a long answer weighs more than a short one.

# %% tags=["taught"]
import torch


def sft_loss(logits_BTV, labels_BT):
    """Mean cost of the labelled tokens, in nats. B rows, T tokens, V vocabulary."""
    logps_BTV = logits_BTV[:, :-1].log_softmax(-1)         # what place t says about token t + 1
    labels_BT = labels_BT[:, 1:]
    counted_BT = labels_BT != -100
    logps_BT = logps_BTV.gather(2, labels_BT.clamp(min=0)[..., None])[..., 0]
    return -(logps_BT * counted_BT).sum() / counted_BT.sum()


# %%
from llama3_lab.course.same import assert_same
from llama3_lab.models import lora_config, pad_rows, quiet
from llama3_lab.pipeline import lora, losses
from llama3_lab.pipeline.collating import demonstration_rows

rows = demonstration_rows(tokenizer, written[:4], 256).columns
labels_BT, _ = pad_rows(rows["labels"], -100)
logits_BTV = torch.randn(*labels_BT.shape, len(tokenizer), generator=torch.Generator().manual_seed(0))
assert_same(sft_loss, losses.sft_loss, logits_BTV, labels_BT, names=["logits", "labels"])
print(f"{labels_BT.numel()} places, {(labels_BT != -100).sum()} of them learned")

# %% [markdown]
# ## LoRA, written out
#
# The paper trains all weights. On one GPU, or on a laptop, most people train a **low-rank update** instead: the layer
# *W* is frozen, and beside it runs *B A*, two thin matrices whose product is added. *B* starts at zero, so a new
# adapter changes nothing; *A* starts at random, because if both were zero, neither would ever get a gradient. After the
# training, *W* + (α / r) · *B A* is one matrix again: nothing is left that would slow the model down.

# %% tags=["taught"]
class LoraLinear(torch.nn.Module):
    def __init__(self, layer, r, alpha):
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), alpha / r
        self.a_RI = torch.nn.Parameter(torch.empty(r, layer.in_features))
        self.b_OR = torch.nn.Parameter(torch.zeros(layer.out_features, r))
        torch.nn.init.kaiming_uniform_(self.a_RI, a=5**0.5)  # as PEFT does

    def forward(self, x):
        return self.layer(x) + self.scale * (x @ self.a_RI.T @ self.b_OR.T)

    def merged(self):
        return self.layer.weight + self.scale * (self.b_OR @ self.a_RI)


# %% [markdown]
# The same three ways: your layer, the package's, and PEFT's, which is what `train_sft` really uses. On one layer of
# the base, with random *x*, *A* and *B*: values and gradients.

# %%
from peft import get_peft_model
from torch.func import functional_call

how = run.profile.sft.lora
with quiet():
    with_peft = get_peft_model(deepcopy(base.model), lora_config(how, "CAUSAL_LM"))
peft_layer = with_peft.base_model.model.model.layers[0].mlp.up_proj
mine, package = (kind(peft_layer.base_layer, how.r, how.alpha) for kind in (LoraLinear, lora.LoraLinear))
inputs = [torch.randn(shape) for shape in ((3, mine.layer.in_features), mine.a_RI.shape, mine.b_OR.shape)]
for layer, names in ((package, ("a_RI", "b_OR")), (peft_layer, ("lora_A.default.weight", "lora_B.default.weight"))):
    assert_same(lambda x, a, b: functional_call(mine, {"a_RI": a, "b_OR": b}, (x,)),
                lambda x, a, b: functional_call(layer, dict(zip(names, (a, b), strict=True)), (x,)), *inputs)  # noqa: B023

# %% [markdown]
# What does it train? At this size an adapter of rank 16 is no saving, since the layers are thin themselves; at 8B it
# is half a percent (exercise 03.2). Mind the second line, which LoRA leaves alone: embeddings and output layer.

# %% tags=["nbval-check-output"]
model = deepcopy(base.model)
whole = sum(p.numel() for p in model.parameters())
adapters = sum(p.numel() for p in lora.add_lora(model, how.r, how.alpha))
tables = 2 * base.model.get_input_embeddings().weight.numel()
print(f"the model                      {whole:>9,}\nembeddings and output layer    {tables:>9,}  {tables / whole:.0%}")
print(f"LoRA, rank {how.r}, 7 layers × {base.model.config.num_hidden_layers}    {adapters:>9,}  {adapters / whole:.0%}")

# %% [markdown]
# ## The trap: rows that nobody trained
#
# No text of the base's corpus held `<|start_header_id|>` or `<|eot_id|>`. What is in those rows? Their embeddings are
# noise from the first day. And in the output layer they were not left at rest: at each of the base's steps the softmax
# pushed them down, **all in the same direction**, until they lay so close together that no hidden state can choose one
# of them.

# %%
from llama3_lab.models import untrained_ids

head_VD, never = base.model.get_output_embeddings().weight.data, untrained_ids(tokenizer)
gap_V = torch.cdist(head_VD, head_VD).fill_diagonal_(float("inf")).min(1).values
seen = sorted({i for d in written for i in tokenizer(d.text).input_ids})
print(f"an output row's nearest neighbour: {gap_V[seen].median():.2f} away for a typical token of the answers, "
      f"{gap_V[never].max():.2f} at most for special ones")  # fmt: skip
logps_V = base.model(torch.tensor([once[0] + answers[0][:-1]])).logits[0, -1].log_softmax(-1)
for token in ("<|end_of_text|>", "<|eot_id|>", "<|python_tag|>"):
    print(f"after a complete answer, {token:<16} {logps_V[tokenizer.convert_tokens_to_ids(token)]:>7.2f} nats")
assert gap_V[never].max() < gap_V[seen].median() / 10

# %% [markdown]
# At the end of an answer, the base gives `<|eot_id|>` a chance of about one in a hundred billion, and just as much to
# `<|python_tag|>`. Asking a low-rank adapter to turn that round, without touching the rows, is asking a lot.
#
# Here is the whole of SFT in one loop: your loss, and a `LoraLinear` in the place of every linear layer. `add_lora`
# puts them there and freezes everything else, tables included.

# %% tags=["taught"]
def finetune(policy, rows, how):
    """Train LoRA adapters on demonstrations, in place; return the loss of each step."""
    torch.manual_seed(how.fit.seed)
    trained = lora.add_lora(policy.model, how.lora.r, how.lora.alpha)
    optimizer = torch.optim.AdamW(trained, how.fit.learning_rate, betas=(0.9, how.fit.adam_beta2), weight_decay=0)
    columns, order, curve = demonstration_rows(policy.tokenizer, rows, how.fit.max_length).columns, Random(0), []
    for _ in range(how.fit.max_steps):
        picked = order.sample(range(len(rows)), how.fit.per_device_train_batch_size)
        ids_BT, mask_BT = pad_rows([columns["input_ids"][i] for i in picked], policy.tokenizer.pad_token_id)
        labels_BT, _ = pad_rows([columns["labels"][i] for i in picked], -100)
        loss = sft_loss(policy.model(ids_BT, attention_mask=mask_BT).logits, labels_BT)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        curve.append(loss.item())
    return curve


# %% [markdown]
# Four starts, otherwise equal: 20 steps of 16 rows.
#
# - **as they are**: the trap;
# - **mean row**: a much-given advice for new tokens: set each to the mean of all other rows;
# - **spread**: the mean, plus noise as wide as those rows are spread: any place, but each its own;
# - **look-alikes**: `prepare_special_rows`, the package's way. Each token of the format starts from a trained token
#   that does its work in the corpus, plus a little noise: a header reads like a blank line, `<|eot_id|>` is said where
#   `<|end_of_text|>` was said. Nothing hidden: `special_tokens.LOOK_ALIKES` is the whole list.

# %%
from dataclasses import replace

from llama3_lab.course.exercises.sft import around_the_mean
from llama3_lab.models import prepare_special_rows
from llama3_lab.pipeline.candidates import sample

starts = {"as they are": lambda m: None, "mean row": lambda m: around_the_mean(m, never, 0),
          "spread": lambda m: around_the_mean(m, never, 1),
          "look-alikes": lambda m: prepare_special_rows(m, tokenizer, 0)}  # fmt: skip
fit = replace(run.profile.sft.fit, max_steps=20, per_device_train_batch_size=16, warmup_steps=2)
small, one_each, two_each = replace(run.profile.sft, fit=fit), *(replace(run.profile.sampling, k=k) for k in (1, 2))
print(f"{fit.max_steps} steps of {fit.per_device_train_batch_size} rows, learning rate {fit.learning_rate}")

# %%
torch.manual_seed(0)
drawn, curves = {}, {}
for name, mend in starts.items():
    policy = load_policy(run.path("base"), run.profile.model, name)
    mend(policy.model)
    curves[name] = finetune(policy, written[:100], small)
    drawn[name] = sample(policy, asked[::2], one_each)
    print(f"{name:<12} loss {curves[name][0]:.2f} → {curves[name][-1]:.2f}")
print(figures.describe_ends([figures.ends_of(name, found, one_each.max_new_tokens) for name, found in drawn.items()]))

# %%
from llama3_lab.pipeline.reports import rate


def over(a, b):
    found = mean([float(y.finished) - x.finished for x, y in zip(drawn[a], drawn[b], strict=True)])
    print(f"{b} over {a}: {found}")
    return found

assert rate([float(c.finished) for c in drawn["as they are"]]).high < 0.3, "the trap should be a trap"
assert over("as they are", "mean row").high < 0.3 < over("as they are", "spread").low, "apart, not in one place"
assert over("as they are", "look-alikes").low > 0.3, "look-alikes should mend it too"
assert over("spread", "look-alikes").high < 0.15 and curves["look-alikes"][0] < curves["spread"][0] / 2

# %% [markdown]
# The trap in one line: same data, same steps, a falling loss in all four, and in two of them a model that cannot end
# its turn. The mean row does not help, because it is the **same** row for all: what must be told apart cannot be.
#
# And one surprise. Look-alikes begin with by far the lowest loss, and yet there is no sign that they end more turns
# than rows in any place that lie apart (last line). The look-alike `<|eot_id|>` lies right beside `<|end_of_text|>`,
# and parting the two takes the adapters some work. Whoever looked at the first losses alone would expect the opposite.
#
# The package goes further: its first SFT trains embeddings and output layer in full beside LoRA, which parts any two
# rows. Is that enough by itself? `Sft.special_rows` is the switch; 20 steps with it off and on.

# %%
from llama3_lab.pipeline.measurements import measure


def measured(name, n, how):
    run.sft(name, written[:n], how)
    return run.folder.once(f"{name}-scores", records.PromptScore, lambda: measure(run.policy(name), asked, two_each))


off, on = measured("03-trap", 100, replace(small, special_rows=False)), measured("03-n100-s20", 100, small)
helped = mean([b.ended - a.ended for a, b in zip(off, on, strict=True)])
print(f"ended: off {rate([s.ended for s in off], 2)}, on {rate([s.ended for s in on], 2)}, difference {helped}")
assert helped.low > 0.2, "prepared rows should help where all rows train, too"

# %% [markdown]
# Training the tables is no substitute, at least not in 20 steps: rows that start alike take long to part. Does it catch
# up with more? Change `max_steps` and see.

# %% [markdown]
# ## Learning curves
#
# Three trainings: the first policy, and the two short ones. Health checks say PASS or WARN, and why. The trap passes
# them: its loss falls too. **A falling loss says that something is learned, not that the right thing is.** And look
# where the share of foreseen tokens begins: nine in ten, before the first step. The base knows these texts. What it has
# to learn is one token in each answer.

# %%
from IPython.display import display

from llama3_lab.course import views
from llama3_lab.pipeline.health import read_training

folders = {"first policy": "first", "rows prepared": "03-n100-s20", "rows as they were": "03-trap"}
trainings = {name: read_training(run.path(folder)) for name, folder in folders.items()}
for health in [h for t in trainings.values() for h in t.health]:
    print(f"{health.status} {health.stage}: {health.name}: {health.reason}")
figure = figures.figure_curves({name: t.curves for name, t in trainings.items()})
display(figure)
views.describe(figure)

# %% [markdown]
# ## The control: how much of it is training?
#
# The base could not end a chat answer; the first policy can. But two things were done to it: rows were prepared, and
# then it was trained. The control has the first without the second: look-alike rows, **no step at all**.

# %%
control = load_policy(run.path("base"), run.profile.model, "prepared")
prepare_special_rows(control.model, control.tokenizer, 0)
cap, models = two_each.max_new_tokens, {"base": base, "rows prepared, no step": control, "first policy": taught}
chats = {name: sample(policy, asked, two_each) for name, policy in models.items()}
figure = figures.figure_ends([figures.ends_of(name, found, cap) for name, found in chats.items()])
display(figure)
views.describe(figure)

# %% [markdown]
# So this base does end its answers in a chat, but with the end of a *document*. Preparing the rows gives some answers
# the right end before the first step: the prepared `<|eot_id|>` is a near-copy of `<|end_of_text|>`, and the model now
# and then says it instead. What is left for SFT is to teach **which end** to say. That is a small thing to learn, and
# you will see below how little it takes.
#
# ## Format and skill, apart
#
# A pass rate in the chat format mixes two things: an answer that does not end properly is never right. So take them
# apart: how many answers end properly; how many are right; and how many are right if *any* end counts.

# %%
asked_its_way = {"base, own format": sample(base, asked, two_each, "base")}
rates = {name: figures.rates_of(found, 2, cap) for name, found in (asked_its_way | chats).items()}
figure = figures.figure_format_and_skill(rates)
assert rates["base"][0].high < 0.15 < 0.9 < rates["first policy"][0].low, "the format should jump"
assert rates["base"][2].low > 0.1 and rates["base"][2].high > rates["first policy"][2].low, "the skill was there"
display(figure)
views.describe(figure)

# %%
from llama3_lab.pipeline import reports

run.scores("base", "base, own format", 0, "base")
of_base = run.rows("base", "base")
gain = reports.compare("first policy over base", run.rows("first"), of_base, "sampled", "all")
for skill in ("all", "arithmetic", "programs", "orderings"):
    c = reports.compare(skill, run.rows("first"), of_base, "sampled", skill)
    print(f"right, {skill:<10} {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] n={c.n}  {c.verdict}")
assert gain.high < 0.08 and gain.low > -0.2, "skill should hardly move"
ended_now = rate([s.ended for s in run.rows("first")], run.profile.evaluation.samples)
score(format_rate, ended_now.value, ended_now.low, ended_now.high)
score(skill_gain, gain.difference, gain.low, gain.high)

# %% [markdown]
# The format jumped from nothing to nearly all. The skill did not: in the third column above, the intervals of base and
# first policy overlap, so the skill was there before, behind the wrong end. Against the base in its own format, which
# is the fair comparison, the interval lies near zero, and the lines above say on which side. That is what "SFT teaches
# the format" means, as a measurement: two rates, side by side. The answers of these authors teach nothing that the base
# lacks. To raise the *skill*, they would have to be better than the model's own; making them so is what rejection
# sampling is for (notebook 05).
#
# ## How many examples does the format need?
#
# Short trainings that differ in one thing at a time: the number of **different** examples, at 20 steps of 16 rows each;
# and, for ten and a thousand, only 5 steps. With one example, a batch is sixteen times the same row.
#
# Beside format and skill, a third measure: what does an answer by a *fresh* author cost the model? That is the loss on
# data of the same kind that it has not seen.

# %%
shown = [next(p for p in asked if p.skill == skill) for skill in records.SKILLS]
encoded, trials, rows_of, said = list(zip(once, answers, strict=True)), [], {}, {}
for n, steps in [*((n, 20) for n in (1, 10, 30, 100, 300, 1000)), (10, 5), (1000, 5)]:
    name = f"03-n{n}-s{steps}"
    rows_of[n, steps] = measured(name, n, replace(small, fit=replace(fit, max_steps=steps)))
    policy = run.policy(name)
    trials.append(figures.trial_of(policy, rows_of[n, steps], encoded, n, steps))
    said[n, steps] = sample(policy, shown, replace(one_each, temperature=0.0))
start = figures.trial_of(control, measure(control, asked, two_each), encoded, 0, 0)
figure = figures.figure_trials(trials, start)
display(figure)
views.describe(figure)

# %%
def change(what, a, b):
    sides = [next(t.costs for t in trials if (t.examples, t.steps) == key) if what == "cost"
             else [getattr(s, what) for s in rows_of[key]] for key in (a, b)]  # fmt: skip
    found = mean([y - x for x, y in zip(*sides, strict=True)])
    print(f"{what:<8} {a[0]:>4} examples, {a[1]:>2} steps → {b[0]:>4} and {b[1]}: {found}")
    return found


assert abs(change("ended", (10, 20), (1000, 20)).value) < 0.1 and change("ended", (10, 5), (10, 20)).low > 0.2
assert change("sampled", (10, 20), (1000, 20)).low > 0 and change("cost", (10, 20), (1000, 20)).high < 0
assert change("cost", (10, 5), (10, 20)).low > -0.1 and change("cost", (1000, 5), (1000, 20)).high < 0

# %% [markdown]
# Read it slowly; it is the opposite of what most people expect.
#
# - **Format needs steps, not examples.** At 20 steps, ten different examples end answers about as often as a thousand
#   do, and even a single one gets most of the way. At 5 steps neither is there yet.
# - **Too few examples cost skill.** Ten rows, over and over, leave fewer right answers than a thousand rows do. What
#   a single row does depends on which it is; these intervals are over prompts, not over another choice of rows. And
#   this comparison was picked after looking at three of its kind: take it as a strong hint.
# - **What more examples buy is generality.** On a thousand, more steps make a fresh answer cheaper. On ten they
#   do not: the model learns ten answers by heart. The format rate sees nothing of that, nor does the training loss.

# %%
def tell(trial: figures.Trial) -> str:
    facts = "\n".join(figures.describe_trials([trial], start).splitlines()[1:])
    talk = "\n".join(f"\n{c.prompt.text}\n   " + c.text.replace("\n", "\n   ")
                     + ("" if c.finished else "   (did not end properly)")
                     for c in said[trial.examples, trial.steps])  # fmt: skip
    return f"{facts}\n{talk}"


explore("Examples", [(f"{t.examples}, {t.steps} steps", t) for t in trials], tell)

# %% [markdown]
# ## At 8B
#
# | | here | 8B |
# |---|---|---|
# | weights trained | LoRA, and the tables in full | the paper: all; on one GPU: LoRA, half a percent (exercise 03.2) |
# | learning rate | 4e-3, LoRA on a thin model | 1e-5 for all weights (4.1.3) |
# | special rows | from look-alikes | the same trap, and with LoRA the tables are seldom trained: prepare the rows |
# | two beginnings | our tokenizer adds none | the published one does: after a rendered template, tell it not to |
# | the end | stops at any of the three | look at `generation_config.eos_token_id`: our base's names no end of turn |
#
# The code is the same: `train_sft` with another profile.
#
# ## What this did not show
#
# - That ten examples are enough for *your* format. This one is a single token away from what the base knew. For
#   another, draw the same figure.
# - That SFT cannot teach skill. It teaches what is in its answers; these held none. Notebook 05 shows the other case.
# - That masking the prompt matters at this size. We showed what is masked, not what happens without.
# - Anything about another training seed: the intervals are over prompts. With another draw of rows and another seed
#   the rates of ended and of right answers came out alike, except that a single example then cost no skill that could
#   be seen.

# %% [markdown]
# ## Exercises
#
# Put your answer in the place of `None` and run the cell. A wrong answer gets a hint, never the solution.
#
# **03.1** How many tokens does the template add to a chat of three questions and three answers? (Only what the
# template adds, not the texts; the chat ends with the third answer.)
#
# **03.2** How many parameters does LoRA of rank 16 train in Llama 3 8B, on all seven linear layers of all 32 blocks?
# Table 3: model width 4,096; feed-forward width 14,336; 32 heads, but 8 for keys and values; so a head has 128
# features.

# %%
from llama3_lab.course.exercises import check, table

table("03")
tokens = None  # a number
check("03.1", tokens)
parameters = None  # a number
check("03.2", parameters)

# %% [markdown]
# **03.3** Write `labels(ids, start, end, eot, assistant)` for chats of any number of turns. `ids` are the tokens of a
# whole chat; the other four are the ids of `<|start_header_id|>`, `<|end_header_id|>`, `<|eot_id|>` and of the role
# word `assistant`. After each `<|end_header_id|>` comes one token with the blank line. Return the list of labels:
# every answer, and its end, is learned.

# %%
answer = None  # a function
check("03.3", answer)

# %% [markdown]
# **03.4** A museum of training rows. Each exhibit makes a row of a question and its answer; in brackets stands what has
# a label, and ⏎ is a line break. One of them is sound. Which is which? (`museum_row(exhibit, …)` gives you ids and
# labels, if you want to look closer.)

# %%
from llama3_lab.course.exercises.sft import DIAGNOSES, MUSEUM, museum_row, show_row

print("diagnoses:", ", ".join(DIAGNOSES))
for exhibit in MUSEUM:
    print(f"{exhibit}  {show_row(tokenizer, *museum_row(exhibit, tokenizer, short.prompt.text, short.text))}")
answer = None  # like {"A": "sound", "B": …, "C": …, "D": …, "E": …}
check("03.4", answer)

# %% [markdown]
# **03.5** Write `find(rows_VD)`: given the rows of an output layer (or of embeddings), return the list of ids that
# nobody trained, without a tokenizer. What gave them away above? Careful: they may be as long as the others, and as far
# from the mean. Then try it on `head_VD`: it finds `never`, and some hundred more. Which tokens are they?

# %%
answer = None  # a function
check("03.5", answer)

# %% [markdown]
# **03.6** You have 100 optimizer steps in all, and want to know for another format whether it needs *examples* or
# *steps*. List your runs as (examples, steps); (10, 0) is a control without training.

# %%
answer = None  # a list of pairs
check("03.6", answer)

# %% [markdown]
# ## Recap
#
# - A chat is a text with eleven tokens of wrapping; only the answer and its `<|eot_id|>` are learned. `<|end_of_text|>`
#   ends documents, and `<|begin_of_text|>` stands once.
# - Special rows that nobody trained lie in one place, and 20 steps of LoRA do not part them. Put them apart first. The
#   loss falls either way.
# - LoRA is *W* + (α / r) · *B A*, with *B* zero at first.
# - Format and skill are two rates. SFT on flawed answers moves the first from nothing to nearly all; the second stays.
# - Format needs steps, not examples; more examples buy a better fit to fresh answers.
#
# **Next:** `04_reward_model`: somebody has to say which answer is better.
