"""Small models and data, and a record of the noise that reaches the first decoder layer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

REPO = Path(__file__).resolve().parents[2]
MODEL = str(REPO / "recipes" / "quickstart" / "model")
DATA = str(REPO / "recipes" / "quickstart" / "data")


def tiny_llama(**config: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes | heads | config)).train()


def neft(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the ``neft`` command as a user does."""
    command = [str(Path(sys.executable).with_name("neft")), *arguments]
    defaults = {"COLUMNS": "160", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        env={**os.environ, **defaults, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def count_hooks(model: nn.Module) -> int:
    """Our hooks on a model and its modules."""
    modules = list(model.modules())
    hooks = [
        h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    return sum(hook.__module__.startswith("neft_plugins") for hook in hooks)


@dataclass
class Pass:
    """One forward pass as the first decoder layer saw it."""

    noise: Tensor  # (B, T, D) what was added to the lookup
    ids: Tensor
    with_gradients: bool
    training: bool

    @property
    def noisy(self) -> bool:
        return bool(self.noise.abs().max() > 0)


@contextmanager
def recorded_passes(model: nn.Module) -> Iterator[list[Pass]]:
    """Note every pass of a Llama, or of the Llama inside PEFT.

    The lookup is taken from the embedding's output, before any other hook changes it: its weight
    may be a shard of itself by the time that the first layer is called.
    """
    embedding = model.get_input_embeddings()
    layer = model.get_decoder().layers[0]
    passes: list[Pass] = []
    lookups: list[tuple[Tensor, Tensor, bool]] = []

    def note_lookup(module: nn.Module, args: tuple, output: Tensor) -> None:
        lookups.append((args[0], output.detach(), torch.is_grad_enabled()))

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if len(passes) == len(lookups):
            return  # activation checkpointing runs the layer again
        ids, lookup, with_gradients = lookups[-1]
        with torch.no_grad():  # a checkpoint that holds the layer counts the tensors saved for it
            noise = (args[0] if args else kwargs["hidden_states"]) - lookup
        passes.append(Pass(noise, ids, with_gradients, module.training))

    hooks = [
        embedding.register_forward_hook(note_lookup, prepend=True),
        layer.register_forward_pre_hook(note, with_kwargs=True),
    ]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()
