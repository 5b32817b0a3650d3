"""Rows cut over ranks by the hosts themselves: L is that of the whole document.

Ulysses runs whole. Ring attention has no kernel for CPUs, so there each rank attends to its own
part only: what the model learns is wrong, and what it is given, the noise with it, is right.
"""

import math
from typing import Any

import engines
import pytest
import torch
import training
from checks import ALPHA, NOISE, documents
from recorder import are_two_draws
from torch import Tensor
from training import HIDDEN, PROMPT

pytestmark = pytest.mark.slow

# gloo gathers tensors of one size only, and the parts are equal only if the rows can be cut.
WIDTH = {"max_length": 64, "pad_to_multiple_of": 40, "per_device_train_batch_size": 8}


def train_with_local_attention(*arguments: Any) -> dict[str, Any]:
    """All of torch's context_parallel but the ring."""
    from torch.distributed.tensor.experimental._context_parallel import _attention

    _attention._enable_context_parallel_dispatcher_impl = lambda **how: None
    _attention._disable_context_parallel_dispatcher_impl = lambda: None
    return training.train(*arguments)


def head_and_tail(parts: list[Tensor]) -> Tensor:
    """Of 2 S parts of a row, torch gives rank r part r from the front and part r from the back."""
    heads, tails = zip(*(part.chunk(2, dim=1) for part in parts), strict=True)
    return torch.cat([*heads, *reversed(tails)], dim=1)


def contiguous(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1)


def check_noise_of_parts(ranks: list[dict], join: Any) -> None:
    """On the rows put together: the equation; and parts whose noise is their own."""
    for step, passes in enumerate(zip(*(rank["passes"] for rank in ranks), strict=True)):
        alpha = ALPHA * (1 - step / len(ranks[0]["passes"]))
        ids = join([each.ids for each in passes])
        noise = join([each.noise for each in passes]).abs()
        expected = torch.zeros(ids.shape)
        assert len(documents(ids)) == len(ids)
        for row, column, length in documents(ids):
            assert column == 0
            expected[row, PROMPT:length] = alpha / math.sqrt(3 * length * HIDDEN)
        wanted = expected.unsqueeze(-1).expand(noise.shape)
        torch.testing.assert_close(noise, wanted, rtol=0, atol=1e-6)
        assert are_two_draws(*passes)


def test_accelerates_context_parallelism(tmp_path):
    ranks = engines.train(
        tmp_path,
        engines.parallelism(engines.fsdp2(), cp_size=2),
        NOISE | WIDTH,
        function=train_with_local_attention,
    )
    check_noise_of_parts(ranks, head_and_tail)


def test_a_mesh_of_data_and_context_parallelism(tmp_path):
    ranks = engines.train(
        tmp_path,
        engines.parallelism(engines.fsdp2(), dp_shard_size=2, cp_size=2) | {"num_processes": 4},
        NOISE | WIDTH,
        world_size=4,
        function=train_with_local_attention,
    )
    check_noise_of_parts(ranks[:2], head_and_tail)
    check_noise_of_parts(ranks[2:], head_and_tail)
    for one, other in zip(ranks[0]["passes"], ranks[2]["passes"], strict=True):
        assert not torch.equal(one.ids, other.ids)
        assert are_two_draws(one, other)


def test_ulysses_sequence_parallelism(tmp_path):
    deepspeed = pytest.importorskip("deepspeed")
    if tuple(map(int, deepspeed.__version__.split(".")[:2])) < (0, 19):
        pytest.skip("DeepSpeed before 0.19 gathers a tensor without dimensions, which gloo refuses")
    sizes = {
        "sp_size": 2,
        "sp_backend": "deepspeed",
        "sp_seq_length_is_variable": True,
        "sp_attn_implementation": "sdpa",
    }
    engine = engines.parallelism(engines.zero(3), **sizes)
    ranks = engines.train(tmp_path, engine, NOISE | WIDTH)
    check_noise_of_parts(ranks, contiguous)
