"""``axolotl train`` on two ranks that its launchers start."""

from importlib.util import find_spec

import commands
import nodes
import pytest
from axolotl_engines import (
    ENGINES,
    METHODS,
    ROWS,
    STEPS,
    check_size,
    check_that_they_differ,
)
from axolotl_noise import NOISE
from axolotl_runs import Run, write_config

pytestmark = pytest.mark.slow

CASES = {
    "torchrun on one node": ("zero3", "qlora", "packed"),
    "accelerate on two": ("fsdp2", "full", "padded"),
}


@pytest.mark.skipif(find_spec("axolotl") is None, reason="axolotl is not installed")
@pytest.mark.parametrize("case", CASES)
def test_the_ranks_of_a_launcher_shard_the_model_and_have_noise_of_their_own(case, data, tmp_path):
    engine, method, rows = CASES[case]
    keys = ENGINES[engine] | METHODS[method] | ROWS[rows]
    config = write_config(tmp_path, data | NOISE | {"max_steps": STEPS} | keys)
    command = ["axolotl", "train", config]
    if case == "torchrun on one node":
        log = tmp_path / "log.txt"
        command += ["--launcher", "torchrun", "--", "--standalone", "--nproc_per_node", 2]
        started = {log: commands.start(command, log)}
    else:
        started = nodes.by_hand("accelerate", command, {"GPUS": 1}, tmp_path)
    commands.wait(started)

    printed = "".join(log.read_text() for log in started)
    runs = [Run(0, printed, tmp_path / "out", rank) for rank in range(2)]
    for run in runs:
        assert len(run.passes) == STEPS
        for step in run.passes:
            check_size(step.ids, step.noise)
        assert run.log["held"] == 0.5
        assert run.log["hooks_left"] == 0
    for mine, other in zip(*(run.passes for run in runs), strict=True):
        check_that_they_differ(mine, other)
    assert runs[0].printed.count("NEFT: alpha 5 ") == 1  # the main process alone speaks
