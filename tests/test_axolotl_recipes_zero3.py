"""The Axolotl recipes that shard the model by DeepSpeed ZeRO-3, on two gloo ranks."""

from importlib.util import find_spec

import pytest
from axolotl_recipes import PROMISES, check_noise, run_recipe


@pytest.mark.skipif(find_spec("axolotl") is None, reason="axolotl is not installed")
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("name", sorted(name for name in PROMISES if "zero3" in name))
def test_the_recipe_trains_on_two_ranks_with_the_noise_it_promises(name, tmp_path):
    run = run_recipe(name, tmp_path, ranks=2)
    check_noise(run, PROMISES[name])
    assert run.printed.count("NEFT: alpha") == 1  # the main process alone speaks
