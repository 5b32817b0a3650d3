"""A NEFTSFTTrainer that is killed as soon as a checkpoint counts as complete."""

import json
from functools import partial

import pytest
import torch
from faults import start
from kills import dies_when_complete
from sft_trainer import make_trainer

pytestmark = pytest.mark.slow

KEYS = {
    "neftune_noise_alpha": 5.0,
    "neft_distribution": "gaussian",
    "neft_schedule": "cosine",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.mark.parametrize("engine", [None, "DDP"])
def test_its_record_is_there_and_the_run_goes_on_as_if_nothing_had_happened(engine, tmp_path):
    whole = start(tmp_path / "whole", engine, KEYS).results()
    folder = tmp_path / "cut"
    killed = start(folder, engine, KEYS, partial(dies_when_complete, 2))
    assert killed.wait_as_a_launcher()[0] == -9
    record = json.loads((folder / "out" / "checkpoint-2" / "neft_config.json").read_text())
    assert (record["total_steps"], record["seed"]) == (4, 7)
    again = start(folder, engine, KEYS, resume="latest")
    for ours, theirs in zip(again.results(), whole, strict=True):
        assert len(ours["passes"]) == 2
        assert ours["weights"].keys() == theirs["weights"].keys()
        for name, weight in ours["weights"].items():
            assert torch.equal(weight, theirs["weights"][name])
    assert "NEFT: resumed" not in again.printed()
    other = start(folder, engine, KEYS | {"max_steps": 6, "seed": 8}, resume="latest")
    other.results()
    told = "NEFT: resumed at step 4 with other noise than before: seed 7 -> 8, total_steps 4 -> 6 ("
    assert [other.printed(rank).count(told) for rank in range(len(whole))] == [1, 0][: len(whole)]


def test_a_model_that_is_saved_after_training_has_the_record_of_it(tmp_path):
    trainer = make_trainer(tmp_path / "out", seed=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    record = json.loads((tmp_path / "model" / "neft_config.json").read_text())
    assert (record["total_steps"], record["seed"]) == (3, 3)
