"""Pairs in Axolotl: the training rows twice, whole documents of each, and evaluation's once."""

import pytest
import torch

pytest.importorskip("axolotl")

from axolotl_noise import BOS, NOISE, PAD, documents_of
from axolotl_runs import run_axolotl

pytestmark = pytest.mark.slow

ROWS = {
    "padded": {},
    "packed": {"sample_packing": True, "pad_to_sequence_len": True},
    "packed in several rows": {"sample_packing": True, "multipack_real_batches": True},
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_training_rows_come_twice(tmp_path, data, rows):
    run = run_axolotl(
        tmp_path,
        **data,
        **NOISE,
        **rows,
        neft_pairs="symmetric",
        neft_tokens=["response", "no_special"],
        val_set_size=0.2,
        eval_sample_packing=False if "sample_packing" in rows else None,
        eval_strategy="steps",
        eval_steps=2,
        dataloader_num_workers=None,  # Axolotl's own number of them: workers collate too
    )
    training = [step for step in run.passes if step.training]
    evaluation = [step for step in run.passes if not step.training]
    assert training
    assert evaluation
    for step in training:
        number, real = documents_of(step.ids)
        documents = int(number.max())
        assert documents % 2 == 0
        first, second = step.noise[real].chunk(2)
        assert torch.equal(*step.ids[real].chunk(2))
        assert torch.equal(*step.given["labels"][real].chunk(2))
        assert first.any()
        torch.testing.assert_close(second, -first, rtol=0, atol=1e-6)
        answer = (step.given["labels"] != -100) & (step.ids > PAD)  # 0 to 2 are special
        assert torch.equal(step.noise.any(-1), answer)
        positions = step.given.get("position_ids")
        if positions is not None and "sample_packing" in rows:
            starts = (positions[real] == 0).sum()
            assert int(starts) == documents
    assert not any(step.noisy for step in evaluation)
    held_out = sum(int((step.ids == BOS).sum()) for step in evaluation)
    assert held_out == 2 * 10  # a fifth of 48 rows; after the first step, and after the second
    assert "symmetric pairs (each row twice: twice the compute and memory)" in run.printed
