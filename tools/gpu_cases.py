"""attempt(): one recipe tried on a device, with random weights that are made there; for tools/measure_gpu.py.

Training cases go through TRL's trainers with the settings of llama3_lab/pipeline/training.py and LoRA on all linear
layers, nothing beside it (no embeddings trained in full), as profile 8b has it. Rows are full, and the loss is on every
token; where the recipe says that rows are not packed, all but the first of a step are a little shorter, so that they
are padded, as real ones are. A guard reads B questions at once and scores one token; sampling is transformers'
`generate`, each row a prompt of its own. On a card the weights never touch the host: a model is built without storage,
and its tensors are drawn on the card one by one, those of QLoRA put into 4 bits at once.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from llama3_lab import profiles
from llama3_lab.models import lora_config, quiet
from llama3_lab.paper import scale, weights
from llama3_lab.paper.architecture import Architecture
from llama3_lab.paper.gpu_runs import GpuCase
from llama3_lab.paper.recipe import Recipe
from llama3_lab.shrunken import hub_config

PAD, EOS = 0, 1  # ids of the stand-in tokenizer; drawn rows have neither
SPREAD = 0.02  # of the random weights
SHORTER = 64  # a padded row lacks one token in so many
DPO_PROMPT = 16  # tokens of a pair's prompt at the most: nearly all of a row is answer
MEMORY_WORDS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


@dataclass(frozen=True)
class How:
    """How every case is tried. deadline: by time.monotonic; after it no further step is begun. tflops: 0 if unknown."""

    device: str
    attention: str
    seed: int
    warm_up: int
    steps: int
    deadline: float
    tflops: float


class TimeUp(Exception):
    """The deadline came before a single step could be timed."""


class CardLost(Exception):
    """The card answers no more; nothing else can be measured in this process."""


def attempt(case: GpuCase, how: How) -> GpuCase:
    """Return the case with what was measured, or with what went wrong; never raises for what a case does.

    Raises:
        CardLost: if the card answers no more.
    """
    clear(how.device)
    before = in_use(how.device)
    try:
        done = replace(_measured(case, how), before=before)
    except TimeUp:
        done = replace(case, outcome="not reached", why="the time was up before a step could be timed", before=before)
    except Exception as error:
        done = replace(case, outcome="failed", why=_brief(error), before=before)
        if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in MEMORY_WORDS):
            done = replace(done, outcome="out of memory", why="")
    try:
        clear(how.device)  # here: as long as an exception is handled, its frames hold the tensors
    except RuntimeError as error:
        raise CardLost(done.why or _brief(error)) from None
    return done


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _measured(case: GpuCase, how: How) -> GpuCase:
    clock = Clock(how)
    steps = {"sample": _sample, "guard": _guard}.get(case.stage, _train)
    with quiet():
        note = steps(case, how, clock)
    if not clock.seconds:
        raise TimeUp
    seconds = statistics.median(clock.seconds)
    rate = case.step_flops / seconds / scale.TERA
    peak, reserved = peaks(how.device)
    return replace(case, outcome="measured", why=note, steps=len(clock.seconds), seconds=seconds,
                   tokens_per_second=case.step_tokens / seconds, peak=peak, reserved=reserved,
                   mfu=rate / how.tflops if how.tflops else None)  # fmt: skip


# -- memory


def wait(device: str) -> None:
    """Return when the device has done all that it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def in_use(device: str) -> int | None:
    """Return the bytes that tensors take on a card; None on a CPU."""
    return torch.cuda.memory_allocated() if device == "cuda" else None


def peaks(device: str) -> tuple[int | None, int | None]:
    """Return the most bytes allocated and reserved since the last reset; None each on a CPU."""
    return (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if device == "cuda" else (None, None)


def clear(device: str) -> None:
    """Give back all that nobody holds any more, cuBLAS's workspaces too."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        torch.cuda.empty_cache()


class Clock(TrainerCallback):
    """Times a trainer's steps, or any others, after `how.warm_up` of them; memory is counted over the same steps."""

    def __init__(self, how: How) -> None:
        self.how = how
        self.done = 0
        self.seconds: list[float] = []
        self.started = 0.0

    def start(self) -> None:
        """Begin a step; before the first timed one, the peaks begin anew."""
        wait(self.how.device)
        if self.done == self.how.warm_up and self.how.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()

    def stop(self) -> bool:
        """End a step; return whether another should follow."""
        wait(self.how.device)
        if self.done >= self.how.warm_up:
            self.seconds.append(time.perf_counter() - self.started)
        self.done += 1
        return self.done < self.how.warm_up + self.how.steps and time.monotonic() < self.how.deadline

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.stop():
            control.should_training_stop = True


# -- the model


def config_of(model: Architecture, attention: str) -> LlamaConfig:
    """Return Llama-3.1-8B's config for that shape, with the stand-in tokenizer's padding."""
    known = {k: v for k, v in hub_config(model).items() if k not in ("architectures", "model_type", "torch_dtype")}
    config = LlamaConfig(**known, pad_token_id=PAD, num_labels=1)
    config._attn_implementation = attention
    return config


def new_model(case: GpuCase, how: How) -> Any:
    """Return a model with random weights in bf16 on the device, a reward model for that stage; QLoRA's base in NF4."""
    config = config_of(case.recipe.model, how.attention)
    kind = AutoModelForSequenceClassification if case.stage == "reward" else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config, dtype=torch.bfloat16, attn_implementation=how.attention)
    quantizer = _quantizer(model) if case.recipe.method == "qlora" else None
    generator = torch.Generator(how.device).manual_seed(how.seed)
    for module in model.modules():
        for name, hollow in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, _drawn(hollow, how.device, generator))
    rotary = model.model.rotary_emb  # what it computes when it is made has no values on the meta device
    model.model.rotary_emb = type(rotary)(config=config).to(how.device)
    if hollow_names := [n for n, t in chain(model.named_parameters(), model.named_buffers()) if t.is_meta]:
        raise RuntimeError(f"{', '.join(hollow_names[:3])} would stay without values; this transformers is too new")
    if quantizer is not None:
        quantizer.postprocess_model(model)
    return model.eval()


def _drawn(hollow: torch.nn.Parameter, device: str, generator: torch.Generator) -> torch.nn.Parameter:
    """Return a parameter of the same shape with values; a norm's are ones. A 4-bit one is quantised at once."""
    data = torch.ones(hollow.shape, dtype=torch.bfloat16, device=device)
    if hollow.ndim > 1:
        data.normal_(0.0, SPREAD, generator=generator)
    if type(hollow) is torch.nn.Parameter:
        return torch.nn.Parameter(data, hollow.requires_grad)
    return type(hollow)(data, requires_grad=False, **hollow.__dict__).to(device)  # as transformers does on loading


def _quantizer(model: Any) -> Any:
    """Put 4-bit layers into a model without storage, as loading it with QLoRA's settings would."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["lm_head", "score"])  # fmt: skip
    quantizer = AutoHfQuantizer.from_config(how, pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map=None)
    model.config.quantization_config = how
    model.hf_quantizer = quantizer
    model.is_loaded_in_4bit = True
    return quantizer


# -- stages that only read


@torch.inference_mode()
def _guard(case: GpuCase, how: How, clock: Clock) -> str:
    """Read B questions and score the first token, as llama3_lab.safety.guard does."""
    model, (rows, seq) = new_model(case, how), (case.recipe.micro_batch, case.recipe.seq)
    ids_BT = _ids((rows, seq), case.recipe.model, how)
    more = True
    while more:
        clock.start()
        hidden_BTD = model.model(ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).last_hidden_state
        model.lm_head(hidden_BTD[:, -1])[:, :2].float().softmax(-1).tolist()
        del hidden_BTD
        more = clock.stop()
    return ""


@torch.inference_mode()
def _sample(case: GpuCase, how: How, clock: Clock) -> str:
    """Write the recipe's answers, one to each prompt."""
    model, recipe = new_model(case, how), case.recipe
    ids_BT = _ids((recipe.micro_batch, recipe.prompt), recipe.model, how)
    new = recipe.seq - recipe.prompt
    settings = GenerationConfig(max_new_tokens=new, min_new_tokens=new, do_sample=True, temperature=1.0, top_k=0,
                                top_p=1.0, pad_token_id=PAD, eos_token_id=None)  # fmt: skip
    more = True
    while more:
        clock.start()
        out = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=settings)
        more = clock.stop()
        if out.shape[1] != recipe.seq:
            raise RuntimeError(f"{out.shape[1]} tokens instead of {recipe.seq}")
        del out
    return ""


def _ids(shape: tuple[int, int], model: Architecture, how: How) -> torch.Tensor:
    generator = torch.Generator().manual_seed(how.seed)
    return torch.randint(EOS + 1, model.vocabulary, shape, generator=generator).to(how.device)


# -- stages that train


class _Apart:
    """Nothing is sent to TRL's makers, and rows that are token ids already stay as they are."""

    def _send_telemetry(self) -> None:
        return None

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]


class Sft(_Apart, SFTTrainer): ...


class Reward(_Apart, RewardTrainer): ...


class Dpo(_Apart, DPOTrainer): ...


def arguments(recipe: Recipe, how: How, folder: str) -> dict[str, Any]:
    """Return the trainers' settings: those of pipeline/training.py, at the 8B profile's values."""
    fit = profiles.EIGHT_B.sft.fit
    return {
        "output_dir": folder, "seed": how.seed, "data_seed": how.seed, "use_cpu": how.device == "cpu", "bf16": True,
        "learning_rate": fit.learning_rate, "max_steps": how.warm_up + how.steps, "warmup_steps": 0,
        "lr_scheduler_type": "linear", "optim": "adamw_torch", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "adam_beta2": fit.adam_beta2, "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": 1, "gradient_checkpointing": recipe.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "logging_steps": 1, "logging_nan_inf_filter": False, "report_to": [],
        "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True, "dataloader_num_workers": 0,
        "dataloader_pin_memory": False, "dataloader_drop_last": False, "push_to_hub": False,
    }  # fmt: skip


def _train(case: GpuCase, how: How, clock: Clock) -> str:
    """Train for the clock's steps; return a note where the planner's recipe is not what is trained."""
    model = new_model(case, how)
    make = {"sft": _sft, "reward": _reward, "dpo": _dpo}[case.stage]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(model, case.recipe, how, folder)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return _differs(trainer.model, case.recipe)


def _sft(model: Any, recipe: Recipe, how: How, folder: str) -> Any:
    rows = {"input_ids": _rows(recipe, how, 0)}
    return Sft(
        model, args=SFTConfig(**arguments(recipe, how, folder), max_length=None, packing=False, loss_type="nll",
                              dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_dict({**rows, "labels": rows["input_ids"]}), processing_class=tokenizer(),
        peft_config=_adapters(recipe, "CAUSAL_LM"))  # fmt: skip


def _reward(model: Any, recipe: Recipe, how: How, folder: str) -> Any:
    rows = {"chosen_ids": _rows(recipe, how, 0), "rejected_ids": _rows(recipe, how, 1)}
    return Reward(
        model, args=RewardConfig(**arguments(recipe, how, folder), max_length=None, center_rewards_coefficient=None,
                                 disable_dropout=True),
        train_dataset=Dataset.from_dict(rows), processing_class=tokenizer(),
        peft_config=_adapters(recipe, "SEQ_CLS"))  # fmt: skip


def _dpo(model: Any, recipe: Recipe, how: How, folder: str) -> Any:
    dpo, chosen, rejected = profiles.EIGHT_B.dpo, _rows(recipe, how, 0), _rows(recipe, how, 1)
    prompt = min(DPO_PROMPT, recipe.seq // 2)
    rows: dict[str, Any] = {
        "prompt_ids": [row[:prompt] for row in chosen], "chosen_ids": [row[prompt:] for row in chosen],
        "rejected_ids": [row[prompt:] for row in rejected],
        # Any number does: the reference's log-probabilities are taken before the training, and none is computed in it.
        "ref_chosen_logps": [0.0] * len(chosen), "ref_rejected_logps": [0.0] * len(chosen),
    }  # fmt: skip
    trainer = Dpo(
        model, ref_model=None,
        args=DPOConfig(**arguments(recipe, how, folder), beta=dpo.beta, max_length=None, loss_type=["sigmoid", "sft"],
                       loss_weights=[1.0, dpo.nll_weight], label_smoothing=0.0, precompute_ref_log_probs=False,
                       disable_dropout=True),
        train_dataset=Dataset.from_dict(rows), processing_class=tokenizer(),
        peft_config=_adapters(recipe, "CAUSAL_LM"))  # fmt: skip
    trainer.precompute_ref_logps = True
    return trainer


def _adapters(recipe: Recipe, task: Any) -> Any:
    how = replace(profiles.EIGHT_B.sft.lora, r=recipe.lora_r)
    return lora_config(how, task, ("score",) if task == "SEQ_CLS" else ())


def _rows(recipe: Recipe, how: How, part: int) -> list[list[int]]:
    """Return random token ids, one row for each place in every step. part: 0 holds the row that is full in any case."""
    generator = torch.Generator().manual_seed(2 * how.seed + part)
    shape = (recipe.micro_batch * (how.warm_up + how.steps), recipe.seq)
    rows = torch.randint(EOS + 1, recipe.model.vocabulary, shape, generator=generator).tolist()
    short = recipe.seq - max(1, recipe.seq // SHORTER)
    full = [recipe.packing or (part == 0 and i % recipe.micro_batch == 0) for i in range(len(rows))]
    return [row if whole else row[:short] for row, whole in zip(rows, full, strict=True)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that only knows how to pad: trainers ask for one, and rows are ids already."""
    words = Tokenizer(WordLevel({"<pad>": PAD, "<end>": EOS}, unk_token="<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def _differs(model: Any, recipe: Recipe) -> str:
    """Return in words where what was trained is not what the planner counts; "" where it is."""
    trained = [p for p in model.parameters() if p.requires_grad]
    found, counted = sum(p.numel() for p in trained), weights.trained(recipe)
    if found != counted:
        return f"{found} weights are trained, and the planner counts {counted}"
    adapters = {p.dtype for n, p in model.named_parameters() if p.requires_grad and "lora_" in n}
    wanted = torch.float32 if recipe.adapter_dtype == "fp32" else torch.bfloat16
    return "" if adapters == {wanted} else f"adapters are {', '.join(map(str, adapters))}, planned as {wanted}"
