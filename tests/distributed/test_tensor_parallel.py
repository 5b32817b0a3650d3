"""A 2 x 2 mesh of data and tensor parallelism: replicas differ, the ranks of one replica agree."""

import os
from typing import Any
from unittest import mock

import engines
import pytest
import torch
import training
from checks import NOISE, PACKINGS, check_is_the_noise_of, check_replicas_differ
from packaging.version import Version

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")


def train_as_gpus(*arguments: Any) -> dict[str, Any]:
    """accelerate takes a mesh from ranks of a kind of accelerator only."""
    from accelerate import PartialState

    prepare_backend = PartialState._prepare_backend  # of cpu_ranks

    def as_for_fsdp(*given: Any, **keys: Any) -> tuple[str, Any]:
        with mock.patch.dict(os.environ, ACCELERATE_USE_FSDP="true"):
            return prepare_backend(*given, **keys)

    with mock.patch.object(PartialState, "_prepare_backend", as_for_fsdp):
        return training.train(*arguments)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"),
    reason="transformers 5.16 cannot load a model onto such a mesh, nor accelerate 1.13 prepare it",
)
def test_ranks_of_a_replica_have_its_noise_and_replicas_differ(tmp_path):
    ranks = engines.train(
        tmp_path,
        engines.ENGINES["DDP"] | {"num_processes": 4},
        NOISE | PACKINGS["padded"],
        world_size=4,
        function=train_as_gpus,
        model_init_kwargs={"distributed_config": {"tp_size": 2, "fsdp_size": 2}},
    )
    (one,) = engines.train(
        tmp_path / "one", keys=NOISE | PACKINGS["padded"] | {"gradient_accumulation_steps": 2}
    )
    check_is_the_noise_of(one, ranks[::2])
    for first, second in (ranks[:2], ranks[2:]):
        assert first["sharded"]
        for a, b in zip(first["passes"], second["passes"], strict=True):
            assert torch.equal(a.ids, b.ids)
            assert torch.equal(a.noise, b.noise)
    check_replicas_differ(ranks[::2])
    losses = [log["loss"] for log in one["log"]]
    assert [log["loss"] for log in ranks[0]["log"]] == pytest.approx(losses, rel=1e-3)
