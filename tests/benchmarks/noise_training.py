"""What noise costs in training: a whole step, compilation, waiting for the GPU, the import."""

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from noise_cost import ALPHA, Case, contenders, digits, ratio, wait_for
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from neft_plugins import NEFTConfig, attach_neft

NOISES = ("off", "off again", "built-in", "ours")
COMPILED_STEPS = 20

# Sizes of a Llama, B and T.
TINY = ({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}, 2, 16)
SMALL = ({"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}, 4, 128)
LARGE = ({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}, 8, 1024)


def measure_step(device: torch.device, seed: int, rounds: int, quick: bool) -> dict[str, Any]:
    """A step of training (forward, backward, AdamW) with each noise, over one without."""
    on_gpu = device.type == "cuda"
    sizes, rows, width = TINY if quick else LARGE if on_gpu else SMALL
    dtype, count = (torch.bfloat16, 5) if on_gpu else (torch.float32, 1)
    model = make_llama(sizes, seed, device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = make_batch(rows, width, model.config.vocab_size, device)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for noise in NOISES:  # AdamW makes its state, Triton its kernel
        with noise_on(model, noise, seed):
            step()
    times: dict[str, list[float]] = {noise: [] for noise in NOISES}
    for number in range(rounds):
        for noise in NOISES if number % 2 == 0 else reversed(NOISES):
            with noise_on(model, noise, seed) as neft:
                wait_for(device)
                begun = time.perf_counter()
                for t in range(count):
                    if neft is not None:
                        neft.set_step(t)
                    step()
                wait_for(device)
                times[noise].append((time.perf_counter() - begun) / count)
    return {
        "model": f"Llama, {model.num_parameters() / 1e6:.0f}M parameters, random weights",
        "sizes": sizes,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": [rows, width],
        "optimizer": "AdamW",
        "rounds": rounds,
        "steps_a_turn": count,
        "noises": {
            noise: {
                "ms": digits(1000 * statistics.median(times[noise])),
                "over_off": ratio(times[noise], times["off"]),
            }
            for noise in NOISES
        },
    }


def make_llama(
    sizes: dict[str, int], seed: int, device: torch.device, dtype: torch.dtype
) -> LlamaForCausalLM:
    heads = max(2, sizes["hidden_size"] // 64)
    config = LlamaConfig(
        **sizes,
        vocab_size=32000 if sizes["hidden_size"] > 1000 else 4096,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        pad_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(seed)
    with device:
        return LlamaForCausalLM(config).to(dtype).train()


def make_batch(rows: int, width: int, vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    ids = torch.randint(1, vocabulary, (rows, width), device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@contextmanager
def noise_on(model: LlamaForCausalLM, noise: str, seed: int) -> Iterator[Any]:
    """A model with one of ``NOISES``; the handle, where it is ours."""
    if noise == "ours":
        with attach_neft(model, NEFTConfig(alpha=ALPHA, seed=seed, warn=False)) as neft:
            yield neft
    elif noise == "built-in":
        hook = activate_neftune(model, ALPHA)
        yield None
        deactivate_neftune(model, hook)
    else:
        yield None


def count_compilations(device: torch.device, seed: int) -> dict[str, Any]:
    """A small Llama, compiled, over steps with another alpha each."""
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    torch.compiler.reset()
    counters.clear()
    model = make_llama(TINY[0], seed, device, torch.float32)
    compiled = torch.compile(model, backend=backend)
    batch = make_batch(*TINY[1:], model.config.vocab_size, device)
    config = NEFTConfig(alpha=ALPHA, schedule="linear", seed=seed, warn=False)
    graphs, alphas = [], set()
    with attach_neft(model, config, total_steps=COMPILED_STEPS) as neft:
        for t in range(COMPILED_STEPS):
            neft.set_step(t)
            alphas.add(neft.alpha)
            compiled(**batch).loss.backward()
            model.zero_grad()
            graphs.append(counters["stats"]["unique_graphs"])
    breaks = sum(counters["graph_break"].values())
    torch.compiler.reset()
    return {
        "steps": COMPILED_STEPS,
        "backend": backend,
        "alphas": len(alphas),
        "graphs": graphs[0],
        "recompilations": graphs[-1] - graphs[0],
        "graph_breaks": breaks,
    }


def count_synchronizations(device: torch.device, seed: int, cases: list[Case]) -> int | None:
    """How often the host waits for the GPU because of the noise, as torch tells; None on a CPU."""
    if device.type != "cuda":
        return None
    return sum(
        max(told["in place"], told["fresh"]) - told["lookup"]
        for told in (synchronizations_told(device, seed, case) for case in cases)
    )


def synchronizations_told(device: torch.device, seed: int, case: Case) -> dict[str, int]:
    """In some passes, forward and backward, of a lookup without noise and with ours."""
    told = {}
    with contenders(case, device, seed) as calls:
        for name in ("lookup", "in place", "fresh"):
            calls[name]().sum().backward()  # the first one compiles the kernel
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                for _ in range(COMPILED_STEPS):
                    calls[name]().sum().backward()
                torch.cuda.set_sync_debug_mode("default")
            told[name] = sum("synchronizing" in str(each.message) for each in caught)
    return told


_IMPORT = """
from time import perf_counter
begun = perf_counter()
import torch
had_torch = perf_counter()
import neft_plugins
had_package = perf_counter()
from neft_plugins import NEFTConfig, attach_neft
print(had_torch - begun, had_package - had_torch, perf_counter() - had_torch)
"""


def measure_import(times: int) -> dict[str, Any]:
    """Fresh processes, of which each imports torch first and then the package."""
    seconds = []
    for _ in range(times + 1):
        command = [sys.executable, "-c", _IMPORT]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append([float(word) for word in done.stdout.split()])
    torch_alone, package, names = zip(*seconds[1:], strict=True)  # the first reads the files
    return {
        "processes": times,
        "torch_ms": digits(1000 * statistics.median(torch_alone)),
        "package_ms": digits(1000 * statistics.median(package)),
        "package_and_names_ms": digits(1000 * statistics.median(names)),
    }
