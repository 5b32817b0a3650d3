"""The noise in a run of Axolotl on the quickstart's model: keys, and the equation at every token.

Rademacher noise has one size, so a token's noise is alpha / sqrt(3 n d) in every coordinate, for
the n tokens of its document. Documents are read from the text here (each begins with BOS, padding
is PAD), and not from what the model is told of them.
"""

import math
from typing import Any

import torch
from torch import Tensor

BOS, PAD = 0, 2
ALPHA = 5.0
NOISE = {"neftune_noise_alpha": ALPHA, "neft_distribution": "rademacher"}
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    **dict.fromkeys(KERNELS, False),  # which need a GPU
}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}


def documents_of(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T): the number of each token's document, and which tokens are real, from the text."""
    return (ids == BOS).flatten().cumsum(0).view(ids.shape), ids != PAD


def check_noise(
    step: Any, alpha: float = ALPHA, tokens: str = "all", length: str = "sequence"
) -> tuple[Tensor, Tensor]:
    """Every coordinate of every token has the size that the equation gives it."""
    number, real = documents_of(step.ids)
    labels = step.given.get("labels")
    rule = {
        "all": lambda: real,
        "response": lambda: labels != -100,
        "prompt": lambda: real & (labels == -100),
    }
    noised = rule[tokens]() & real
    counted = noised if length == "noised" else real
    hidden_size = step.noise.shape[-1]
    expected = torch.zeros(step.ids.shape)
    for document in number.unique():
        inside = number == document
        count = int((inside & counted).sum())
        expected[inside & noised] = alpha / math.sqrt(3 * max(count, 1) * hidden_size)
    assert noised.any()
    rounding = 0.5 * torch.finfo(step.noise.dtype).eps  # of a sum under 1
    torch.testing.assert_close(
        step.noise.float().abs(),
        expected.unsqueeze(-1).expand(step.noise.shape),
        rtol=1e-3,
        atol=rounding,
    )
    return number, real
