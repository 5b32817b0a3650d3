"""Two gloo ranks: different noise, and the same noise as one rank that accumulates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("train_and_record.py")


def run(folder: Path, ranks: int, accumulation: int) -> list[dict]:
    folder.mkdir()
    command = [str(SCRIPT), str(folder), str(accumulation)]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command = [*launcher, *command]
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    return run(tmp_path_factory.mktemp("ranks") / "two", ranks=2, accumulation=1)


def test_ranks_draw_different_noise(two_ranks):
    for step in range(2):
        pair = torch.stack([rank["noise"][step].flatten() for rank in two_ranks])
        assert pair.shape[1] == 8 * 24 * 256
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.02  # 4 sigma


def test_two_ranks_and_two_accumulation_steps_are_the_same_run(two_ranks, tmp_path):
    (one,) = run(tmp_path / "one", ranks=1, accumulation=2)
    micro_batches = [(two_ranks[k % 2], k // 2) for k in range(4)]
    for k, (rank, step) in enumerate(micro_batches):
        assert torch.equal(one["ids"][k], rank["ids"][step]), k
        torch.testing.assert_close(one["noise"][k], rank["noise"][step], rtol=1e-3, atol=1e-5)
    assert one["losses"] == pytest.approx(two_ranks[0]["losses"], rel=1e-3)
