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
# # 01 · Pre-training, by the numbers
#
# **45 minutes to read; under 1 to run · 1 GB of memory · any CPU, no network**
#
# Nobody reads this on a machine that could pre-train Llama 3. But nearly everything that was *decided* about that
# training, how large, on how many tokens, for how long, is arithmetic that fits in a few cells. The names 8B, 70B
# and 405B fall out of a table of five rows. The price of the flagship follows from three figures. Its size was read
# off a power law with two coefficients, printed so rounded that the text contradicts itself by half. And the method
# behind that law, isoFLOP curves, runs on two cores in a quarter of an hour, on models a million times smaller.
#
# ## You will be able to
#
# - count a Llama's parameters from its table, to the unit, and say where they are;
# - count the FLOPs of a training run exactly, and say by how much the estimate 6ND is off, and which way;
# - reconcile FLOPs with GPU-hours, days, energy and money, and notice when a figure does not fit the others;
# - extrapolate a power law without stepping into its rounding;
# - read an isoFLOP experiment: where its minimum is, how sure that is, and when it is none;
# - say for how many served tokens a small model, trained for long, is the right choice, and what that hangs on.
#
# ## What the paper says
#
# | | where |
# |---|---|
# | three sizes: 32, 80 and 126 layers of width 4,096, 8,192 and 16,384, with 8 key/value heads each | 3.2, table 3 |
# | 405B: 15.6T tokens, 3.8 × 10²⁵ FLOPs | 1 |
# | ten budgets from 6 × 10¹⁸ to 10²² FLOPs, models of 40M to 16B, a parabola each | 3.2.1, figure 2 |
# | N\*(C) = A·C^α, where N\* counts training **tokens**; α = 0.53, A = 0.29 in the text | 3.2.1 |
# | α = 0.537, A = 0.299 in the legend of the figure | figure 3 |
# | carried to 3.8 × 10²⁵: 402B parameters on 16.55T tokens; so 405B is about compute-optimal | 3.2.1 |
# | the smaller models are trained for much longer than is compute-optimal | 1, 9.1 |
# | 16,384 H100, 400 TFLOPs each, 41 % of their peak; more than 90 % of the time effective | table 4, 3.3.4 |
#
# The GPU-hours are **not** in the paper: 30.84M for 405B stand on the model card.

# %% [markdown]
# ## Predict first
#
# Four questions, each with an interval that you are 90 % sure of.
#
# 1. Embedding and output layer have a row of numbers for each token of the vocabulary. Which share of 8B's parameters
#    is that?
# 2. The exponent of the law is 0.53 in the text and 0.537 in the legend (and the factor 0.29, or 0.299). Used at
#    3.8 × 10²⁵ FLOPs, how many times as many tokens does the second pair give?
# 3. On our small world's text, tiny Llamas are trained for 6 × 10¹¹ FLOPs each. How many tokens per parameter does the
#    best of them see? (Chinchilla's rule of thumb is 20.)
# 4. The best size grows about like FLOPs^0.5. Take the very same runs, with the very same losses, but leave the
#    embedding out when you count parameters. By how much does the exponent change?

# %%
from llama3_lab.course.predictions import predict, score

rows_of_vocabulary = predict("01.vocabulary", 0.02, 0.30)  # change me: share of the parameters
times_more = predict("01.rounding", 1.0, 1.3)  # change me: factor
best_ratio = predict("01.ratio", 5.0, 60.0)  # change me: tokens per parameter
embedding_less = predict("01.embedding", -0.05, 0.10)  # change me: difference of exponents

# %% [markdown]
# ## The names fall out of the table
#
# The raw material: table 3, row by row. (Table 3 prints a vocabulary of 128K. The weights also have rows for 256
# special tokens.)

# %% tags=["nbval-check-output"]
from llama3_lab import places
from llama3_lab.paper.architecture import SIZES, Architecture, llama3

for size in SIZES:
    a = llama3(size)
    print(f"{size.upper():>5}: {a.layers} layers, width {a.width:,}, FFN {a.ffn:,}, {a.heads} heads of {a.head_dim}, "
          f"{a.kv_heads} key/value heads, vocabulary {a.vocabulary:,}")  # fmt: skip

# %% [markdown]
# A decoder is a stack of matrices, and a matrix has rows times columns. Queries and output are square here; keys and
# values are narrower, as few heads serve all queries; SwiGLU has three matrices. Nothing has a bias.


# %% tags=["taught"]
def count(layers, width, ffn, heads, kv_heads, vocabulary):
    """Return the parameters of a Llama 3, from its row of table 3."""
    head = width // heads
    queries_and_output = 2 * width * heads * head
    keys_and_values = 2 * width * kv_heads * head
    swiglu = 3 * width * ffn  # gate, up, down
    norms = 2 * width  # one before attention, one before the FFN
    layer = queries_and_output + keys_and_values + swiglu + norms
    embedding = output = vocabulary * width  # two matrices: they are not tied
    return embedding + layers * layer + width + output


# %% [markdown]
# ### The same as the package, and as transformers
#
# transformers builds the three models on the *meta* device: shapes without numbers, so that even 405B takes no memory.

# %% tags=["nbval-check-output"]
import torch
from transformers import LlamaConfig, LlamaForCausalLM

for size in SIZES:
    a = llama3(size)
    mine = count(a.layers, a.width, a.ffn, a.heads, a.kv_heads, a.vocabulary)
    with torch.device("meta"):
        built = LlamaForCausalLM(LlamaConfig(
            vocab_size=a.vocabulary, hidden_size=a.width, intermediate_size=a.ffn, num_hidden_layers=a.layers,
            num_attention_heads=a.heads, num_key_value_heads=a.kv_heads))  # fmt: skip
    assert mine == a.parameters() == sum(p.numel() for p in built.parameters())
    print(f"{size.upper():>5}: {mine:>15,}, three times the same")

# %% [markdown]
# So "8B" is 8.03, and "70B" nearer to 71. Where are they? Beside the three, the tiny base of this course.

# %%
from IPython.display import display

from llama3_lab.course import views
from llama3_lab.course.figures import scale as figures

base = Architecture.read(places.project() / places.BASE_MODEL)
models = {"our tiny base": base, **{s.upper(): llama3(s) for s in SIZES}}
display(shown := figures.figure_parts(models))
print(views.describe(shown))
share = sum(models["8B"].parts()[part] for part in ("embedding", "output")) / models["8B"].parameters()
assert all(a.parts()["ffn"] > a.parts()["attention"] for a in models.values())
score(rows_of_vocabulary, share, share, share)

# %% [markdown]
# At 405B the vocabulary is a detail, and four fifths of the model is FFN. At 8B more than an eighth is vocabulary.
# That matters below: a law in "parameters" depends on whether these rows are counted, and the smaller the models the
# more.
#
# ## FLOPs: count, then estimate
#
# A weight that meets a token costs a multiplication and an addition: 2 FLOPs. Attention also compares tokens with each
# other: 4 FLOPs for each pair, head and number of a head. Backward costs twice as much as forward: a gradient for the
# inputs, and one for the weights. Looking up an embedding costs nothing.


# %% tags=["taught"]
def training_flops(a, row, causal=True):
    """Return the FLOPs of forward and backward on one row of `row` tokens."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    layer = 2 * a.width * queries + 2 * a.width * keys + 3 * a.width * a.ffn
    weights = a.layers * layer + a.vocabulary * a.width  # the output layer, but not the embedding
    pairs = row * (row + 1) // 2 if causal else row * row  # who looks at whom
    forward = 2 * weights * row + 4 * a.layers * queries * pairs
    return 3 * forward


# %% [markdown]
# ### The same as the package, and as torch's own counter
#
# `FlopCounterMode` watches a small model at work and counts each product of matrices. It counts what is computed, also
# the half of the pairs that the mask throws away; so here we count all pairs too.

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

from llama3_lab.paper import scale
from llama3_lab.pipeline.pretraining import build, small_llama

model = build(small := small_llama(width=64, layers=3, heads=4), row=48)
model.set_attn_implementation("eager")  # attention as plain products of matrices
with FlopCounterMode(display=False) as counter:
    model(input_ids=torch.zeros(1, 48, dtype=torch.long)).logits.sum().backward()
counted, mine = counter.get_total_flops(), training_flops(small, 48, causal=False)
assert counted == mine == scale.training_flops(small, 48, causal=False)
print(f"cell, package and torch: {counted:,} FLOPs for one row of 48 tokens, forward and backward")

# %% [markdown]
# ### What 6ND leaves out
#
# Everybody writes C = 6·N·D. It makes two mistakes that pull in opposite directions: it multiplies by the embedding,
# which is only looked up, and it forgets attention. (Per token and causal, at the length of pre-training and at
# 128K.)

# %% tags=["nbval-check-output"]
from llama3_lab.paper.facts import fact

lengths = (1, *(int(fact(f"recipe.{k}").value) for k in ("context_start", "context_end")))
print("FLOPs a token, exact, over 6N, in rows of", *(f"{n:>9,}" for n in lengths))
for size in SIZES:
    a = llama3(size)
    over = [scale.training_flops(a, n) / n / (6 * a.parameters()) for n in lengths]
    print(f"{size.upper():>41}", *(f"{x:>9.3f}" for x in over))
    assert over[0] < 1 < over[1] < 1.1 and over[2] > 1.5

# %% [markdown]
# In short rows 6ND is too high, by the embedding; in long ones too low, by attention. At the length of pre-training
# it is 4 to 7 % short, which bothers nobody. At 128K tokens, 8B costs three times what 6ND says. **An estimate
# that is right is right at a length.**
#
# ## 3.8 × 10²⁵ FLOPs, four ways
#
# Now the flagship. What does the paper's figure count, and does it fit the hours on the card?

# %% tags=["nbval-check-output"]
flagship, tokens = llama3("405b"), fact("tokens.405b").value
flops, hours = fact("flops.405b").value, fact("gpu_hours.405b").value
row, effective = scale.table4()[1], fact("training.effective_share").value / 100
print(f"6ND {scale.six_nd(flagship.parameters(), tokens):.3e}; exact, in rows of {row.row:,}, "
      f"{scale.run_flops(flagship, tokens, row.row):.3e}; the paper says {flops:.1e}")  # fmt: skip
ideal, busy = (scale.gpu_hours(flops, row.tflops, e) for e in (1, effective))
print(f"at {row.tflops:.0f} TFLOPs a GPU: {ideal / 1e6:.1f}M GPU-hours; with {effective:.0%} effective time "
      f"{busy / 1e6:.1f}M; the card says {hours / 1e6:.2f}M")  # fmt: skip
print(f"so an hour on the bill achieved {scale.achieved_tflops(flops, hours):.0f} TFLOPs; "
      f"{row.gpus:,} GPUs take {hours / row.gpus / 24:.0f} days")  # fmt: skip
assert abs(scale.six_nd(flagship.parameters(), tokens) / flops - 1) < 0.01 and 0 < hours / busy - 1 < 0.06

# %% [markdown]
# 6ND gives the printed figure within rounding. Three figures from the paper give the card's hours within 6 %; the
# rest may be restarts, smaller clusters at the start, long-context stages: the paper does not say. Two sources that
# nobody forced to agree do agree; that is the best reason to believe either.
#
# ### Table 4, recomputed
#
# Three things must hold in each row: the four sizes of parallelism multiply to the GPUs; groups, rows and lengths to
# the tokens of a batch; and MFU is TFLOPs over the peak of an H100 (which the paper does not print; the data sheet
# has it).

# %% tags=["nbval-check-output"]
peak, later = fact("h100.peak_tflops").value, fact("table4.row3.dp_later").value
for n, c in enumerate(scale.table4(), 1):
    low, high = c.mfu_range(peak)
    print(f"row {n}: {c.tp}·{c.cp}·{c.pp}·{c.dp} = {c.product:,} of {c.gpus:,} GPUs; {c.tokens / 1e6:.1f}M tokens; "
          f"MFU {c.tflops / peak:.1%}, printed {c.mfu:.0%}; {low:.1%} to {high:.1%} if TFLOPs are rounded to tens")
    assert c.product == c.gpus and low < c.mfu + 0.005 and c.mfu - 0.005 < high
third = scale.table4()[2]
print(f"later copies print DP = {later} in row 3: {third.product // third.dp * later:,} GPUs, half of what they say")

# %% [markdown]
# Row 2 gives 40 %, not the printed 41. It is no error: the TFLOPs beside it are rounded to tens, and with a few more
# than 400 all is well. Row 3 adds up with a DP of 8 only, so an early copy is right and later ones are not.
#
# ### Price of the run
#
# The price of a GPU-hour is yours to state. Move it (the arrow keys do it too). Energy is that of the GPUs at
# their 700 W alone: no cooling, no network, no CPU.

# %%
from dataclasses import replace

from llama3_lab.course.widgets import explore

meta = scale.meta_machine(price=1.0)
runs = {s.upper(): scale.six_nd(llama3(s).parameters(), figures.trained_tokens(s)) for s in SIZES}
runs["study"] = 8 * sum(fact("isoflop.budgets").value)  # ten budgets; eight sizes each are our guess
assert runs["study"] < 0.01 * runs["405B"]
co2, mwh = fact("emissions.location_based"), fact("gpu_hours.total").value * meta.watts / 1e6
print(f"the three cards' hours at {meta.watts:.0f} W: {mwh:,.0f} MWh; {co2} are {1e3 * co2.value / mwh:.0f} g a kWh")
explore("Price of a GPU-hour", [(f"{p:g}", p) for p in (1.0, 1.5, 2.0, 3.0, 5.0, 10.0)],
        lambda price: figures.describe_bills(replace(meta, price=price), runs))  # fmt: skip

# %% [markdown]
# 8B and 70B are billed here at 405B's efficiency, and come out far lower than on their cards, at 1.46M and 7.0M hours:
# an efficiency is a property of a run, and does not travel. The first line is one more cross-check: about 400 g of
# CO₂ a kWh is near what a gas-fired plant emits, so the card's tonnes fit its hours, with little left for anything
# but the GPUs.
#
# ## The law, and seven thousandths
#
# How large should a model be, given the FLOPs? The paper measured at up to 10²² and extrapolated nearly four thousand
# times further. Two pairs of coefficients are printed for the same line.

# %%
from llama3_lab.paper import power_law
from llama3_lab.paper.surface import SETS, published

printed, budgets = fact("law.forecast.tokens").value, fact("isoflop.budgets").value
laws = {where: power_law.paper_law(where) for where in power_law.LAWS}
display(shown := figures.figure_laws(laws, budgets, flops, printed))
print(views.describe(shown))
factor = laws["legend"].at(flops) / laws["text"].at(flops)
exact = power_law.exponent_for(laws["legend"], flops, printed)
print(f"what the text forecasts needs α = {exact:.5f} at the legend's factor, which rounds to {exact:.3f}")
assert abs(laws["legend"].at(flops) / printed - 1) < 0.02 and laws["text"].at(flops) / printed < 0.65
score(times_more, factor, factor, factor)

# %% [markdown]
# Both lines look the same where there is data. At the end they are a factor of 1.5 apart, because
# C^0.007 with C near 10²⁵ is 10^0.18. Whoever takes the text's pair and multiplies gets 10.5T tokens, and "finds" that
# Meta trained 405B on half as much again as their own law wants. **Never compute with a rounded exponent**; and if you
# publish one, print the logarithm's digits: at 10²⁵ each decimal of α is worth a factor.
#
# ### Budget → size and tokens
#
# What would other rules do with the same FLOPs? Two published fits of L(N, D) = E + A/N^α + B/D^β, both of
# Chinchilla's runs, the rule of 20 tokens a parameter, and the paper's law. (All at 6ND.)

# %%
def by_tokens(c, law):
    return c / 6 / law.at(c), law.at(c)
def rules(c):
    n = (c / 6 / 20) ** 0.5
    return {"Llama 3, legend": by_tokens(c, laws["legend"]), "Llama 3, text": by_tokens(c, laws["text"]),
            "20 tokens a parameter": (n, 20 * n), "Hoffmann et al.": published("hoffmann").optimum(c),
            "Besiroglu et al.": published("besiroglu").optimum(c)}  # fmt: skip

assert 2.5 < rules(flops)["Besiroglu et al."][0] / rules(flops)["Hoffmann et al."][0] < 3
explore("FLOPs", [(f"{c:.2g}", c) for c in (1e18, 1e20, 1e22, 1e23, 1e24, flops, 1e26)],
        lambda c: figures.describe_budget(c, rules(c)))  # fmt: skip

# %% [markdown]
# The two published fits are of the **same runs**, and at 3.8 × 10²⁵ they differ by nearly three in size. (The
# first was printed rounded; its optimizer, as the second paper shows, had stopped early.) An extrapolation is an
# opinion about an exponent.
#
# ### Tokens per parameter, with the three Llamas

# %%
import numpy as np

grid = [10.0**p for p in range(18, 28)]
def shown_for(name):
    return figures.figure_ratios(name, {c: rules(c)[name][1] / rules(c)[name][0] for c in grid})

eight, read = llama3("8b"), figures.trained_tokens("8b")
past = {s: ratio * p / t for s, c, ratio in figures.llamas() for p, t in [by_tokens(c, laws["legend"])]}
assert 0.8 < past["405b"] < 1 and 50 < past["8b"] < 70
explore("Rule", [n for n in rules(1e20) if n != "Llama 3, text"], shown_for)

# %% [markdown]
# 405B lies on its own law. It has about twice the 20 tokens a parameter of the rule of thumb, and so some call it
# "overtrained"; but by the law that was measured on *its* data it is optimal, and the paper says so. 8B
# has sixty times its optimum. Is that a mistake? Last section.
#
# ## Our own isoFLOP experiment
#
# Now we do what section 3.2.1 did: fix the FLOPs, train several sizes until they are spent, find the lowest loss.
# `tools/isoflop.py` did so in a quarter of an hour on the small world's text, with tied Llamas of 7K to 140K
# parameters, four budgets of five sizes; FLOPs are counted exactly, attention included. Recipe as in the paper, in
# kind: AdamW, warm-up, cosine to a tenth. The learning rate was tuned at one budget and three widths, on a seed that
# is not measured, and falls with the root of the width.
#
# A parabola in the logarithm of the size for each budget, as in the paper's figure 2. The interval comes from drawing
# the residuals anew. A minimum counts only if its whole interval lies inside the sizes that were tried.

# %%
from llama3_lab.paper import isoflop
from llama3_lab.store import read_records

record = read_records(places.project() / "data" / "runs" / "isoflop.jsonl", isoflop.Cell)
cells = [c for c in record if c.phase == "grid"]
by_size, by_data = (isoflop.parabolas(cells, x) for x in (lambda c: c.parameters, lambda c: c.tokens))
display(shown := figures.figure_isoflop(cells, [p for p, _ in by_size.values()]))
print(views.describe(shown))
(tokens_at, t_draws), (size_at, n_draws) = by_data[6e11], by_size[6e11]
score(best_ratio, tokens_at.at / size_at.at, *(ends := np.quantile(t_draws / n_draws, [0.025, 0.975])))
assert all(p.bracketed for p, _ in by_size.values()) and ends[0] > fact("chinchilla.tokens_per_parameter").value

# %% [markdown]
# Each curve has its lowest point among the sizes that were tried, and it moves right as the budget grows. At 6 × 10¹¹
# FLOPs the best model reads about 35 tokens a parameter, and the whole interval lies above the rule of thumb's 20. By
# the paper's law the flagship's optimum is at about 42. That the two are alike is chance: other text, other models,
# another exponent. The rule of thumb is no constant of nature; it is what came out once.
#
# ### One cell, live
#
# A recorded table is worth as much as it can be made again. So here is one of its cells, trained now.

# %%
from llama3_lab.pipeline.pretraining import Recipe, pretrain, text_rows

for c in read_records(places.project() / "data" / "runs" / "isoflop-conditions.jsonl", isoflop.Conditions):
    print(f"{c.phase}: {c.seconds:.0f} s on {c.workers} processes of one thread")
seeds = {c.seed: c for c in cells if (c.budget, c.width) == (1e11, 32)}
now = pretrain(small_llama(32, seeds[0].layers, seeds[0].heads), 1e11, Recipe(seed=0), text_rows(512, 128, seed=7))
print(f"{seeds[0].parameters:,} parameters, {now.tokens:,} tokens: held-out loss {now.loss:.3f} now; recorded",
      ", ".join(f"{c.loss:.3f} with seed {seed}" for seed, c in seeds.items()))  # fmt: skip
assert now.flops == seeds[0].flops and abs(now.loss - seeds[0].loss) < 0.03

# %% [markdown]
# The recorded loss again, but for rounding. What another seed changes is of the order of 0.01: differences between two
# sizes that are smaller than that say nothing, and close to the minimum they are. That is why the minimum is taken from
# a parabola through all sizes, and not from the best cell.
#
# ### Our own law, and its exam
#
# In tokens, as the paper's: a power law through the lowest points, once through all four and once without the cheapest.
# We carry both to 1.5 × 10¹² FLOPs, which is 2.5 times as much as the dearest budget; and as far as the paper's was
# carried, to 3.8 × 10²⁵. At the first we can look: two sizes were trained there, one near the law's optimum and one on
# far too many tokens, on seeds that no curve has seen.

# %%
law, three = (isoflop.law_through(list(by_data.values())[first:]) for first in (0, 1))
exam = {w: [c for c in record if (c.phase, c.width) == ("exam", w)] for w in (48, 24)}
for name, line in (("all four budgets", law), ("all but the cheapest", three)):
    near, far = ("{:,.1f} [{:,.1f}, {:,.1f}]".format(*np.divide(line.at(c), unit))
                 for c, unit in ((exam[24][0].budget, 1e6), (flops, 1e12)))  # fmt: skip
    print(f"{name:<20} tokens ~ C^{line.law.alpha:.2f}: {near}M at 1.5e+12 FLOPs, {far}T at {flops:.1e}")
for one, two in exam.values():
    print(f"on {one.tokens / 1e6:.1f}M tokens {one.parameters:,} parameters reach {one.loss:.3f} and {two.loss:.3f}")
gap = np.mean([b.loss - a.loss for a, b in zip(exam[48], exam[24], strict=True)])
unsure = 4.3 * isoflop.seed_spread([*exam[48], *exam[24]])[0]  # Student's t: four runs leave two degrees of freedom
print(f"the larger is lower by {gap:.3f} ± {unsure:.3f}")
assert 0 < gap < unsure and three.at(flops)[1] < printed < three.at(flops)[2] and printed < law.at(flops)[1]

# %% [markdown]
# **The exam is inconclusive.** The size near the law's optimum ends lower on average, as it should; but its two seeds
# are further apart than the two means. (In a trial with one more seed the other size won.) Dear budgets are where a law
# matters, and where seeds cost most.
#
# Now look at the far end. All four budgets say some 200T tokens, and the whole interval lies above the paper's 16.55T.
# Leave the cheapest out, and the law says 17T, next door to the paper's own forecast. Would you have stopped there?
# Neither says anything about Llama: the exponent moved by 0.08, and fourteen powers of ten further on that is a factor
# of twelve. The narrower interval gave no warning. It covers how cells scatter about their parabolas; it does not cover
# which budgets were tried, nor that the cheapest one's curve is no parabola (in the figure its best cells lie below
# it). **Before you believe an extrapolation, leave a point out.**
#
# ### Its control: what is a parameter?
#
# Same cells, same losses; only the label on the x axis changes: parameters of the layers **without** the embedding,
# which in our smallest models is most of all. The comparison is paired: both laws see the same draws.

# %%
def layers_only(c):
    a = small_llama(c.width, c.layers, c.heads)
    return a.matrix_parameters() - a.vocabulary * a.width

every, fewer = (isoflop.law_through(way.values()) for way in (by_size, isoflop.parabolas(cells, layers_only)))
for name, e in (("all parameters", every), ("without the embedding", fewer)):
    print(f"{name:<22} size ~ C^{e.law.alpha:.2f} [{e.alpha_low:.2f}, {e.alpha_high:.2f}] over {e.budgets} budgets")
low, high = np.nanquantile(fewer.draws[0] - every.draws[0], [0.025, 0.975])
score(embedding_less, fewer.law.alpha - every.law.alpha, low, high)
assert low > 0

# %% [markdown]
# Not one loss has changed, and the exponent moves by 0.16. In our smallest models the vocabulary is most of the
# weights; leave it out, and small models look smaller still, which tilts the line. Two famous laws, Kaplan's (2020:
# size grows like C^0.73) and Chinchilla's (2022: C^0.5), counted differently in just this way, and part of their
# quarrel was about that (Pearce and Song, 2024). **Before you compare two exponents, ask what was counted.**
#
# ## One surface for all runs: the parametric fit
#
# isoFLOP curves use each budget for itself. Chinchilla's third approach takes all runs at once and asks for L(N, D) =
# E + A/N^α + B/D^β: what no model can get below, what is lost for want of size, and for want of data. Huber's loss on
# the logarithm keeps outliers from ruling; several starts, as the bottom is a ravine.


# %% tags=["taught"]
from scipy.optimize import minimize


def fit_surface(parameters, tokens, losses, delta=1e-3):
    """Return the lowest objective of several starts, and E, A, B, alpha, beta."""
    n, d, y = np.log(parameters), np.log(tokens), np.log(losses)

    def cost(theta):
        e, a, b, alpha, beta = theta  # the first three as logarithms
        wrong = np.abs(np.logaddexp(e, np.logaddexp(a - alpha * n, b - beta * d)) - y)
        return np.where(wrong <= delta, wrong**2 / 2, delta * (wrong - delta / 2)).sum() / delta

    starts = [(e, a, b, x, x) for e in (-1, 0.5) for a in (3, 8) for b in (3, 8) for x in (0.2, 0.5)]
    ends = [minimize(cost, start, method="L-BFGS-B", options={"maxiter": 2000}) for start in starts]
    best = min(ends, key=lambda end: end.fun)
    return best.fun * delta, (*np.exp(best.x[:3]), *best.x[3:])


# %% [markdown]
# ### The same bottom as the package
#
# On 64 made runs whose coefficients we know, with 1 % of noise. The package has written-out gradients, better starts
# and a polish; it may end a little lower, never higher.

# %%
from llama3_lab.paper.chinchilla import fit, intervals, surfaces

truth, rng = published("besiroglu"), np.random.default_rng(0)
n, d = (x.ravel() for x in np.meshgrid(np.geomspace(3e7, 1e10, 8), np.geomspace(1e9, 1e12, 8)))
made = n, d, np.array([truth.loss(*run) for run in zip(n, d, strict=True)]) * np.exp(0.01 * rng.standard_normal(64))
(bottom, mine), theirs = fit_surface(*made), fit(*made)
print(f"objective: cell {bottom:.3e}, package {theirs.objective:.3e}; {theirs.reached} of {theirs.starts} starts agree")
assert theirs.objective <= bottom * (1 + 1e-9) and bottom < 1.01 * theirs.objective
for c, t, m in zip(intervals(theirs, *made), truth.values(), mine, strict=True):
    print(f"true {t:>9.4g}   cell {m:>9.4g}   {c}")

# %% [markdown]
# A and B have wide intervals although the fit is excellent, because they lie at N = 1 and D = 1, ten decades from any
# run; they trade off with their exponents. (Over 100 such data sets, an interval holds the truth 92 to 98 times,
# depending on the coefficient.)
#
# ### What the data cannot say
#
# Now the same 64 sizes, but every run at 20 tokens a parameter, as a reader of the rule of thumb would train them; and
# our own grid. The routine says what it cannot tell.

# %%
same = n, 20 * n, np.array([truth.loss(x, 20 * x) for x in n]) * np.exp(0.01 * rng.standard_normal(64))
ours = tuple(zip(*((c.parameters, c.tokens, c.loss) for c in cells), strict=True))
for name, columns in (("one ratio of tokens to parameters", same), ("our isoFLOP cells", ours)):
    found = fit(*columns)
    said = intervals(found, *columns, draws=100)
    print(f"{name}: {found.runs} runs, condition {found.condition:.2g}", *said, sep="\n   ")
    assert sum(c.determined for c in said) <= 2
low, high = np.quantile([s.optimum(6e11)[0] for s in surfaces(found, *ours, draws=100)], [0.025, 0.975])
print(f"yet our best size for 6e11 FLOPs is {low:,.0f} to {high:,.0f}; by the parabola {size_at.low:,.0f} to "
      f"{size_at.high:,.0f}")  # fmt: skip
assert low < size_at.high and size_at.low < high and high < 2 * low

# %% [markdown]
# At one ratio of tokens to parameters nothing is determined: N and D grow together, and no fit can tell whose doing it
# was. That is why an isoFLOP grid crosses many ratios. On ours the factors A and B are open to orders of magnitude, and
# the fit is still of use: the best size *within* the grid is known to less than a factor of two, and agrees with the
# parabola's. What you ask for in there is a combination of the five that the runs do fix. Out there it is the five
# themselves that count.
#
# ## Why 8B on 15T tokens is no mistake
#
# By every law above, the FLOPs of 8B would have been better spent on a larger model with fewer tokens: *if training
# were all that costs*. But a model is served, and each served token costs 2N FLOPs, for ever. Of all (N, D) that reach
# the loss of 8B on 15T, which is cheapest when S tokens are served?
#
# $$\text{cost}(N) = 6\,N\,D(N) + 2\,N\,S, \qquad \text{lowest where}\quad S = 3\,D\,(\rho - 1), \quad
# \rho = \frac{\alpha A / N^\alpha}{\beta B / D^\beta}.$$
#
# ρ says how much more a per cent of parameters would help than a per cent of tokens: 1 is compute-optimal.

# %%
from llama3_lab.paper import serving

display(shown := figures.figure_serving(published("besiroglu"), "8b", (0.0, 1e13, 5e13, 2e14)))
print(views.describe(shown))
loss = published("besiroglu").loss(eight.parameters(), read)
best = [serving.cheapest(published("besiroglu"), loss, served)[0] for served in (0.0, 1e13, 5e13, 2e14)]
assert best == sorted(best, reverse=True) and best[0] > 4 * eight.parameters()

# %% [markdown]
# The curves move left as more is served. Two questions that are often taken for one: from when on has 8B **cost less**
# than the compute-optimal model of the same loss; and when is it **the best size** of all? For both published fits,
# and for a served FLOP that costs as much as one in training, or three times as much (small batches use a GPU worse).

# %% tags=["nbval-check-output"]
def told(f, surface, n, d):
    once, thrice = (f(surface, n, d, weight) / 1e12 for weight in (1, 3))
    return "never" if once != once else f"{once:>3.0f}T ({thrice:.0f}T at 3 ×)"

for size in SIZES:
    n, d = llama3(size).parameters(), figures.trained_tokens(size)
    for name in SETS:
        by = published(name), n, d
        print(f"{size.upper():>5} by {name:<9} ρ = {serving.balance(*by):.2f}; ahead after "
              f"{told(serving.break_even, *by):<16} the best size at {told(serving.right_served, *by)}")  # fmt: skip
low, high = (serving.right_served(published(s), eight.parameters(), read) for s in SETS)
assert 4 * read < low and 2 < high / low < 3

# %% [markdown]
# 8B on 15T is ahead of the compute-optimal model after about 10T served tokens, by both fits; it is the best size of
# all at about 70T by one and 190T by the other. Is that much? A service with a hundred million users who exchange 1,000
# tokens a day serves 36T a year, and an open model is served by everybody. So "sixty times past the optimum" is a
# choice, for serving. What the wide range hangs on is not the arithmetic but ρ, and ρ hangs on exponents far outside
# the runs that they were fitted to (which were not even on Meta's data). For 405B the first fit says never: too large
# for its tokens, no serving makes it right. The second says that it is a little too small. Close to an optimum, the
# sign is all noise.
#
# ## At 8B
#
# Every function here already is at 8B; only the experiment is small. The paper's study of ten budgets, with eight
# sizes each, say, is the last line of the price list above: less than a hundredth of the run whose size it fixed.
#
# ## What this did not show
#
# - Anything about Meta's models from our cells. The small world's text is far easier than the web's, our models are a
#   million times smaller, and our exponents belong to them.
# - That our learning rates are best for each cell. They were tuned at one budget; a size with a bad rate looks like a
#   bad size. One held-out document in ten also occurs, word for word, in the training text: the world is small.
# - That seeds do not matter: the dearest budgets have two. The intervals are over residuals of a parabola that is
#   itself an approximation; far from the minimum the true curve is none.
# - That the law holds where it was used. No interval here covers the error of carrying it thousands of times too far.
# - What a served token costs you. Memory, batch size and hardware matter as much as FLOPs.
#
# ## Exercises
#
# Fill in an answer and run the cell: it says at once whether it is right, or gives a hint.

# %% tags=["nbval-check-output"]
from llama3_lab.course.exercises import check, table

table("01")

# %% [markdown]
# **01.1** Suppose 8B tied its output layer to the embedding. Which share of its parameters would that save?

# %% tags=["nbval-check-output"]
answer = None  # a share, between 0 and 1
check("01.1", answer)

# %% [markdown]
# **01.2** Write `share(a, row)`: which share of the FLOPs of a row attention's pairs take, causal; `a` is an
# `Architecture` (`a.layers`, `a.heads`, `a.head_dim`, `a.matrix_parameters()`). Then ask: at which length is it half,
# for 8B and for 405B?

# %% tags=["nbval-check-output"]
answer = None  # def share(a, row): ...
check("01.2", answer)

# %% [markdown]
# **01.3** `museum_hours(flops, tflops, effective)` returns GPU-hours. It has a bug. Write `sound(hours)`: call it as
# you like and return whether it is right.

# %% tags=["nbval-check-output"]
from llama3_lab.course.exercises.scale import museum_hours

print(f"{museum_hours(3.8e25, 400) / 1e6:.1f}M hours, as above")
answer = None  # def sound(hours): ...
check("01.3", answer)

# %% [markdown]
# **01.4** Write `between(law, flops, digits)`: the lowest and the highest value of a power law (`law.a`, `law.alpha`)
# at `flops`, if all we know of its exponent is that it was rounded to `digits` decimals.

# %% tags=["nbval-check-output"]
answer = None  # def between(law, flops, digits): ...
check("01.4", answer)

# %% [markdown]
# **01.5** Plan an isoFLOP curve. `measure(size)` trains a model of that size (between 10⁶ and 10⁹ parameters) for a
# fixed budget and returns its loss, with a little noise; you can afford eight calls. Write `choose(measure)`, which
# calls it so that a parabola through what it returned finds the best size within a factor of 1.6 and brackets it. Your
# function is tried on three hidden curves.

# %% tags=["nbval-check-output"]
answer = None  # def choose(measure): ...
check("01.5", answer)

# %% [markdown]
# **01.6** A model was trained on 15T tokens, and for it ρ = 2. At how many served tokens (in T) is it the best size,
# if a FLOP costs the same in both?

# %% tags=["nbval-check-output"]
answer = None  # in T
check("01.6", answer)

# %% [markdown]
# ## Recap
#
# Parameters and FLOPs are exact, and worth counting once: then 6ND is an estimate whose error you know. Three figures
# of the paper give its GPU-hours within 6 %. A power law is two numbers, and the exponent's third decimal is worth
# half the answer. isoFLOP curves find an optimum where sizes on both sides were tried, and a law through them is an
# opinion elsewhere. And "compute-optimal" answers a question that whoever serves a model does not ask.
#
# **Next:** `02_base_and_lora` takes the base as it is, and asks where the bytes go when you change it.
