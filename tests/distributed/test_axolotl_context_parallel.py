"""Axolotl's context parallelism on two ranks: L is that of the whole document.

Axolotl cuts the rows as it always does. The ring attention it would then call needs a GPU;
`use_glm_dsa_kernels` tells it that the model has attention of its own for such rows, which a Llama
has not. So each rank attends to its own part: what is learnt is wrong, and the noise is right.
"""

from importlib.util import find_spec

import pytest
import torch
from axolotl_engines import (
    ENGINES,
    ROWS,
    check_size,
    check_that_they_differ,
    train,
)
from axolotl_runs import PLUGIN, RECORDER

pytestmark = pytest.mark.slow

WITHOUT_A_RING = {
    "context_parallel_size": 2,
    "plugins": ["axolotl.integrations.kernels.KernelsPlugin", PLUGIN, RECORDER],
    "use_glm_dsa_kernels": True,
}


@pytest.mark.skipif(find_spec("axolotl") is None, reason="axolotl is not installed")
@pytest.mark.parametrize("rows", sorted(ROWS))
def test_documents_over_two_ranks_have_the_noise_of_their_whole_length(rows, data, tmp_path):
    # Of padded rows, so many that some are longer than the first rank's part.
    many = {"sequence_len": 64, "pad_to_sequence_len": True, "micro_batch_size": 8}
    keys = ROWS[rows] | (many if rows == "padded" else {})
    runs = train(tmp_path, data, **ENGINES["fsdp2"], **keys, **WITHOUT_A_RING)
    for first, second in zip(*(run.passes for run in runs), strict=True):
        ids = torch.cat([first.ids, second.ids], dim=1)
        check_size(ids, torch.cat([first.noise, second.noise], dim=1))
        check_that_they_differ(first, second)
