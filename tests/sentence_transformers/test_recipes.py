"""Every recipe of recipes/sentence_transformers, run by the command in its header."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO
from safetensors.torch import load_file
from tiny_encoders import HIDDEN, save_encoder, texts

pytestmark = pytest.mark.slow

pytest.importorskip("sentence_transformers")

FOLDER = REPO / "recipes" / "sentence_transformers"
RECIPES = sorted(path.name for path in FOLDER.glob("*.py"))
STEPS = 4
ROWS = 64
# What a test may replace: the model, the data and the hardware; nothing of the noise or the method.
REPLACED = {
    "use_cpu": "true",
    "bf16": "false",
    "max_steps": STEPS,
    "logging_steps": 1,
    "disable_tqdm": "true",
}


def first_command(recipe: Path) -> list[str]:
    (command, *_) = re.findall(r"^(?:Command:)? +(python .*)$", recipe.read_text(), re.MULTILINE)
    return shlex.split(command)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_runs_and_its_noise_is_what_it_says(name: str, tmp_path: Path) -> None:
    words = [texts(ROWS, seed) for seed in (1, 2, 3)]
    rows = (dict(zip(("anchor", "positive", "negative"), row)) for row in zip(*words))  # noqa: B905
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    replaced: dict[str, Any] = REPLACED | {
        "model_name_or_path": save_encoder(tmp_path / "model"),
        "dataset_name": tmp_path / "data",
        "dataset_config": "default",
        "output_dir": tmp_path / "out",
    }
    python, script, *rest = first_command(FOLDER / name)
    assert (python, script) == ("python", f"recipes/sentence_transformers/{name}")
    options = [word for key, value in replaced.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, script, *rest, *options],
        cwd=REPO,
        env=os.environ | {"ACCELERATE_USE_CPU": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]

    checkpoint = tmp_path / "out" / f"checkpoint-{STEPS}"
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    logs = [log for log in history if "loss" in log]
    assert len(logs) == STEPS
    for step, log in enumerate(logs):
        alpha = 0.1 * (1 - step / STEPS)
        assert log["neft/alpha"] == pytest.approx(alpha)
        assert log["neft/noised_tokens"] == 1
        coordinates = 3 * 16 * 3 * HIDDEN  # of 3 texts in 16 rows, of 3 tokens at least
        error = (4 / 5 / coordinates) ** 0.5 / 2
        # Of a BERT's weights that are not trained, each embedding has about the same norm.
        assert log["neft/noise_to_signal"] == pytest.approx(alpha, rel=10 * error)
    record = json.loads((checkpoint / "neft_config.json").read_text())
    assert (record["scale"], record["schedule"]) == ("relative", "linear")
    start, end = (load_file(tmp_path / part / "model.safetensors") for part in ("model", "out"))
    assert any(not start[key].equal(end[key]) for key in start)


def test_every_recipe_is_in_the_table() -> None:
    assert RECIPES
    table = (REPO / "recipes" / "README.md").read_text()
    assert [name for name in RECIPES if f"(sentence_transformers/{name})" not in table] == []
