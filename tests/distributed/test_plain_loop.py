"""``attach_neft`` around what wraps a model in a loop of one's own, on two ranks."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from helpers import tiny_llama
from ranks import run_on_ranks
from recorder import are_two_draws, count_hooks, recorded, to_save
from torch import distributed as dist

from neft_plugins import NEFTConfig, attach_neft

TOKENS, HIDDEN, STEPS, PASSES = 9, 64, 3, 2


def wrap(model: Any, engine: str) -> Any:
    if engine == "DDP":
        return torch.nn.parallel.DistributedDataParallel(model)
    if engine == "FSDP2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    import deepspeed
    from gloo_ranks import gather_without_compiling

    gather_without_compiling()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": int(engine[-1])},
    }
    return deepspeed.initialize(model=model, config=config)[0]


def loop(engine: str) -> dict[str, Any]:
    dist.init_process_group("gloo")
    # A second pass of one micro-batch is no loop that forgets the step, whatever the engine does.
    warnings.filterwarnings("error", "A second training forward pass")
    torch.manual_seed(0)
    inner = tiny_llama(hidden_size=HIDDEN)
    model = wrap(inner, engine)
    config = NEFTConfig(alpha=5.0, distribution="rademacher", schedule="linear", seed=3)
    with recorded(inner) as calls, attach_neft(model, config, total_steps=STEPS) as neft:
        for step in range(STEPS):
            neft.set_step(step)
            ids = torch.randint(3, 64, (2, TOKENS))
            loss = sum(model(input_ids=ids, labels=ids).loss for _ in range(PASSES))
            if engine.startswith("ZeRO"):
                model.backward(loss)
                model.step()
            else:
                loss.backward()
    return {"passes": to_save(calls), "left": count_hooks(model)}


@pytest.mark.parametrize("engine", ["DDP", "FSDP2", "ZeRO-2", "ZeRO-3"])
def test_the_wrapped_model_has_the_noise(engine, tmp_path):
    if engine.startswith("ZeRO"):
        pytest.importorskip("deepspeed")
    ranks = run_on_ranks(tmp_path, loop, engine)
    assert [len(rank["passes"]) for rank in ranks] == [STEPS * PASSES] * 2
    for index, (one, other) in enumerate(zip(*(rank["passes"] for rank in ranks), strict=True)):
        size = 5.0 * (1 - index // PASSES / STEPS) / (3 * TOKENS * HIDDEN) ** 0.5
        for each in (one, other):
            torch.testing.assert_close(each.noise.abs(), torch.full_like(each.noise, size))
        assert are_two_draws(one, other)
    for rank in ranks:
        for one, other in itertools.combinations(rank["passes"], 2):
            assert are_two_draws(one, other)
    assert [rank["left"] for rank in ranks] == [0, 0]
