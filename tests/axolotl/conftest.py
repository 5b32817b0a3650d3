"""Data for Axolotl's runs."""

import json

import pytest

WORDS = ["the river", "an old mill", "a red kite", "the fox and the owl", "snow"]
PROMPTED = {"field_instruction": "prompt", "field_output": "completion", "format": "{instruction}"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prompts and completions of many lengths."""
    rows = [
        {"prompt": f"Tell of {WORDS[i % 5]}.\n", "completion": " and".join(WORDS[: i % 4 + 1])}
        for i in range(48)
    ]
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"datasets": [{"path": str(path), "ds_type": "json", "type": PROMPTED}]}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Plain texts of many lengths, to pretrain on."""
    lines = [{"text": " and".join((WORDS * 2)[: i % 7 + 1])} for i in range(60)]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    source = {"path": "json", "data_files": [str(path)], "text_column": "text", "type": "pretrain"}
    return {"pretraining_dataset": [source]}
