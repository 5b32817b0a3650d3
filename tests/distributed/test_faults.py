"""What goes wrong on a rank: every rank ends, the error is in the output, no hook is left."""

import math
import os
import signal
import time
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import training
from datasets import Dataset
from faults import before, raises, start
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from neft_plugins import NEFTSFTTrainer
from neft_plugins.noise import tokens

pytestmark = pytest.mark.slow

KEYS = {"neftune_noise_alpha": 5.0, "neft_tokens": "response", "completion_only_loss": True}
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


@contextmanager
def token_rule_raises():
    def rule(view: Any) -> Any:
        raise ArithmeticError("the rule is wrong")

    with mock.patch.object(tokens, "response", rule):
        yield


FAULTS = {
    "data": (partial(raises, Dataset, "__getitems__", 1, OSError("a bad row")), "a bad row"),
    "forward": (
        partial(raises, LlamaDecoderLayer, "forward", 7, RuntimeError("a bad layer")),
        "a bad layer",
    ),
    "token rule": (token_rule_raises, "ArithmeticError: the rule is wrong"),
    "memory": (
        partial(raises, LlamaDecoderLayer, "forward", 7, torch.OutOfMemoryError(OUT_OF_MEMORY)),
        OUT_OF_MEMORY,
    ),
}


@pytest.mark.parametrize(
    ("engine", "fault"),
    [*(("DDP", fault) for fault in FAULTS), ("ZeRO-3", "token rule"), ("ZeRO-3", "memory")],
)
def test_a_rank_that_fails_ends_the_run_and_says_why(engine, fault, tmp_path):
    what, message = FAULTS[fault]
    run = start(tmp_path, engine, KEYS, what, rank=1)
    codes = run.wait_as_a_launcher(60)
    assert all(codes)
    assert message in run.output(1)
    assert "0 hooks are left" in run.output(1)


@pytest.mark.parametrize("engine", [None, "DDP"])
def test_ctrl_c_ends_every_rank(engine, tmp_path):
    run = start(tmp_path, engine, KEYS | {"max_steps": 100_000})
    while "'loss'" not in run.output(0):
        assert run.processes[0].is_alive(), run.printed()
        time.sleep(0.05)
    for process in run.processes:
        os.kill(process.pid, signal.SIGINT)
    assert all(run.wait(60))
    assert "KeyboardInterrupt" in run.printed()
    for rank in range(len(run.processes)):
        assert "0 hooks are left" in run.output(rank)


@pytest.mark.parametrize("engine", [None, "DDP"])
def test_a_smaller_batch_after_memory_ran_out_has_the_noise_of_its_own_run(engine, tmp_path):
    """`auto_find_batch_size` begins the training anew, inside `train`, with the noise still on."""
    fault = FAULTS["memory"][0]
    keys = KEYS | {"auto_find_batch_size": True, "per_device_train_batch_size": 4}
    retried = start(tmp_path / "retried", engine, keys, fault, rank=None).results()
    small = {"per_device_train_batch_size": find_batch_size(retried[0])}
    plain = start(tmp_path / "plain", engine, KEYS | small).results()
    for ours, theirs in zip(retried, plain, strict=True):
        assert small["per_device_train_batch_size"] < 4
        for mine, other in zip(ours["passes"][-2:], theirs["passes"], strict=True):
            assert torch.equal(mine.ids, other.ids)
            # The first attempt has moved the weights, and a sum with them is rounded otherwise.
            torch.testing.assert_close(mine.noise, other.noise, rtol=1e-3, atol=1e-5)
        assert ours["left"] == theirs["left"]
        assert ours["hooks"] == 0


def find_batch_size(record: dict[str, Any]) -> int:
    return len(record["passes"][-1].ids)


def nan_loss():
    compute_loss = NEFTSFTTrainer.compute_loss
    return mock.patch.object(
        NEFTSFTTrainer, "compute_loss", lambda *args, **how: compute_loss(*args, **how) * math.nan
    )


def test_a_nan_loss_is_not_the_noises(tmp_path):
    """The host trains on; the noise is what it was, and its metrics stay numbers."""
    records = start(tmp_path, "DDP", KEYS | {"max_steps": 3}, nan_loss, rank=1).results()
    for record in records:
        assert not math.isfinite(record["log"][-1]["grad_norm"])
        assert [log["neft/alpha"] for log in record["log"]] == [5.0] * 3
        assert all(log["neft/noise_rms"] > 0 for log in record["log"])
        assert record["hooks"] == 0


def batch_without(*names: str):
    """A batch of padding, or without a token that is trained on."""

    def empty(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        for name in names:
            inputs[name].fill_(-100 if name == "labels" else 0)

    return before(NEFTSFTTrainer, "compute_loss", empty)


@pytest.mark.parametrize("engine", ["DDP", "ZeRO-3"])
@pytest.mark.parametrize("names", [["labels"], ["labels", "attention_mask"]])
def test_a_rank_with_nothing_to_noise_trains_with_the_others(engine, names, tmp_path):
    fault = partial(batch_without, *names)
    records = start(tmp_path, engine, KEYS, fault, rank=1).results()
    for ours, theirs in zip(*(record["passes"] for record in records), strict=True):
        assert ours.noisy
        assert not theirs.noisy
    for record in records:
        assert all(math.isfinite(log["grad_norm"]) for log in record["log"])
    assert all(log["neft/noised_tokens"] == 0 for log in records[1]["log"])


def one_row():
    return mock.patch.object(training, "dataset", partial(first_row, training.dataset))


def first_row(dataset: Any) -> Any:
    return dataset().select(range(1))


def test_fewer_rows_than_ranks(tmp_path):
    """accelerate gives the row to each rank; each has noise of its own."""
    records = start(tmp_path, "DDP", KEYS, one_row, rank=None).results()
    for ours, theirs in zip(*(record["passes"] for record in records), strict=True):
        assert torch.equal(ours.ids[0], theirs.ids[0])
        assert not torch.equal(ours.noise[0], theirs.noise[0])


@pytest.mark.parametrize("engine", [None, "DDP"])
@pytest.mark.parametrize("file", ["optimizer.pt", "neft_config.tmp"])
def test_a_full_disk_is_told_and_what_it_cut_short_is_not_resumed(engine, file, tmp_path):
    """What is written to /dev/full finds no space left."""
    checkpoint = tmp_path / "out" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / file).symlink_to("/dev/full")
    keys = KEYS | {"save_strategy": "steps", "save_steps": 1}
    full = start(tmp_path, engine, keys)
    assert full.wait_as_a_launcher(60)[0]
    assert "0 hooks are left" in full.output(0)
    # The first is PyTorch's way to say it.
    told = {"optimizer.pt": "unexpected pos", "neft_config.tmp": "No space left on device"}
    assert told[file] in full.output(0)
    (checkpoint / file).unlink()
    again = start(tmp_path, engine, keys, resume="latest")
    assert [len(record["passes"]) for record in again.results()] == [2] * len(again.processes)
    assert "passed over: checkpoint-1 in" in again.output(0)
