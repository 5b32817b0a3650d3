"""Axolotl on two ranks, over every engine. Its launchers are in test_axolotl_launchers.py."""

import re
from importlib.util import find_spec

import pytest
import torch
from axolotl_engines import (
    ENGINES,
    METHODS,
    ROWS,
    STEPS,
    check_size,
    check_that_they_differ,
    train,
)
from axolotl_noise import PAD
from axolotl_runs import Run
from helpers import REPO
from recorder import is_one_draw

pytestmark = pytest.mark.slow

needs_axolotl = pytest.mark.skipif(find_spec("axolotl") is None, reason="axolotl is not installed")

SHARDED = [name for name in ENGINES if name.startswith(("zero3", "fsdp2"))]
# Axolotl refuses 4 bits where the first rank alone loads the weights.
CASES = [
    ("ddp", "qlora", "packed"),
    ("zero2", "full", "padded"),
    ("zero3", "full", "packed"),
    ("zero3", "lora", "padded"),
    ("zero3", "qlora", "packed"),
    ("zero3_offload", "full", "padded"),
    ("fsdp2", "full", "packed"),
    ("fsdp2", "qlora", "packed"),
    ("fsdp2_first_rank_loads", "lora", "padded"),
    ("fsdp2_offload", "full", "padded"),
    ("fsdp2_offload", "qlora", "packed"),
]


@pytest.fixture(scope="module")
def on_one_rank(data, tmp_path_factory) -> dict[str, Run]:
    """The run that every engine is to repeat, packed and padded."""
    folder = tmp_path_factory.mktemp("one")
    return {rows: train(folder / rows, data, 1, **keys)[0] for rows, keys in ROWS.items()}


@needs_axolotl
@pytest.mark.parametrize(("engine", "method", "rows"), CASES)
def test_each_rank_has_noise_of_its_own_of_the_size_that_was_asked_for(
    engine, method, rows, data, on_one_rank, tmp_path
):
    if engine.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    runs = train(tmp_path, data, **ENGINES[engine], **METHODS[method], **ROWS[rows])

    for run in runs:
        assert len(run.passes) == STEPS
        for step in run.passes:
            check_size(step.ids, step.noise)
        assert run.log["held"] == (0.5 if engine in SHARDED else 1.0)
        assert run.log["hooks_in_training"] > 0
        assert run.log["hooks_left"] == 0
    for mine, other in zip(*(run.passes for run in runs), strict=True):
        check_that_they_differ(mine, other)
    one = on_one_rank[rows].passes
    assert len(one) == 2 * STEPS
    for k, step in enumerate(one):
        same = runs[k % 2].passes[k // 2]
        assert is_one_draw(same, step)
        # Axolotl packs rows in another order for another number of ranks.
        assert rows == "packed" or torch.equal(same.ids, step.ids)
    logged = [log["neft/noise_rms"] for log in runs[0].log["history"] if "loss" in log]
    expected = [
        step.noise[step.ids != PAD].square().mean().sqrt().item() for step in runs[0].passes
    ]
    assert logged == pytest.approx(expected, rel=1e-4)


def test_the_page_names_the_cells_that_are_run():
    page = (REPO / "docs" / "distributed.md").read_text()
    rows = re.findall(r"^\| (\w+) \|(.*)\|(.*)\|(.*)\|$", page, re.MULTILINE)
    named = {
        (name, method, packing.strip())
        for name, *cells in rows
        if name in ENGINES
        for method, packing in zip(METHODS, cells, strict=True)
        if packing.strip()
    }
    assert named == set(CASES)
