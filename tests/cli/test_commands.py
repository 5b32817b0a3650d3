"""The ``neft`` command, as a user runs it."""

import os
import re
import signal
import time
from pathlib import Path

import commands
import pytest
from helpers import DATA, MODEL, neft

import neft_plugins
from neft_plugins.cli.launch import _option_names

RECIPE = f"""
neftune_noise_alpha: 5
neft_schedule: linear
neft_tokens: response
model_name_or_path: {MODEL}
dataset_name: {DATA}
max_steps: 2
logging_steps: 1
per_device_train_batch_size: 4
use_cpu: true
bf16: false
disable_tqdm: true
report_to: none
save_strategy: "no"
"""
# MULTI_GPU is accelerate's name for "by torchrun"; with the recipe's `use_cpu` they are gloo ranks.
TWO_PROCESSES = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_port: 0
mixed_precision: "no"
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + f"output_dir: {tmp_path / 'out'}\n")
    return path


def test_version_and_help():
    assert neft("--version").stdout.strip() == f"neft-plugins, version {neft_plugins.__version__}"
    for flag in ("--help", "-h"):
        result = neft(flag)
        assert result.returncode == 0
        assert {"list", "sft"} <= set(result.stdout.split())


def test_list_has_every_variant_with_its_formula():
    result = neft("list")
    assert result.returncode == 0
    for part in ("uniform", "N(0, 1/3)", "rademacher", "f(t) = 1 - t/T", "labels != -100"):
        assert part in result.stdout
    assert result.stdout.count(f"neft-plugins {neft_plugins.__version__}") == 12


def test_an_unknown_command_is_an_error():
    result = neft("lst")
    assert result.returncode == 2
    assert "No such command 'lst'" in result.stderr


def test_sft_trains_and_ends_with_what_it_did(recipe, tmp_path):
    result = neft(
        "sft", "--config", str(recipe), "--neft_alpha_end", "1", "--eval_strategy", "epoch"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    line = "NEFT: alpha 5 -> 1 linear over 2 steps, uniform, response tokens, L = sequence"
    assert line in result.stderr
    rows = {
        cells[0]: cells[1:]
        for line in result.stdout.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│┃ ").split("│")]) == 3
    }
    assert rows["alpha"] == ["5", "3"]
    assert float(rows["noise-to-signal ratio"][0]) > float(rows["noise-to-signal ratio"][1]) > 0
    assert {"training loss, with noise", "training loss, without noise (100 rows)"} <= set(rows)
    assert float(rows["held-out loss, without noise (100 rows)"][1]) > 0
    assert (tmp_path / "out" / "neft_config.json").is_file()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_sft_with_an_accelerate_config_of_two_processes(recipe, tmp_path):
    launch = tmp_path / "two.yaml"
    launch.write_text(TWO_PROCESSES)
    result = neft("sft", "--config", str(recipe), "--accelerate_config", str(launch))
    assert result.returncode == 0, result.stderr[-3000:]
    epochs = re.findall(r"'epoch': '?([\d.]+)", result.stdout)
    assert float(epochs[0]) == pytest.approx(1 / 63, rel=0.01)  # 500 rows by 2 ranks x 4
    # The main process alone speaks.
    assert result.stderr.count("NEFT: alpha 5") == 1
    assert result.stdout.count("what this run did") == 1


def test_a_rank_that_fails_is_told_once(recipe, tmp_path):
    launch = tmp_path / "two.yaml"
    launch.write_text(TWO_PROCESSES)
    nowhere = ("--model_name_or_path", str(tmp_path / "nowhere"))
    result = neft("sft", "--config", str(recipe), "--accelerate_config", str(launch), *nowhere)
    assert result.returncode == 1
    assert str(tmp_path / "nowhere") in result.stderr
    assert "launch_sft" not in result.stderr  # no traceback of the launcher's


def test_ctrl_c_ends_every_rank(recipe, tmp_path):
    (tmp_path / "two.yaml").write_text(TWO_PROCESSES)
    options = ["--accelerate_config", tmp_path / "two.yaml", "--max_steps", 100_000]
    log = tmp_path / "log.txt"
    process = commands.start(["neft", "sft", "--config", recipe, *options], log)
    while "'neft/alpha'" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert "launch_sft" not in log.read_text()  # no traceback of the launcher's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--neft_schedule", "lnear"], "got 'lnear'. Did you mean 'linear'?"),
        (["--neft_shedule", "linear"], "Unknown key `neft_shedule`"),
        (["--neft_shedule=linear"], "Unknown key `neft_shedule`"),
        (["--neft-shedule", "linear"], "Did you mean 'neft_schedule'?"),
        (["--dataset_name", ""], "No dataset: set `dataset_name`"),
        (["--config"], "`--config` needs the path of a YAML file."),
        (["--accelerate_config", "nowhere"], "Accelerate config nowhere is neither a file"),
        (["--config", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
        (["--learning_rte", "1"], "learning_rte"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_launched(recipe, arguments, message):
    config = [] if "--config" in arguments else ["--config", str(recipe)]
    result = neft("sft", *config, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_key_in_the_yaml_is_told(recipe):
    recipe.write_text(recipe.read_text() + "neft_tokns: all\n")
    result = neft("sft", "--config", str(recipe))
    assert result.returncode == 2
    assert "Unknown key `neft_tokns`" in result.stderr
    assert "Did you mean 'neft_tokens'?" in result.stderr


def test_a_recipe_that_is_not_yaml_is_told(recipe):
    recipe.write_text("a: [1")
    result = neft("sft", "--config", str(recipe))
    assert result.returncode == 2
    assert "expected ',' or ']'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_value_that_looks_like_a_key_is_a_value():
    words = ["--log_dir", "neft_logs", "--rdzv_conf=neft_job"]
    assert _option_names(words) == ["log_dir", "rdzv_conf"]


def test_a_split_that_is_not_there_is_told_with_those_that_are(recipe):
    result = neft("sft", "--config", str(recipe), "--dataset_train_split", "nope")
    assert result.returncode == 1
    assert "The dataset has no split 'nope'; it has 'train', 'test'." in result.stderr


def test_a_failed_training_has_its_exit_code(recipe):
    recipe.write_text(recipe.read_text().replace(DATA, DATA + "-nowhere"))
    result = neft("sft", "--config", str(recipe))
    assert result.returncode == 1
