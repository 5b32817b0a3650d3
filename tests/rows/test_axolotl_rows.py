"""Rows of an Axolotl config are those that it trains on, and those that it holds out."""

import json
import os

import pytest

pytest.importorskip("axolotl")

import yaml
from axolotl_runs import write_config
from helpers import MODEL
from transformers import AutoTokenizer

from neft_plugins.rows.axolotl import axolotl_rows

PROMPTED = {"field_instruction": "prompt", "field_output": "completion", "format": "{instruction}"}


@pytest.fixture
def keys(tmp_path):
    lines = [{"prompt": f"Row {i}.\n", "completion": f" I am {i}."} for i in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return {"datasets": [{"path": str(path), "ds_type": "json", "type": PROMPTED}], "plugins": []}


def numbers(rows):
    decode = AutoTokenizer.from_pretrained(MODEL).decode
    return [
        int(decode(rows.prompt_ids(i)).split("Row ")[1].split(".")[0]) for i in range(len(rows))
    ]


@pytest.mark.slow
def test_held_out_rows_are_those_of_training(tmp_path, keys, monkeypatch):
    monkeypatch.setenv("AXOLOTL_DATASET_NUM_PROC", "0")  # or it starts processes for a few rows
    path = write_config(tmp_path, {**keys, "val_set_size": 0.2, "sample_packing": True})
    environment, before = os.environ, dict(os.environ)
    train, held_out = (axolotl_rows(path, split, 100) for split in ("train", "test"))
    assert os.environ is environment
    assert dict(environment) == before
    assert (train.count, held_out.count) == (48, 12)
    assert sorted(numbers(train) + numbers(held_out)) == [*range(60)]
    assert train.has_references
    assert train.prompts == [None] * 48
    assert axolotl_rows(path, "test", 5).input_ids == held_out.input_ids[:5]

    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    made = load_datasets(cfg=load_cfg(path))  # as `axolotl train` does
    assert train.input_ids == made.train_dataset["input_ids"][:]
    assert held_out.labels == made.eval_dataset["labels"][:]
    # What is prepared there now is read, and nothing is written.
    before = sorted(map(str, tmp_path.rglob("*")))
    assert axolotl_rows(path, "test", 100) == held_out
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.slow
def test_a_few_rows_of_many_are_prepared(tmp_path, keys):
    path = write_config(tmp_path, keys)
    rows = axolotl_rows(path, "train", 10)
    assert len({*numbers(rows)}) == 10
    assert rows.count is None
    assert {each.name for each in tmp_path.iterdir()} == {"rows.jsonl", "config.yaml"}
    with pytest.raises(ValueError, match="holds no rows out: set `val_set_size`"):
        axolotl_rows(path, "test", 10)


@pytest.mark.parametrize("key", ["rl", "reward_model"])
def test_what_has_no_such_rows_is_said(tmp_path, keys, key):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**keys, key: "dpo", "base_model": MODEL}))
    with pytest.raises(ValueError, match=f"`{key}: dpo` trains on pairs"):
        axolotl_rows(tmp_path / "x.yaml", "train", 10)
