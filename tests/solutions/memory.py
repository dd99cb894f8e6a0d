"""Solutions of 02_base_and_lora, and the mistakes that each hint is for."""

import torch

from llama3_lab.course.exercises.memory import museum_adapter, swapped_adapter
from llama3_lab.paper.architecture import llama3
from llama3_lab.pipeline.lora import LoraLinear

M = llama3("8b")


def adapters(rank, names, layers=M.layers):
    return layers * sum(rank * sum(M.linear_shapes[n]) for n in names)


def merge(w_OI, a_RI, b_OR, alpha):
    return w_OI + alpha / a_RI.shape[0] * (b_OR @ a_RI)


def in_place(w_OI, a_RI, b_OR, alpha):
    w_OI += alpha / a_RI.shape[0] * (b_OR @ a_RI)
    return w_OI


def sound(make, loud=False, thawed=False):
    """Nothing changes at step 0; after a few steps the output has, and the frozen matrix has not."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, 6, bias=False), torch.randn(5, 8)
    plain, before = layer(x).detach(), layer.weight.detach().clone()
    made = make(layer, 2, 4)
    silent = torch.allclose(made(x), plain, atol=1e-6)
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        made(x).pow(2).sum().backward()
        optimizer.step()
    learned = not torch.allclose(made(x), plain, atol=1e-6)
    frozen = torch.equal(layer.weight, before)
    return (silent or loud) and learned and (frozen or thawed)


PLAIN = {"method": "lora", "checkpointing": True, "logits": "chunked"}
SOLUTIONS = {
    "02.1": adapters(8, ("q_proj", "v_proj")),
    "02.2": merge,
    "02.3": sound,
    "02.4": 0.5625,
    "02.5": {"D", "F"},
    "02.6": PLAIN,
}
WRONG = {
    "02.1": [
        (adapters(8, ("q_proj", "v_proj"), layers=1), "layer"),
        (adapters(8, ("q_proj", "q_proj")), "square"),
        (adapters(8, M.linear_shapes), "everything"),
        (M.layers * sum(o * i for n, (o, i) in M.linear_shapes.items() if n in ("q_proj", "v_proj")), "whole"),
        (adapters(8, ("q_proj",)), "one matrix"),
        (7, "far"),
    ],
    "02.2": [
        (in_place, "in place"),
        (lambda w, a, b, alpha: (w + alpha / 4 * (b @ a)).T, "shape"),
        (lambda w, a, b, alpha: w + b @ a, "scale"),
        (lambda w, a, b, alpha: w + alpha * (b @ a), "alpha"),
        (lambda w, a, b, alpha: w + alpha * 4 * (b @ a), "times"),
        (lambda w, a, b, alpha: w + 4 / alpha * (b @ a), "inverse"),
        (lambda w, a, b, alpha: w - alpha / 4 * (b @ a), "sign"),
        (lambda w, a, b, alpha: alpha / 4 * (b @ a), "only the change"),
        (lambda w, a, b, alpha: w + 1, "far"),
    ],
    "02.3": [
        (lambda make: False, "alarm"),
        (lambda make: make is LoraLinear, "alarm"),
        (lambda make: True, "missed"),
        (lambda make: make in (LoraLinear, swapped_adapter, museum_adapter), "missed"),
        (lambda make: sound(make, loud=True), "partly"),
        (lambda make: sound(make, thawed=True), "partly"),
    ],
    "02.4": [(4.5, "bits"), (0.5, "scale"), (2.5, "every"), (0.625, "scale of 4"), (0.516, "double"), (1.0, "far")],
    "02.5": [({"Z"}, "letters"), ({"A", "D"}, "base"), ({"B", "D", "F"}, "fp32"), ({"D", "E"}, "kept"),
             ({"F"}, "states"), ({"D"}, "chunk")],
    "02.6": [
        ({**PLAIN, "seq": 1024}, "moved"),
        ({"lora": True}, "names"),
        ({**PLAIN, "lora_r": 4}, "smaller"),
        ({"checkpointing": True, "logits": "chunked"}, "full"),
        ({**PLAIN, "reference": "second model"}, "second"),
        ({"method": "lora", "logits": "chunked"}, "large"),
        ({"method": "lora", "checkpointing": True}, "large"),
        ({**PLAIN, "method": "qlora"}, "four bits"),
        ({**PLAIN, "optimizer": "adamw_8bit"}, "optimizer"),
    ],
}  # fmt: skip
