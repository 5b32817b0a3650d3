"""``neft preview``: what it prints and writes, and what it says where something is missing."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml
from click.testing import CliRunner
from helpers import MODEL, REPO

from neft_plugins.cli.preview import preview as command
from neft_plugins.keys import read_yaml
from neft_plugins.preview.make import preview


def run(*words, code=0):
    result = CliRunner().invoke(command, [str(word) for word in words], env={"COLUMNS": "100"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.slow
def test_json_is_all_that_is_printed(write):
    path = write(neft_schedule="linear")
    code = "from neft_plugins.cli.preview import preview; preview()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["total_steps"] == 6
    assert found == json.loads(json.dumps(preview(path)))


def test_tables_and_a_plot_are_printed(write):
    printed = run(write(neft_schedule="linear", pad_to_multiple_of=64), "--num_processes", 2)
    assert "alpha 5 -> 0 linear over 3 steps, uniform, all tokens, L = sequence" in printed
    assert "3, 1 epoch, for 2 processes" in printed
    assert "model.embed_tokens, d = 128, float32, RMS 0.136" in printed
    assert "█" in printed
    assert "percentile 95" in printed
    assert "The built-in NEFTune with this alpha: 0." in printed
    assert "for the median document" in printed


def test_files_are_written(write, tmp_path):
    folder = tmp_path / "new" / "preview"
    printed = run(write(), "--output", folder)
    assert json.loads((folder / "preview.json").read_text())["total_steps"] == 6
    assert (folder / "alpha.png").read_bytes().startswith(b"\x89PNG")
    assert "preview.json" in printed.replace("\n", "")


def test_keys_are_options(write):
    path = write()
    found = json.loads(run(path, "--json", "--neftune_noise_alpha", 3, "--neft-schedule=linear"))
    assert (found["noise"]["alpha"], found["noise"]["schedule"]) == (3, "linear")
    found = json.loads(run(path, "--json", "--max_steps", "100"))
    assert found["total_steps"] == 100


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"neft_schedule": "cosin"}, "Did you mean 'cosine'?"),
        ({"neft_schedul": "cosine"}, "Unknown key `neft_schedul`"),
        ({"neftune_noise_alpha": None, "neft_tokens": "all", "neft_seed": 1}, "is not, so there"),
        ({"neft_sparsity": 3}, "`neft_sparsity` must be a number in [0, 1), or 'auto'; got 3."),
        ({"packng": True}, "Unknown key `packng`. Did you mean `packing`?"),
        ({"model_name_or_path": None}, "names no model: set `model_name_or_path` (TRL) or `base_"),
    ],
)
def test_what_training_refuses_is_refused_without_a_host(write, keys, message):
    code = (
        "import sys; from neft_plugins.cli.preview import preview\n"
        "try: preview(standalone_mode=False)\n"
        "except Exception as error: print(error.format_message())\n"
        "assert not {'trl', 'transformers', 'axolotl', 'datasets'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(**keys))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert message in done.stdout


def test_other_wrong_input_is_said(write, tmp_path):
    assert "cannot be read or written: No such file" in run(tmp_path / "no.yaml", code=2)
    (tmp_path / "list.yaml").write_text("- 1")
    assert "must have keys and values" in run(tmp_path / "list.yaml", code=2)
    assert "`--max_steps` needs a value." in run(write(), "--max_steps", code=2)
    assert "`x` is no option's value." in run(write(), "x", code=2)
    wrong = run(write(), "--packng", "true", code=2)
    assert "Unknown option `--packng`. Did you mean `--packing`?" in wrong


def test_without_an_alpha_there_is_advice_alone(write):
    printed = run(write(neftune_noise_alpha=None))
    assert "No noise: `neftune_noise_alpha` is not set. Set it (5 to 15 is typical)" in printed
    assert "noise-to-signal" in printed
    assert "(docs/results.md), noise helps where the training loss" in " ".join(printed.split())
    assert "as training logs it" not in printed
    printed = run(write(neftune_noise_alpha=0))
    assert "No noise: `neftune_noise_alpha` is 0, for a baseline." in printed
    assert "Warnings" not in printed


def test_each_part_fails_alone(write, data, tmp_path):
    whole = preview(write())
    no_data = preview(write(dataset_name="no/such", max_steps=9))
    assert no_data["total_steps"] == 9
    assert [row["tokens"] for row in no_data["table"]] == [2**power for power in range(6, 14)]
    first = no_data["table"][0]["start"]
    assert first["noise_rms"] == pytest.approx(5 / (3 * 64 * 128) ** 0.5)
    assert first["noise_to_signal"] == pytest.approx(first["noise_rms"] / whole["embedding"]["rms"])
    assert len(no_data["unknown"]) == 1
    assert no_data["unknown"][0].startswith("Data: ")

    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((REPO / "recipes/quickstart/model" / name).read_bytes())
    no_weights = preview(write(model_name_or_path=str(tmp_path)))
    start, known = no_weights["points"][0], whole["points"][0]
    assert start["noise_rms"] == pytest.approx(known["noise_rms"])
    assert start["noise_to_signal"] is None
    assert no_weights["builtin"] == whole["builtin"]
    assert no_weights["advice"] == []
    assert "has no model.safetensors" in no_weights["unknown"][0]

    nothing = preview(write(model_name_or_path="no/such"))
    assert [point["alpha"] for point in nothing["points"]] == [5, 5, 5]
    assert nothing["total_steps"] is None
    assert run(write(model_name_or_path="no/such", neft_warmup_steps=5)).count("\n- ") == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"neftune_noise_alpha": 100}, "times as strong as the embeddings it is added to"),
        ({"neftune_noise_alpha": 0.001, "dtype": "bfloat16"}, "most of it is rounded away"),
        ({"neft_tokens": "prompt", "completion_only_loss": False}, "`tokens: prompt` chose none"),
        ({"neft_alpha_end": 1}, "`neft_alpha_end` is 1, but `neft_schedule: constant` stays at"),
        ({"neft_warmup_steps": 50}, "The warm-up ends at step 50 and training at 6"),
        ({"neft_warmup_steps": 1, "max_steps": 1}, "gives alpha 0 at every step"),
        ({"num_train_epochs": 3}, "The data has 48 rows, and each is seen 3 times"),
        ({"max_steps": 24}, "The data has 48 rows, and each is seen 4 times"),
    ],
)
def test_it_warns(write, keys, message):
    assert any(message in text for text in preview(write(**keys))["warnings"])


@pytest.mark.parametrize("keys", [{"num_train_epochs": 2}, {"neft_schedule": "linear"}])
def test_it_does_not_warn_of_what_is_fine(write, keys):
    assert preview(write(**keys))["warnings"] == []


@pytest.mark.skipif(find_spec("axolotl") is not None, reason="Axolotl is installed")
def test_axolotls_config_without_axolotl(tmp_path):
    keys = {"base_model": MODEL, "noisy_embedding_alpha": 5, "max_steps": 4, "bf16": "auto"}
    path = tmp_path / "axolotl.yaml"
    path.write_text(yaml.safe_dump(keys | {"adapter": "lora", "neft_schedule": "linear"}))
    found = preview(path)
    assert found["host"] == "axolotl"
    assert found["noise"]["alpha"] == 5
    assert found["embedding"]["dtype"] == "bfloat16"
    assert found["points"][2]["alpha"] == 1.25
    assert "pip install 'neft-plugins[axolotl]'" in found["unknown"][0]


def test_nothing_is_written_beside_the_run(write, tmp_path):
    before = {*tmp_path.rglob("*")}
    path = write()
    preview(path)
    assert {*tmp_path.rglob("*")} == before | {path}
    assert read_yaml(path)["neftune_noise_alpha"] == 5
