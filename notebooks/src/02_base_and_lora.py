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
# # 02 · The base, LoRA, and where the bytes go
#
# **45 minutes to read, 45 for the exercises; under 1 to run · 1 GB of memory · any CPU, no network, no GPU**
#
# Everything after pre-training changes a model that is there already. To change all of 8B takes more memory than
# three gaming cards have together; with LoRA it fits on one. Everybody knows the reason, "only half a percent of the
# weights is trained", and it is half of the reason: run LoRA carelessly, and it needs **more** memory than training
# everything. Here every byte is counted, on real tensors where we can, and by a planner that was checked against them
# where we cannot.
#
# ## You will be able to
#
# - count a model's parameters part by part, and an adapter's, exactly, for any rank and choice of matrices;
# - write a LoRA layer, say why it changes nothing at step 0, and find an adapter that never learns;
# - quantise a matrix to four bits in blocks, and say what a weight then costs, and what stays in 16 bits;
# - say which bytes are alive at which moment of a training step, and check an estimate on real tensors;
# - make a training fit on a given card, changing first what costs least.
#
# ## What the paper says
#
# | | where |
# |---|---|
# | layers, width, FFN, heads, 8 key/value heads for all three sizes | 3.2, table 3 |
# | a vocabulary of 128K, 100K of them tiktoken's, 28K for other languages; 3.94 characters a token, from 3.17 | 3.2 |
# | a chat format with special header and end tokens, for many messages in one turn | 4.1.1 |
# | SFT of the largest models: learning rate 10⁻⁵, 8,500 to 9,000 steps | 4.1.3 |
#
# **Not in the paper: LoRA.** Meta trained all weights, in every stage, on a cluster. LoRA is from Hu et al. 2021; the
# base in four bits, QLoRA and its NF4, from Dettmers et al. 2023. They are how everybody else gets there.

# %% [markdown]
# ## Predict first
#
# Llama 3 8B, rows of 2K tokens. How many GiB of GPU memory at the worst moment of a step? An interval for each that
# you are 90 % sure of.
#
# 1. All weights trained with AdamW in 16 bits, one row a step, layers run again (checkpointing).
# 2. LoRA of rank 16 on every linear layer instead, otherwise the same.
# 3. LoRA again, but four rows a step, no checkpointing, and the logits of all tokens at once: the plain way.

# %%
from llama3_lab.course.predictions import predict, score

all_weights = predict("02.full", 16, 64)  # change me: GiB
adapters_only = predict("02.lora", 2, 24)  # change me: GiB
plainly = predict("02.plain", 5, 40)  # change me: GiB

# %% [markdown]
# ## Look at real rows
#
# The base of this course beside table 3. It is a Llama in every detail, only small, so all that follows can be
# counted on it. The last two columns: 16-bit GiB, and the share of all parameters in embedding and output layer.

# %% tags=["nbval-check-output"]
from llama3_lab import places
from llama3_lab.paper.architecture import SIZES, Architecture, llama3
from llama3_lab.paper.catalogue import GIB

eight, tiny = llama3("8b"), Architecture.read(places.project() / places.BASE_MODEL)
share = {}
print(f"{'layers':>12}{'width':>8}{'FFN':>8}{'heads':>7}{'kv':>4}{'words':>9}{'parameters':>17}{'GiB':>9} tables")
for name, a in {"tiny": tiny, **{s.upper(): llama3(s) for s in SIZES}}.items():
    n, share[name] = a.parameters(), 2 * a.vocabulary * a.width / a.parameters()
    print(f"{name:<6}{a.layers:>6}{a.width:>8,}{a.ffn:>8,}{a.heads:>7}{a.kv_heads:>4}{a.vocabulary:>9,}{n:>17,}"
          f"{2 * n / GIB:>9.3f}{share[name]:>7.1%}")  # fmt: skip
assert share["405B"] < 0.02 < 0.1 < share["8B"] < share["tiny"]

# %% [markdown]
# Keep 8B's share in mind: an eighth of it is two tables of words. LoRA does not touch them, QLoRA does not quantise
# them, and what comes out of the second one, a number for each word of the vocabulary and each token, will be the
# largest tensor of the whole step.
#
# ### What the vocabulary costs, and buys
#
# Llama 2 had 32,000 words. Four times as many make longer tokens, so the same text is fewer of them. The output layer
# grows by more than it seems to be worth. Is it?

# %% tags=["nbval-check-output"]
from dataclasses import replace

from llama3_lab.paper.catalogue import find_model
from llama3_lab.paper.facts import fact

before, after = fact("compression.llama2").value, fact("compression.llama3").value
small = replace(eight, vocabulary=find_model("llama-2-7b")[1].vocabulary)
for a, chars in ((small, before), (eight, after)):
    print(f"{a.vocabulary:>7,} words: {4 * a.vocabulary * a.width / GIB:.2f} GiB of tables; {chars} chars a token, "
          f"{a.matrix_parameters() / chars / 1e9:.2f}B products a character")  # fmt: skip
print(f"the same text in {1 - before / after:.0%} fewer tokens")
assert eight.matrix_parameters() / after < 0.9 * small.matrix_parameters() / before

# %% [markdown]
# One and a half GiB more of tables, and 15 % less work for each character, both when training and when writing: at this
# size the large vocabulary pays. (Characters a token are those of the paper's English sample.) Our own tokenizer has
# a few hundred words, on the same plan: learned pieces, then Llama 3.1's special tokens. And the chat template
# wraps every message in them; notebook 03 takes it apart token by token, and says which tokens cost loss.

# %% tags=["nbval-check-output"]
from llama3_lab.models import answer_logprobs, encode_prompt, load_policy
from llama3_lab.profiles import TINY

base = load_policy(places.project() / places.BASE_MODEL, TINY.model)
asked = "What is 7 plus 5?"
bare, chat = base.tokenizer(asked, add_special_tokens=False).input_ids, encode_prompt(base.tokenizer, asked)
print(f"{len(asked)} characters, {len(bare)} tokens:", base.tokenizer.convert_ids_to_tokens(bare))
print(f"in the chat format {len(chat)}:", base.tokenizer.decode(chat).replace("\n", "⏎"))
assert len(chat) - len(bare) < 12 < len(chat)

# %% [markdown]
# ## The idea: leave W alone, and learn a small change
#
# A finetuned matrix is the old one plus a change. LoRA bets that the change has low rank: it can be written as B·A,
# with r rows in A and r columns in B. W is frozen. B starts at zero, so at first nothing is changed.
#
# $$y = W x + \frac{\alpha}{r}\, B A\, \mathrm{drop}(x)$$

# %% tags=["taught"]
import torch
from torch.nn import functional as F


def lora(x_NI, w_OI, a_RI, b_OR, alpha, dropout=0.0):
    """Return a frozen layer's output with its low-rank update added, shape (N, O)."""
    scale = alpha / a_RI.shape[0]  # so that another rank does not change the size of the steps
    dropped_NI = F.dropout(x_NI, dropout)  # on the update's way only; W sees all of x
    update_NO = scale * (dropped_NI @ a_RI.T) @ b_OR.T  # two thin products; B A itself is never made
    return x_NI @ w_OI.T + update_NO


def lora_parameters(architecture, rank, names):
    """Return how many weights the adapters have: r · (inputs + outputs) for each matrix of each layer."""
    shapes = architecture.linear_shapes
    return architecture.layers * sum(rank * (out + into) for out, into in (shapes[n] for n in names))


# %% [markdown]
# ### The same as the package, and as PEFT
#
# One matrix of the base, random adapters: value, and gradients for x, A and B.

# %% tags=["taught"]
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch.func import functional_call

from llama3_lab.course.same import assert_same
from llama3_lab.models import quiet
from llama3_lab.pipeline.lora import LoraLinear

w = base.model.model.layers[0].self_attn.v_proj.weight.detach()
layer = torch.nn.Linear(*reversed(w.shape), bias=False)
layer.weight.data.copy_(w)
rng = torch.Generator().manual_seed(0)
x, a, b = (torch.randn(shape, generator=rng) for shape in ((5, w.shape[1]), (4, w.shape[1]), (w.shape[0], 4)))
package = LoraLinear(layer, r=4, alpha=8)
with_peft = inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=["0"]), torch.nn.Sequential(layer))
for module, names in ((package, ("a_RI", "b_OR")),
                      (with_peft, ("0.lora_A.default.weight", "0.lora_B.default.weight"))):  # fmt: skip
    assert_same(lambda x, a, b: lora(x, w, a, b, alpha=8),
                lambda x, a, b: functional_call(module, {names[0]: a, names[1]: b}, x),  # noqa: B023
                x, a, b, names=("x", "A", "B"))  # fmt: skip

# %% [markdown]
# ### Step 0, and what alpha is
#
# With B at zero the output is the base's, to the last bit. But then A has no gradient either: **A learns nothing in
# the first step**, only B does. (Both at zero, and nothing would ever learn; that one is exercise 02.3.)

# %% tags=["nbval-check-output"]
def pull(alpha, b_start):
    """Return the size of the gradients of A and of B when every output is pulled upwards."""
    a_own, b_own = a.clone().requires_grad_(), b_start.clone().requires_grad_()
    lora(x, w, a_own, b_own, alpha).sum().backward()
    return float(a_own.grad.norm()), float(b_own.grad.norm())

zero = torch.zeros_like(b)
assert torch.equal(lora(x, w, a, zero, 8), x @ w.T)
(a_8, b_8), (_, b_16) = pull(8, zero), pull(16, zero)
print(f"step 0: the output is unchanged; gradient of A {a_8:.0f}; of B with alpha 16 over alpha 8: {b_16 / b_8:.2f}")
assert a_8 == 0 and b_8 > 0

# %% [markdown]
# Alpha costs no byte. It multiplies the update, and so B's gradient too; it is a second learning rate, for the update
# alone. Change r and leave alpha, and the scale changes with it: that is why people set alpha to r or 2r and forget it.
#
# ## Trained parameters, exactly
#
# PEFT builds its adapters on the *meta* device: shapes without numbers, so even 405B takes no memory.

# %% tags=["taught", "nbval-check-output"]
from transformers import LlamaConfig, LlamaForCausalLM

from llama3_lab.paper.recipe import ATTENTION, EVERY_LINEAR, Recipe
from llama3_lab.paper.weights import adapter_weights


def in_peft(m, rank, names):
    """Return how many weights PEFT trains in a Llama of this architecture."""
    config = LlamaConfig(vocab_size=m.vocabulary, hidden_size=m.width, intermediate_size=m.ffn, head_dim=m.head_dim,
        num_hidden_layers=m.layers, num_attention_heads=m.heads, num_key_value_heads=m.kv_heads)  # fmt: skip
    with quiet(), torch.device("meta"):
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=rank, target_modules=list(names)))
    return model.get_nb_trainable_parameters()[0]

for size, rank, names in (("8b", 32, EVERY_LINEAR), ("8b", 64, ATTENTION), ("70b", 16, EVERY_LINEAR)):
    m, n = llama3(size), lora_parameters(llama3(size), rank, names)
    assert n == in_peft(m, rank, names) == adapter_weights(Recipe(m, lora_r=rank, lora_targets=names))
    print(f"{size.upper():>3}, rank {rank} on {len(names)} matrices of a layer: {n:,}; {n / m.parameters():.2%}")

# %% [markdown]
# ### What rank and targets change
#
# In trained weights: everything. In memory:

# %%
from IPython.display import display

from llama3_lab.course import views
from llama3_lab.course.figures import memory as figures
from llama3_lab.paper.memory import plan

targets = {"all seven": EVERY_LINEAR, "attention": ATTENTION, "q and v": ("q_proj", "v_proj")}
by_rank = {name: [Recipe(eight, lora_r=r, lora_targets=t) for r in (1, 4, 16, 64, 256)] for name, t in targets.items()}
display(shown := figures.figure_ranks(by_rank))
print(views.describe(shown))
one, _, sixteen, *_ = (plan(r).peak for r in by_rank["all seven"])
assert 1.02 < sixteen / one < 1.05, "sixteen times the adapter, and hardly more memory"

# %% [markdown]
# Sixteen times as many trained weights cost a few percent of memory. A rank of 1 saves nothing worth having, because
# the adapters were never what filled the card. (At rank 256 they begin to be.) Choose rank and targets by what the
# training learns, not by memory.
#
# ## QLoRA: the frozen weights in four bits
#
# What fills the card is W, in 16 bits. But W is only read, so it may be coarse. Four bits are 16 levels. Two ideas make
# them do: a scale of its own for every block of 64 weights, and levels that lie where a normal distribution's weights
# lie (NF4) instead of evenly.


# %% tags=["taught"]
def nf4_levels():
    """Return 16 levels from −1 to 1: quantiles of a normal distribution, 8 up to zero and 9 from it, one shared."""
    inside = 1 - (1 / 32 + 1 / 30) / 2  # the outermost quantile: not 1, which lies at infinity
    right = torch.special.ndtri(torch.linspace(0.5, inside, 9))
    left = -torch.special.ndtri(torch.linspace(0.5, inside, 8))
    levels = torch.cat([left[1:], right]).sort().values
    return levels / levels.max()


def quantized(w, levels, block):
    """Return w as it comes back from four bits: each block over its largest weight, to the nearest level, and back."""
    rows = w.reshape(-1, block)
    scale = rows.abs().amax(1, keepdim=True)  # one for each block
    nearest = (levels[1:] + levels[:-1]) / 2  # borders between levels
    return (levels[torch.bucketize(rows / scale, nearest)] * scale).reshape(w.shape)


# %% [markdown]
# Now on real weights: all 28 matrices in the base's layers. The control is what "4 bits" would naively be, even levels
# and one scale for a matrix.

# %%
codes = {"NF4": nf4_levels(), "even": torch.linspace(-1, 1, 16)}
matrices = [p.detach() for n, p in base.model.named_parameters() if n.endswith("proj.weight")]
errors = {f"{code}, {'blocks of 64' if block else 'one scale'}": sum(
    float((quantized(w, level, block or w.numel()) - w).norm() / w.norm()) for w in matrices) / len(matrices)
    for block in (64, 0) for code, level in codes.items()}  # fmt: skip
blocks = torch.cat([w.reshape(-1, 64) / w.reshape(-1, 64).abs().amax(1, keepdim=True) for w in matrices])
display(shown := figures.figure_levels(blocks.flatten().numpy(), {n: c.tolist() for n, c in codes.items()}, errors))
print(views.describe(shown))
assert errors["NF4, blocks of 64"] < errors["even, blocks of 64"] < errors["NF4, one scale"]
assert errors["NF4, one scale"] < errors["even, one scale"]

# %% [markdown]
# The famous part of QLoRA is the clever levels. **The dull part, a scale for each block, is worth more**: blocks with
# even levels beat NF4 without blocks. One large weight spoils only its own 64. And what does the model notice? Mean
# loss of the ideal answers to held-out prompts, nats each:

# %%
from llama3_lab.pipeline.prompts import held_out
from llama3_lab.world.corpus import ideal

rows, loss = [(p.text, ideal(p)) for p in held_out(20, "validation")], []
for code, block in ("", 0), ("NF4", 64), ("even", 0):
    spoiled = load_policy(places.project() / places.BASE_MODEL, TINY.model)
    for n, p in spoiled.model.named_parameters() if code else ():
        if n.endswith("proj.weight"):
            p.data = quantized(p.data, codes[code], block or p.numel())
    loss.append(-sum(answer_logprobs(spoiled, rows, style="base")) / len(rows))
print("32 bits {:.2f}; NF4, blocks of 64: {:.2f}; even, one scale: {:.2f}".format(*loss))
assert 0 < 3 * (loss[1] - loss[0]) < loss[2] - loss[0]

# %% [markdown]
# ### Bytes a weight
#
# Four bits, and a scale for 64 weights. In fp32 the scales alone would be half a bit a weight. So QLoRA quantises them
# too: 8 bits each, and one fp32 number for 256 of them.

# %% tags=["nbval-check-output"]
from llama3_lab.paper import weights

single, double = 4 / 8 + 4 / 64, 4 / 8 + 1 / 64 + 4 / (64 * 256)
assert double == weights.NF4_BYTES
qlora = Recipe(eight, method="qlora")
there, tables = weights.base_bytes(qlora) / GIB, 4 * eight.vocabulary * eight.width / GIB
print(f"{single:.4f} bytes a weight; with scales quantised {double:.4f}")
print(f"8B in NF4: {eight.parameters() * double / GIB:.2f} GiB if all of it were; really {there:.2f}, "
      f"for {tables:.2f} GiB of word tables stay in 16 bits, {tables / there:.0%} of it")  # fmt: skip
assert there > 1.3 * eight.parameters() * double / GIB

# %% [markdown]
# A four-bit 8B is not "4 GB": the eighth of the weights that stays in 16 bits is more than a third of the bytes.
#
# ## Where the bytes go
#
# A training step has moments, and each moment its own bytes:
#
# | | how much | from when to when |
# |---|---|---|
# | weights | 2 bytes each, or 0.516 | always |
# | optimizer states | two for each **trained** weight | always, from the second step on |
# | activations | with the tokens; a layer's input, or everything in it | forward, until backward has used them |
# | logits | tokens × vocabulary × 8 to 12 bytes, or a chunk | at the loss |
# | gradients | one for each **trained** weight | backward, until the optimizer's step |
# | the step itself | plain AdamW: one temporary more for each trained weight | at the end |
#
# So the peak is the **largest moment, not the sum**: when the logits exist the gradients do not yet. Your first two
# predictions:

# %%
from llama3_lab.pipeline.meters import peak

thrifty = Recipe(eight)  # one row of 2,048 tokens, checkpointing, logits in chunks
methods = {"all weights": "full", "LoRA, rank 16": "lora", "QLoRA, rank 16": "qlora"}
plans = {name: plan(replace(thrifty, method=m)) for name, m in methods.items()}
display(shown := figures.figure_plans(plans))
print(views.describe(shown))
whole, half, quarter = (p.peak / GIB for p in plans.values())
assert quarter < half < 24 < 3 * 24 < whole
score(all_weights, whole, whole, whole)
score(adapters_only, half, half, half)

# %% [markdown]
# Training all weights is five times the model: weights, gradients, two states, and AdamW's temporary, at the
# optimizer's step, when no activation is left. With LoRA, gradients and states all but vanish, the worst moment moves
# to the backward pass, and what remains is the model itself and a little.
#
# ### Does the planner count right?
#
# Anybody can add up a table. Is it true? Our base is a Llama, so we can do the step and count what is alive: every
# tensor that an operation returns, as long as it lives. (All fp32 here, and PyTorch's own attention.)


# %% tags=["taught"]
def counted(recipe):
    """Return the most bytes alive in forward and backward pass, on top of weights and adapters."""
    model = load_policy(places.project() / places.BASE_MODEL, TINY.model).model.train()
    with quiet():
        if recipe.method == "lora":
            model = get_peft_model(model, LoraConfig(r=recipe.lora_r, target_modules=list(recipe.adapted)))
        if recipe.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": True})
            model.enable_input_require_grads()  # or nothing would reach the adapters
        ids = torch.zeros(recipe.rows, recipe.seq, dtype=torch.long)
        with peak(model) as meter:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return meter.most


def planned(recipe):  # the same by the planner: the worst moment but the optimizer's, without what lies still
    p = plan(recipe)
    return max(size for moment, size in p.phases.items() if moment != "optimizer step") - p.static


# %%
ours = Recipe(tiny, seq=256, micro_batch=4, dtype="fp32", autocast=False, lora_dropout=0.0, logits="full",
              kernels="plain")  # fmt: skip
cases, MIB = {}, 2**20
for method in ("full", "lora"):
    for again in (False, True):
        r = replace(ours, method=method, checkpointing=again)
        cases[method, again] = planned(r), counted(r)
        what = f"{method:<5} {'layers run again' if again else 'everything kept':<17}"
        print(what, "planned {:6.2f} MiB, counted {:6.2f}".format(*(size / MIB for size in cases[method, again])))
(_, kept), (_, run_again), (_, with_lora), _ = cases.values()
assert all(abs(p / c - 1) < 0.06 for p, c in cases.values())
assert kept > 2.5 * run_again and with_lora > 0.9 * kept

# %% [markdown]
# The planner is within a few percent of what is counted. And look at the last column: checkpointing divides it by
# three. LoRA takes off less than a tenth. **LoRA hardly lowers the activations**: to reach the adapters in the first
# layer, the gradient must pass through everything above, frozen or not.
#
# ### The control: a rule of thumb
#
# "Four times the weights": weights, gradients, two states. Held against the count, for two lengths of row:

# %%
mine = 4 * tiny.parameters() * 4
for tokens in (64, 256):
    r = replace(ours, method="full", checkpointing=False, seq=tokens)
    total = 3 * tiny.parameters() * 4 + counted(r)  # weights and states lie still; gradients are in the count
    print(f"rows of {tokens:>3}: counted {total / MIB:5.1f} MiB, the rule {mine / MIB:.1f}: {total / mine:.1f} times")
assert total > 3 * mine
print(f"8B, thrifty: the rule {4 * 2 * eight.parameters() / GIB:.1f} GiB, the planner {whole:.1f}")

# %% [markdown]
# The rule knows no tokens, so on a small model with long rows it is off by a factor. On 8B with one short row it is off
# by one copy of the weights. A rule that was right once was right at one shape.
#
# ## The surprise: LoRA alone makes it worse
#
# Now your third prediction. The same LoRA, the plain way: four rows a step, everything kept, all logits at once. Then
# the thrifty settings, one after the other.

# %%
plain = replace(thrifty, micro_batch=4, checkpointing=False, logits="full", kernels="plain")
again = {"checkpointing": True}
ladder = {"all weights, thrifty, 1 row": plans["all weights"], "LoRA, plain, 4 rows": plan(plain),
          "QLoRA, plain, 4 rows": plan(replace(plain, method="qlora")),
          "LoRA + chunked logits": plan(replace(plain, logits="chunked")),
          "LoRA + checkpointing": plan(replace(plain, **again)),
          "LoRA + both": plan(replace(plain, logits="chunked", **again))}  # fmt: skip
display(shown := figures.figure_plans(ladder))
print(views.describe(shown))
size = {name: p.peak / GIB for name, p in ladder.items()}
assert size["LoRA, plain, 4 rows"] > whole and [n for n, p in ladder.items() if p.fits] == ["LoRA + both"]
score(plainly, (s := size["LoRA, plain, 4 rows"]), s, s)

# %% [markdown]
# Carelessly run, LoRA with half a percent of the weights needs **more** than training all of them with care. Four bits
# save less than a sixth of what checkpointing saves. Of six ways only one fits, and it is not the one with the coarser
# weights.
#
# The logits deserve a look of their own. One number for every token and word, and the loss wants it in fp32, with
# its log-softmax and its gradient. Nobody needs them all at once: a chunked loss makes a few rows of them, takes
# their gradient, throws them away, and gets the same loss. (And with one row the plain way does not fit either.)

# %% tags=["nbval-check-output"]
from llama3_lab.paper import activations

for part, count in (("logits, all tokens", activations.logits(plain)),
                    ("logits, in chunks", activations.logits(replace(plain, logits="chunked"))),
                    ("kept by 32 layers", activations.kept(plain)),
                    ("kept, layers run again", activations.kept(replace(plain, **again)))):  # fmt: skip
    print(f"{part:<24} {count / GIB:6.2f} GiB")
assert activations.logits(plain) == 12 * eight.vocabulary * plain.tokens
saved = plan(plain).peak - plan(replace(plain, **again)).peak
assert 6 * (plan(plain).peak - plan(replace(plain, method="qlora")).peak) < saved
print(f"LoRA, plain, but one row: {(alone := plan(replace(plain, micro_batch=1))).peak / GIB:.1f} GiB at the peak")
assert not alone.fits

# %% [markdown]
# ## Why 8B trains on 24 GB, step by step
#
# The planner's advice changes first what costs nothing, then time, then precision, then the training itself. From all
# weights, the plain way, down to a card of 24 GB; and what then still fits.

# %% tags=["nbval-check-output"]
from llama3_lab.paper.advice import advice
from llama3_lab.paper.catalogue import find_gpu
from llama3_lab.paper.memory import fit

card, begin = find_gpu("24GB"), replace(plain, method="full")
print(f"{'all weights, plain, 4 rows':<26}{plan(begin, card).peak / GIB:8.2f} GiB")
for step in (steps := advice(begin, card)):
    print(f"{step.setting:<26}{step.plan.peak / GIB:8.2f} GiB  {step.price}")
(batch, _), (_, rows) = fit(steps[-1].plan.recipe, card), fit(thrifty, card)
print(f"it fits: up to {batch.recipe.micro_batch} rows of 2,048 tokens, or one row of {rows.recipe.seq:,}")
assert steps[-1].plan.fits and steps[-1].plan.recipe.method == "lora" and rows.recipe.seq > 4096

# %% [markdown]
# No four bits anywhere. QLoRA is for the next larger model, or the next smaller card.
#
# ### Move it
#
# Tokens a row, and whether layers are run again; three methods, one row a step, logits in chunks. One letter a part.
# (Tab to the sliders, then the arrow keys.)

# %%
from llama3_lab.course.widgets import explore


def at(tokens, checkpointing):
    r = replace(thrifty, seq=tokens, checkpointing=checkpointing)
    return figures.bars({name: plan(replace(r, method=m), card) for name, m in methods.items()})

assert plan(replace(thrifty, seq=8192), card).fits and not plan(replace(thrifty, seq=16384), card).fits
explore("Tokens a row", [(f"{n:,}", n) for n in (512, 1024, 2048, 4096, 8192, 16384)], at,
        {"Layers run again": [("yes", True), ("no", False)]})  # fmt: skip

# %% [markdown]
# The same settings, any Llama 3 on some cards. At which size does each method stop to fit, and on which card?
# (A T4 has no bfloat16; its bytes are those of float16.)

# %%
gpus = [find_gpu(n) for n in ("T4", "RTX 4090", "A100-40GB", "H100", "H200")]
names = ("1b", "3b", "8b", "70b", "405b")
seventy = {m: plan(Recipe(llama3("70b"), method=m), gpus[3]).fits for m in ("lora", "qlora")}
assert seventy == {"lora": False, "qlora": True} and not plan(thrifty, gpus[0]).fits
explore("Model", [(n.upper(), n) for n in names],
        lambda n: figures.cards(find_model(n)[1], gpus, methods, thrifty))  # fmt: skip

# %% [markdown]
# ## At 8B
#
# The same planner from the command line, for any known model, any `config.json`, any card:

# %%
from llama3_lab import cli

status = cli.main(["plan", "--model", "8b", "--method", "lora", "--gpu", "RTX 4090", "--fit"])
print("\n$ llama3-lab plan --model 70b --method qlora --gpu H100")
print("$ llama3-lab plan --model 8b --stage dpo --seq 4096 --method qlora --gpu 16GB")
assert status == 0

# %% [markdown]
# Two figures there are not derived but assumed or fitted. *Reserved* is the peak with a margin for what PyTorch's
# allocator cannot reuse; `tools/fit_planner.py` fits it on published measurements, where both figures are given. And
# hours come as a range, with a share of the card's peak from a quarter to seven tenths.
#
# In time LoRA saves far less than in memory: the backward pass still goes through every frozen matrix, and only the
# gradients *of* those matrices are not made. With checkpointing that is three passes instead of four.

# %% [markdown]
# ## What this did not show
#
# - **Nothing was measured on a GPU.** What was counted are tensors on a CPU, in fp32, with PyTorch's attention. What
#   fused kernels, FlashAttention and bitsandbytes keep is derived from their code and papers.
# - **Whether LoRA learns as well.** Bytes are equal for a good adapter and a bad one. Notebook 03 trains with it.
# - **What four bits cost at 8B.** Our loss is that of a tiny model with tiny matrices; the order of the three is the
#   lesson, not the size of the gaps.
# - **Several GPUs.** Sharding divides the same bytes, and adds its own.

# %% [markdown]
# ## Exercises
#
# Put your answer in the place of `None`. `check` says whether it is right, or gives a hint; it never shows the answer.

# %% tags=["nbval-check-output"]
from llama3_lab.course.exercises import check, memory, table

table("02")

# %% [markdown]
# **02.1** Hu et al. adapt only queries and values. How many weights do adapters of rank 8 on `q_proj` and `v_proj`
# have in Llama 3 8B?

# %% tags=["nbval-check-output"]
answer = None  # a number
check("02.1", answer)

# %% [markdown]
# **02.2** For use, an adapter can be folded into its matrix, so that it costs nothing any more. Write
# `merge(w_OI, a_RI, b_OR, alpha)`, which returns that one matrix and leaves W as it is.

# %% tags=["nbval-check-output"]
answer = None  # def merge(w_OI, a_RI, b_OR, alpha): ...
check("02.2", answer)

# %% [markdown]
# **02.3** `memory.museum_adapter(layer, r, alpha)` changes nothing at step 0, as it should, and one thing is wrong with
# it. Write `sound(make)`, true for functions like it that make a right adapter and false for the museum's.
# `LoraLinear` is right. So is one whose zeros are in A. Wrong are: one that is not silent at first, and one whose W
# learns.

# %% tags=["nbval-check-output"]
layer = memory.museum_adapter(torch.nn.Linear(8, 6, bias=False), r=2, alpha=4)
print([(name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters()])
answer = None  # def sound(make): ...
check("02.3", answer)

# %% [markdown]
# **02.4** Another format: four bits a weight, blocks of 32, a 16-bit scale for each block, and nothing more. How many
# bytes a weight?

# %% tags=["nbval-check-output"]
answer = None  # bytes
check("02.4", answer)

# %% [markdown]
# **02.5** A colleague's estimate for LoRA with checkpointing and chunked logits, in bytes. N weights, n of them in
# adapters. Two of its lines are wrong. Give their letters.

# %% tags=["nbval-check-output"]
for letter, size in memory.estimate(thrifty).items():
    print(f"{letter}  {memory.ESTIMATE[letter]:<62} {size / GIB:6.2f} GiB")
answer = None  # {"...", "..."}
check("02.5", answer)

# %% [markdown]
# **02.6** DPO of 8B on 24 GB: one pair a step, rows of 4,096 tokens. `memory.start()` is the plain way, and does not
# fit. Give the settings of `Recipe` to change, as a dictionary: as few and as cheap as will do.

# %% tags=["nbval-check-output"]
p = plan(memory.start(), card)
print(f"{p.peak / GIB:.0f} GiB at the peak, of {card.gib:.1f}:", {k: round(v / GIB, 1) for k, v in p.parts.items()})
answer = None  # {"method": ..., ...}
check("02.6", answer)

# %% [markdown]
# ## Recap
#
# A model's parameters and an adapter's are sums of products, exact to the unit. LoRA freezes W and learns B·A beside
# it; one of the two starts at zero, and only one. It takes gradients and optimizer states off the card, and leaves
# weights, activations and logits where they were. Those go by other means: layers run again, logits in chunks, and
# only then four bits, where the scale for each block does more than the clever levels. The peak is the largest moment,
# not the sum, and it can be counted.
#
# **Next:** `03_sft_round_one` puts the chat format, the loss mask and LoRA to work.
