"""Runs of Axolotl that are killed and continued, or continued with other keys."""

import json

import pytest

pytest.importorskip("axolotl")

import torch
from axolotl_kills import train_until_complete
from axolotl_noise import LORA
from axolotl_runs import run_axolotl
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

KEYS = {
    "neftune_noise_alpha": 5.0,
    "neft_distribution": "gaussian",
    "neft_schedule": "linear",
    "max_steps": 4,
    "save_strategy": None,
    "save_steps": 2,
}


@pytest.mark.parametrize("keys", [{}, LORA], ids=["full", "lora"])
def test_a_kill_as_soon_as_a_checkpoint_is_complete_loses_nothing(tmp_path, data, keys):
    keys = {**KEYS, **data, **keys}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    uninterrupted = run_axolotl(whole, **keys)
    assert train_until_complete(cut, 2, **keys) == -9
    record = json.loads((cut / "out" / "checkpoint-2" / "neft_config.json").read_text())
    assert (record["schedule"], record["total_steps"], record["seed"]) == ("linear", 4, 7)
    resumed = run_axolotl(cut, **keys, auto_resume_from_checkpoints=True)
    assert "NEFT: resumed" not in resumed.printed
    assert "NEFT: alpha 5 -> 0 linear over 4 steps" in resumed.printed
    for ours, theirs in zip(resumed.passes, uninterrupted.passes[2:], strict=True):
        assert ours.noisy
        assert torch.equal(ours.noise, theirs.noise)
    ours, theirs = (
        load_file(next(run.output.glob("*.safetensors"))) for run in (resumed, uninterrupted)
    )
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def test_what_changed_is_logged(tmp_path, data):
    assert train_until_complete(tmp_path, 2, **KEYS, **data) == -9
    other = {**KEYS, "max_steps": 6, "seed": 8, "neft_tokens": "response"}
    resumed = run_axolotl(tmp_path, **other, **data, auto_resume_from_checkpoints=True)
    told = (
        "NEFT: resumed at step 2 with other noise than before: tokens 'all' -> 'response', "
        "seed 7 -> 8, total_steps 4 -> 6 (alpha at step 2: 2.5 -> 3.33333)"
    )
    assert resumed.printed.count(told) == 1
