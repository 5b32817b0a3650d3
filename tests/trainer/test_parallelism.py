"""Which batches a process is given, from what accelerate says of its ranks."""

from types import SimpleNamespace
from unittest import mock

from accelerate import Accelerator, ParallelismConfig
from accelerate.state import AcceleratorState

from neft_plugins.trainer.parallelism import find_place


def test_tensor_parallel_ranks_share_a_data_rank():
    places = [
        find_place(
            SimpleNamespace(
                process_index=rank, world_size=4, parallelism_config=SimpleNamespace(tp_size=2)
            )
        )
        for rank in range(4)
    ]
    assert places == [(0, 2, None), (0, 2, None), (1, 2, None), (1, 2, None)]
    alone = SimpleNamespace(process_index=3, world_size=4, parallelism_config=None)
    assert find_place(alone) == (3, 4, None)


def test_tensor_parallelism_is_accelerates_where_the_arguments_do_not_name_it():
    """As with `tp_plan="auto"`, Axolotl's `tensor_parallel_size` and accelerate's own config."""
    args = SimpleNamespace(process_index=3, world_size=4, parallelism_config=None)
    with mock.patch.dict(AcceleratorState._shared_state):
        Accelerator(cpu=True).state.parallelism_config = ParallelismConfig(tp_size=2)
        assert find_place(args) == (1, 2, None)
    assert find_place(args) == (3, 4, None)
