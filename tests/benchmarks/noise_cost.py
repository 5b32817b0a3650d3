"""What noise adds to a lookup of token embeddings: time and memory, all contenders in turns."""

import gc
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from neft_plugins import NEFTConfig, attach_neft

ALPHA = 5.0
VOCABULARY = 1024  # a small one: the rows looked up are not what is measured
LEAST_ROUNDS, MOST_ROUNDS = 5, 100
NOISES = ("hook", "in place", "fresh", "copy")


class Case(NamedTuple):
    """What is looked up, and which of it gets what noise.

    Attributes:
        sweep: What it is measured for.
        batch: B rows of T tokens.
        d: Size of an embedding.
        dtype: Of the embeddings.
        distribution: Of our noise; the hook's is uniform.
        tokens: Of our noise; the hook's is on all. The first half of each row is a prompt.
        documents: Packed in the rows, told apart by ``position_ids``; None is a padded batch.
    """

    sweep: str
    batch: tuple[int, int]
    d: int
    dtype: str = "float32"
    distribution: str = "uniform"
    tokens: str = "all"
    documents: int | None = None

    @property
    def bytes(self) -> int:
        """Of the embeddings."""
        return math.prod(self.batch) * self.d * getattr(torch, self.dtype).itemsize

    @property
    def record(self) -> dict[str, Any]:
        """How it stands in the results."""
        record = self._asdict() | {"coordinates": math.prod(self.batch) * self.d}
        return {name: value for name, value in record.items() if value is not None}


class Lookup(nn.Module):
    """The first line of a model."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: Tensor, **batch: Tensor) -> Tensor:
        return self.embedding(input_ids)


class OwnEmbedding(nn.Embedding):
    """An embedding with a forward pass of its own: it might keep what it returns."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids)


Call = Callable[[], Tensor]


@contextmanager
def contenders(case: Case, device: torch.device, seed: int) -> Iterator[dict[str, Call]]:
    """The lookup without noise, and with each; as a Trainer would call them."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn((VOCABULARY, case.d), generator=draw) * 0.02
    weight = nn.Parameter(weight.to(device, getattr(torch, case.dtype)))
    batch = {name: t.to(device) for name, t in make_batch(case, draw).items()}
    config = NEFTConfig(
        alpha=ALPHA, distribution=case.distribution, tokens=case.tokens, seed=seed, warn=False
    )

    def lookup(kind: type[nn.Embedding] = nn.Embedding) -> Lookup:
        embedding = kind(VOCABULARY, case.d, device="meta")
        embedding.weight = weight
        return Lookup(embedding).train()

    def ours(model: Lookup, neft: Any) -> Call:
        steps = itertools.count()

        def call() -> Tensor:
            neft.set_step(next(steps))
            return model(**batch)

        return call

    plain, hooked, known, own = lookup(), lookup(), lookup(), lookup(OwnEmbedding)
    hook = activate_neftune(hooked, ALPHA)
    try:
        with (
            attach_neft(known, config, embedding="embedding") as in_place,
            attach_neft(own, config, embedding="embedding") as fresh,
        ):
            yield {
                "lookup": lambda: plain(**batch),
                "hook": lambda: hooked(**batch),
                "in place": ours(known, in_place),
                "fresh": ours(own, fresh),
                "copy": lambda: plain(**batch).clone(),
            }
    finally:
        deactivate_neftune(hooked, hook)


def make_batch(case: Case, draw: torch.Generator) -> dict[str, Tensor]:
    """A batch of random tokens without padding."""
    rows, width = case.batch
    ids = torch.randint(VOCABULARY, case.batch, generator=draw)
    batch = {"input_ids": ids, "labels": ids.clone()}
    batch["labels"][:, : width // 2] = -100
    if case.documents is None:
        return batch | {"attention_mask": torch.ones_like(ids)}
    # The first token of each document: those of the rows, and others by chance.
    others = [place for place in range(rows * width) if place % width]
    chosen = torch.randperm(len(others), generator=draw)[: case.documents - rows]
    starts = torch.arange(0, rows * width, width).tolist() + [others[i] for i in chosen.tolist()]
    places = torch.arange(rows * width)
    first = torch.zeros_like(places)
    first[starts] = torch.tensor(starts)
    return batch | {"position_ids": (places - first.cummax(0).values).view(case.batch)}


def measure(case: Case, device: torch.device, seed: int, seconds: float) -> dict[str, Any]:
    """The case's time and memory, as they stand in the results.

    Args:
        case: What to measure.
        device: Where.
        seed: Of the tokens and of our noise.
        seconds: About how long; five rounds at the least.

    Returns:
        The case; milliseconds of the lookup; and for each noise the milliseconds that it adds
        (median over rounds), their ratio to those of the hook and of the copy in the same round
        (median, and 25 to 75 %), and the most memory held beside the embeddings, over their bytes.
    """
    with contenders(case, device, seed) as calls:
        extra = {noise: extra_memory(calls[noise], device) for noise in NOISES}
        times, calls_a_turn = interleave(calls, device, seconds)
    added = {
        noise: [a - b for a, b in zip(times[noise], times["lookup"], strict=True)]
        for noise in NOISES
    }
    return case.record | {
        "rounds": len(times["lookup"]),
        "calls_a_turn": calls_a_turn,
        "lookup_ms": digits(1000 * statistics.median(times["lookup"])),
        "noises": {
            noise: {
                "ms": digits(1000 * statistics.median(added[noise])),
                "over_hook": ratio(added[noise], added["hook"]),
                "over_copy": ratio(added[noise], added["copy"]),
                "extra_memory": digits(extra[noise]),
            }
            for noise in NOISES
        },
    }


def interleave(
    calls: dict[str, Call], device: torch.device, seconds: float
) -> tuple[dict[str, list[float]], int]:
    """Take turns, forth and back, so that what disturbs the machine disturbs all alike.

    Returns:
        The seconds of a call of each, by rounds; and how many calls a turn has.
    """
    for _ in range(2):  # the first time is a warm-up
        once = {name: take_turn(call, 1, device) for name, call in calls.items()}
    # A turn is long beside the clock's steps.
    count = min(100, math.ceil(0.01 / max(once.values())))
    times: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        for name in calls if number % 2 == 0 else reversed(calls):
            times[name].append(take_turn(calls[name], count, device))
    return times, count


def take_turn(call: Call, count: int, device: torch.device) -> float:
    """Seconds of a call, the mean of some; what it returns is freed at once."""
    wait_for(device)
    begun = time.perf_counter()
    for _ in range(count):
        call()
    wait_for(device)
    return (time.perf_counter() - begun) / count


def extra_memory(call: Call, device: torch.device) -> float:
    """The most bytes held at once in a call beside those of its output, over the latter."""
    call()
    gc.collect()
    if device.type == "cuda":
        wait_for(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        output = call()
        most = torch.cuda.max_memory_allocated(device) - before
    else:
        with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            output = call()
        events = profiled.profiler.kineto_results.events()
        memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
        most = max(itertools.accumulate(e.nbytes() for e in memory))
    return most / output.nbytes - 1


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that the profiler's C++ writes to stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(these: list[float], those: list[float]) -> dict[str, Any] | None:
    """Of each round, median and middle half; None where the others are too short to be told."""
    found = [a / b for a, b in zip(these, those, strict=True) if b > 0]
    if len(found) < len(those) / 2:
        return None
    first, median, third = statistics.quantiles(found, n=4, method="inclusive")
    return {"median": round(median, 3), "25_to_75_percent": [round(first, 3), round(third, 3)]}


def digits(number: float) -> float:
    """Four of them."""
    return float(f"{number:.4g}")
