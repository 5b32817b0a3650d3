"""The quickstart: its files, how they were made, and its recipe."""

import json
from importlib.util import find_spec

import pytest
import yaml
from commands import run_script
from helpers import REPO

from neft_plugins.cli.launch import SCRIPT

FOLDER = REPO / "recipes" / "quickstart"


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / "data" / name).read_text().splitlines()]


def test_it_is_small_and_its_held_out_prompts_are_new():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    assert (FOLDER / "model" / "model.safetensors").is_file()
    train, test = ({row["prompt"] for row in rows(n)} for n in ("train.jsonl", "test.jsonl"))
    assert len(train) >= 100
    assert len(test) >= 20
    assert not train & test


@pytest.mark.slow
def test_the_recipe_fine_tunes_in_4_bits_with_a_decaying_alpha(tmp_path):
    recipe = yaml.safe_load((REPO / "recipes" / "quickstart.yaml").read_text())
    assert recipe["load_in_4bit"] is True
    words = ["-m", SCRIPT, "--config", "recipes/quickstart.yaml", "--max_steps", "12"]
    words += ["--logging_steps", "4", "--output_dir", str(tmp_path), "--disable_tqdm", "true"]
    code, printed = run_script(tmp_path / "run", words)
    assert code == 0, printed[-5000:]
    table = printed[printed.index("what this run did") :]
    for row in ("alpha", "noise-to-signal ratio", "training loss, with noise"):
        assert row in table
    assert "held-out loss, without noise (100 rows)" in table
    record = json.loads((tmp_path / "neft_config.json").read_text())
    assert record["schedule"] == "cosine"
    assert record["tokens"] == "response"
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    assert adapter["r"] == 16


@pytest.mark.slow
@pytest.mark.skipif(find_spec("axolotl") is not None, reason="run on the newest versions")
@pytest.mark.parametrize("seed", ["3"])
def test_the_script_makes_the_same_files_from_the_same_seed(tmp_path, seed):
    made = []
    for name in ("first", "second"):
        words = ["recipes/quickstart/make.py", "--output", str(tmp_path / name)]
        words += ["--stories", "200", "--steps", "2", "--keys", "12", "--seed", seed]
        code, printed = run_script(tmp_path / f"{name}_run", words)
        assert code == 0, printed[-5000:]
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        made.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert made[0] == made[1]
    assert len(made[0]) >= 6
