"""``neft sft``: what it refuses, what it launches, and how that ends."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from argparse import Namespace
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml
from click.testing import CliRunner, Result
from helpers import DATA, MODEL

from neft_plugins.cli import launch, train
from neft_plugins.cli import option_names as option_names_module
from neft_plugins.cli.commands import neft
from neft_plugins.cli.option_names import is_known, option_names
from neft_plugins.config import NEFTWarning
from neft_plugins.sparsity.config import SparsityConfigError
from neft_plugins.trl import sft
from neft_plugins.trl.checkpoints import check_checkpoint
from neft_plugins.trl.options import launch_parser
from neft_plugins.trl.run_keys import KEYS_FILE, write_keys
from neft_plugins.trl.summary import MOST_ROWS, print_summary

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


@pytest.fixture
def launched(monkeypatch) -> list[Namespace]:
    """What would be launched, which is not."""
    launches: list[Namespace] = []
    monkeypatch.setattr(launch, "_launch", lambda arguments: launches.append(arguments) or 0)
    return launches


def run(*words: object) -> Result:
    return CliRunner().invoke(neft, ["sft", *map(str, words)])


def add(recipe: Path, text: str) -> None:
    recipe.write_text(f"{recipe.read_text()}\n{text}\n")


# What is refused, before anything is launched.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lerning_rate 1", "Unknown option `--lerning_rate`. Did you mean `--learning_rate`?"),
        ("--lerning-rate=1", "Unknown option `--lerning-rate`. Did you mean `--learning_rate`?"),
        ("--num_proceses 2", "Unknown option `--num_proceses`. Did you mean `--num_processes`?"),
        ("--finalevaluation no", "Did you mean `--final_evaluation`?"),
        ("-x", "Unknown option `-x`. `neft sft --help` lists them."),
        ("--no_packing", "Unknown option `--no_packing`. Did you mean `--packing`?"),
        ("cosine", "`cosine` is no option's value. Write `--OPTION cosine`, or take it out."),
        ("--cpu true", "`true` is no option's value."),
        ("--max_steps many", "invalid int value: 'many'"),
        ("--num_processes two", "invalid int value: 'two'"),
        ("--num_processes", "expected one argument"),
        ("--neft_schedule lnear", "got 'lnear'. Did you mean 'linear'?"),
        ("--neft_shedule linear", "Unknown key `neft_shedule`"),
        ("--neft_shedule=linear", "Unknown key `neft_shedule`"),
        ("--neft-shedule linear", "Did you mean 'neft_schedule'?"),
        # The beginnings of options, which argparse would take for them.
        ("--neft_alpha 5", "Did you mean 'neftune_noise_alpha'?"),
        ("--neft_schedul linear", "Unknown key `neft_schedul`"),
        ("--learning_rat 1", "Unknown option `--learning_rat`. Did you mean `--learning_rate`?"),
        ("--num_proc 2", "Unknown option `--num_proc`."),
        ("--dataset_name=", "No dataset: set `dataset_name`"),
        ("--accelerate_config nowhere", "Accelerate config nowhere is neither a file"),
        ("--accelerate_config=nowhere", "Accelerate config nowhere is neither a file"),
    ],
)
def test_a_wrong_option_is_refused(recipe, launched, words, message):
    result = run("--config", recipe, *words.split())
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.splitlines()) == 1 + ("FutureWarning" in result.output) * 2
    assert launched == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "Unknown key `lerning_rate`. Did you mean `learning_rate`?"),
        ("num-proceses: 1", "Unknown key `num-proceses`. Did you mean `num_processes`?"),
        ("neft_tokns: all", "Unknown key `neft_tokns`"),
        ("neft_tokns: all", "Did you mean 'neft_tokens'?"),
        ("a: [1", "expected ',' or ']'"),
        ("common: {neft_tokens: all}", "`neft_tokens` is inside `common`, where nothing reads it"),
        ("common: {seed: 1}", "`common`. A holder of YAML anchors needs a name that begi"),
        ("neft: {tokens: all}", "`neft` is no key of the noise, and the keys in it would not be"),
    ],
)
def test_a_wrong_key_of_the_yaml_is_refused(recipe, launched, text, message):
    add(recipe, text)
    result = run("--config", recipe)
    assert result.exit_code == 2
    assert message in result.output
    assert launched == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--neft_tokens=completion", "Did you mean 'response'?"),
        ("--neft_seed 1.5", "`neft_seed` must be an int or unset; got 1.5."),
        ("--neft_sparsity 3", "`neft_sparsity` must be a number in [0, 1), or 'auto'; got 3"),
        ("--neft_schedule polynomial --neft_schedule_args {powr:2}", "or its JSON such as '{"),
        ('--neft_schedule polynomial --neft_schedule_args {"powr":2}', "got 'powr"),
        ("--neft_length None --neft-alpha-end 1e0 --neft_schedule linear", "No dataset: set"),
        ("--lerning-rate 1", "Unknown option `--lerning-rate`. Did you mean `--learning_rate`?"),
        ("", "No dataset: set"),
    ],
)
def test_what_needs_no_trl_is_refused_without_it(tmp_path, words, message):
    """Its import takes seconds."""
    path = tmp_path / "recipe.yaml"
    path.write_text("neftune_noise_alpha: 5\nneft_length: row\n")
    code = f"""
        import sys
        from neft_plugins.cli import main
        sys.argv = ["neft", "sft", "--config", {str(path)!r}, *{words.split()!r}]
        try:
            main()
        finally:
            for host in ("torch", "transformers", "trl", "accelerate"):
                if host in sys.modules:
                    print(host, "is imported", file=sys.stderr)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_no_option_is_unknown_without_its_parser():
    """The names are read from the hosts' sources; what those leave out would be refused."""
    parsers = sft.make_parser(), launch_parser()
    options = {option for parser in parsers for option in parser._option_string_actions}
    names = {option.lstrip("-").replace("-", "_") for option in options}
    assert option_names()
    assert {name for name in names if not is_known(name)} <= {"h", "m"}  # -h, -m
    assert not is_known("lerning_rate")


def test_a_host_that_moved_its_files_leaves_it_to_the_parser(monkeypatch):
    monkeypatch.setitem(option_names_module._SOURCES, "trl", ("no_such_file.py",))
    option_names.cache_clear()
    assert option_names() == frozenset()
    assert is_known("lerning_rate")
    option_names.cache_clear()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "No dataset: set `dataset_name` (a Hub id or a folder) or `datasets`."),
        ("--max_steps 3", "No dataset: set `dataset_name`"),
        ("--dataset_train_split train", "No dataset: set `dataset_name`"),
        ("--dataset_name x", "No model: set `model_name_or_path`"),
        (
            "--dataset_name x --use_cpu true",
            "No model: set `model_name_or_path` (a Hub id or a folder).",
        ),
        ("--config", "`--config` needs the path of a YAML file."),
        ("--config nowhere.yaml", "nowhere.yaml cannot be read: No such file or directory."),
        ("--configg sft.yaml", "Unknown option `--configg`. Did you mean `--config`?"),
        ("--conf=sft.yaml", "Did you mean `--config`?"),
        ("sft.yaml", "`sft.yaml` is no option's value. Write `--config sft.yaml`."),
    ],
)
def test_what_is_missing_is_said_first(launched, words, message):
    """Not, on a machine without a GPU, that bf16 is missing."""
    result = run(*words.split())
    assert result.exit_code == 2
    assert message in result.output
    assert launched == []


def test_a_yaml_without_keys_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- dataset_name\n")
    result = run("--config", tmp_path / "list.yaml")
    assert result.exit_code == 2
    assert "list.yaml must have keys and values" in result.output


def test_a_key_where_nothing_reads_it_is_refused(recipe, launched):
    add(recipe, "datasets: [{path: x, neft_length: noised}]\nx-more: {neft_length: noised}")
    result = run("--config", recipe)
    assert result.exit_code == 2
    assert "`neft_length` is inside `datasets`, where nothing reads it. Write it" in result.output
    assert launched == []


def test_a_dataset_beside_a_mixture_is_not_used(recipe, launched):
    add(recipe, f"datasets: [{{path: {DATA}}}]")
    with pytest.warns(NEFTWarning, match="`datasets` and `dataset_name` are both set"):
        assert run("--config", recipe).exit_code == 0
    assert len(launched) == 1


# What is launched.


def test_json_that_yaml_does_not_read_is_taken(recipe, launched):
    given = '--neft_schedule_args={"power":\t2}'
    result = run("--config", recipe, "--neft_schedule", "polynomial", given)
    assert result.exit_code == 0, result.output
    assert launched[0].training_script_args[-1] == given


def test_accelerates_options_are_dealt_to_accelerate(recipe, launched):
    words = ("--learning_rate", "-1", "--num-processes=3", "--rdzv_conf=neft_job", "--cpu")
    result = run(f"--config={recipe}", *words, "--accelerate_config=zero3")
    assert result.exit_code == 0, result.output
    (arguments,) = launched
    assert arguments.training_script_args == ["--config", str(recipe), "--learning_rate", "-1"]
    assert (arguments.num_processes, arguments.cpu, arguments.module) == (3, True, True)
    assert arguments.rdzv_conf == "neft_job"
    assert Path(arguments.config_file).name == "zero3.yaml"


def test_accelerates_keys_may_stand_in_the_yaml(recipe, launched):
    add(recipe, "num_processes: 2\nmulti_gpu: true\ncpu: false\ngpu_ids:\naccelerate_config: zero2")
    assert run("--config", recipe).exit_code == 0
    (arguments,) = launched
    assert (arguments.num_processes, arguments.multi_gpu, arguments.cpu) == (2, True, False)
    assert arguments.gpu_ids is None
    assert Path(arguments.config_file).name == "zero2.yaml"
    assert run("--config", recipe, "--accelerate_config", "zero3").exit_code == 0
    assert Path(launched[1].config_file).name == "zero3.yaml"


def test_a_holder_of_anchors_is_no_key(recipe, launched):
    add(recipe, "x-noise: &noise {neft_distribution: gaussian}\n<<: *noise")
    assert run("--config", recipe).exit_code == 0
    assert len(launched) == 1


def test_help_lists_every_option():
    result = run("--help")
    assert result.exit_code == 0
    for option in ("--neft_tokens", "--learning_rate", "--final_evaluation", "--test_split_size"):
        assert option in result.output
    short = run("-h")
    assert "neft sft --config RECIPE.yaml" in short.output
    assert len(short.output.splitlines()) < 25
    assert "\\b" not in short.output
    assert "\n  neft sft --config RECIPE.yaml\n" in short.output  # a line for each example


# What the training script does.


@pytest.mark.slow
def test_training_ends_with_what_it_did(recipe, tmp_path, capfd):
    add(recipe, "eval_strategy: epoch\nnum_machines: 1")  # the latter is accelerate's
    assert run("--config", recipe, "--neft_alpha_end", 1).exit_code == 0
    printed = capfd.readouterr()
    line = "NEFT: alpha 5 -> 1 linear over 2 steps, uniform, response tokens, L = sequence"
    assert line in printed.err
    rows = {
        cells[0]: cells[1:]
        for line in printed.out.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│┃ ").split("│")]) == 3
    }
    assert rows["alpha"] == ["5", "3"]
    assert float(rows["noise-to-signal ratio"][0]) > float(rows["noise-to-signal ratio"][1]) > 0
    assert 0 < float(rows["fraction of tokens noised"][0]) < 1
    assert {"training loss, with noise", "training loss, without noise (100 rows)"} <= set(rows)
    assert float(rows["held-out loss, without noise (100 rows)"][1]) > 0
    assert (tmp_path / "out" / "neft_config.json").is_file()
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("evaluates", [True, False])
def test_the_evaluation_at_the_end_can_be_switched_off(recipe, capsys, monkeypatch, evaluates):
    monkeypatch.setattr("neft_plugins.trl.summary.MOST_ROWS", 4)
    add(recipe, f"final_evaluation: {evaluates}\neval_strategy: steps\neval_steps: 100")
    sft.run(["--config", str(recipe)])
    printed = capsys.readouterr().out
    assert "training loss, with noise" in printed
    for of_the_end in ("held-out loss, without noise (4 rows)", "eval_final_loss"):
        assert (of_the_end in printed) == evaluates


def test_the_table_of_a_baseline(recipe, capsys, caplog):
    words = ["--neftune_noise_alpha", "0", "--final_evaluation", "false"]
    sft.run(["--config", str(recipe), *words])
    printed = capsys.readouterr().out
    assert "NEFT: alpha 0, no noise" in caplog.messages
    assert re.search(r"│ alpha +│ 0 +│ 0 +│", printed)
    assert "training loss, while training" in printed
    assert "with noise" not in printed
    assert "noise-to-signal" not in printed


def test_a_run_keeps_what_it_was_given_and_can_be_run_again(recipe, tmp_path):
    add(recipe, "x-holder: &h {a: 1}")
    schedule = ["--neft-schedule", "polynomial", '--neft_schedule_args={"power": 2}']
    sft.run(
        [
            "--config",
            str(recipe),
            *schedule,
            "--no_dataloader_pin_memory",
            "--final_evaluation",
            "no",
        ]
    )
    kept = (tmp_path / "out" / KEYS_FILE).read_text()
    assert str(Path.cwd()) in kept.splitlines()[0]
    keys = yaml.safe_load(kept)
    assert keys == {
        **yaml.safe_load(RECIPE),
        "output_dir": str(tmp_path / "out"),
        "neft_schedule": "polynomial",
        "neft_schedule_args": {"power": 2},
        "dataloader_pin_memory": False,
        "final_evaluation": False,
    }
    again = tmp_path / "again.yaml"
    again.write_text(kept.replace(str(tmp_path / "out"), str(tmp_path / "again")))
    sft.run(["--config", str(again)])
    logs = [
        json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        for name in ("out", "again")
    ]
    first, second = ([log.get("loss") for log in logged] for logged in logs)
    assert first == second
    assert logs[0][0]["neft/alpha"] == 5


def test_an_output_folder_is_no_checkpoint(tmp_path):
    write_keys({"max_steps": 1}, str(tmp_path))
    (tmp_path / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"output folder of a run, and no checkpoint\. Give"):
        check_checkpoint(str(tmp_path))


@pytest.mark.parametrize("is_main", [True, False])
def test_the_main_process_alone_prints_the_table(capsys, is_main):
    trainer: Any = Namespace(
        neft=None,
        sparsity=None,
        state=Namespace(log_history=[{"loss": 2.0}, {"loss": 1.0}]),
        accelerator=Namespace(is_main_process=is_main),
    )
    print_summary(trainer, evaluate=False)
    assert ("what this run did" in capsys.readouterr().out) == is_main


def test_what_was_never_logged_is_no_row(capsys):
    trainer: Any = Namespace(
        neft=Namespace(config=Namespace(alpha=5.0)),
        sparsity=None,
        state=Namespace(log_history=[{"train_loss": 1.0}]),
        accelerator=Namespace(is_main_process=True),
    )
    print_summary(trainer, evaluate=False)
    printed = capsys.readouterr().out
    assert "what this run did" in printed
    assert "alpha" not in printed
    assert "training loss" not in printed


def test_its_help_has_the_number_of_rows():
    (option,) = [
        each for each in fields(sft.NEFTScriptArguments) if each.name == "final_evaluation"
    ]
    assert f"at most {MOST_ROWS} training rows" in option.metadata["help"]


@pytest.mark.parametrize(
    ("options", "wanted", "message"),
    [
        (
            ["--dataset_name", DATA],
            "nope",
            "The dataset has no split 'nope'; it has 'train', 'test'. Set `dataset_train_split` "
            "and `dataset_test_split`.",
        ),
        (
            ["--config", "mixture.yaml"],
            "test",
            "The mixture has no split 'test'; it has 'train'. Set `test_split_size` to the "
            "fraction of its rows that is held out as 'test', such as 0.1, or do not evaluate.",
        ),
    ],
)
def test_a_split_that_is_not_there(tmp_path, monkeypatch, options, wanted, message):
    monkeypatch.chdir(tmp_path)
    Path("mixture.yaml").write_text(f"datasets: [{{path: {DATA}}}]\n")
    words = [*options, "--use_cpu", "true", "--bf16", "false"]
    script, _, _, mixture = sft.make_parser().parse_args_and_config(words)
    with pytest.raises(ValueError, match=re.escape(message)):
        sft.load_splits(script, mixture, ["train", wanted])
    mixture.test_split_size = 0.1  # the way out of a mixture's
    rows = [len(split) for split in sft.load_splits(script, mixture, ["train", "test"])]
    assert rows == ([450, 50] if mixture.datasets else [500, 100])


def test_a_key_of_nobodys_is_refused_by_the_script_too(recipe):
    """It may have been launched by torchrun, without ``neft sft``."""
    add(recipe, "neft_tokns: all")
    with pytest.raises(ValueError, match="Did you mean 'neft_tokens'"):
        sft.run(["--config", str(recipe)])


# How it ends.


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_a_failed_process_has_its_exit_code(
    recipe, tmp_path, monkeypatch, capfd, ranks, ending, code
):
    (tmp_path / "two.yaml").write_text(TWO_PROCESSES)
    said = "os.write(1, f'{\" \".join(sys.argv[1:])}\\n'.encode())"  # whole, beside another's
    script = f"import os, sys\n{said}\n{ending}\n"
    (tmp_path / "ends.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "SCRIPT", "ends")
    options = ["--accelerate_config", tmp_path / "two.yaml"] if ranks > 1 else []
    result = run("--config", recipe, *options)
    assert result.exit_code == code
    assert "Traceback" not in result.output
    printed = capfd.readouterr()
    # The first that ends may be the end of one that has not printed yet.
    assert 1 <= printed.out.count(f"--config {recipe}") <= ranks
    assert "launch_sft" not in printed.err  # no traceback of the launcher's


@pytest.mark.parametrize("rank", [None, "0", "1"])
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "Stopped."),
        (sft.SplitError("The dataset has no split."), 2, "Error: The dataset has no split."),
        (SparsityConfigError("`ramp_end` is late."), 2, "Error: `ramp_end` is late."),
    ],
)
def test_what_ends_training_is_one_line(monkeypatch, capsys, rank, error, code, line):
    def end(words):
        raise error

    monkeypatch.setattr(sft, "run", end)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.strip() == ("" if rank == "1" else line)


def test_ctrl_c_while_the_options_are_checked(recipe, monkeypatch):
    def stop(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_config_apart", stop)
    result = run("--config", recipe)
    assert (result.exit_code, result.output) == (130, "")


def test_a_ctrl_c_for_the_launcher_alone_is_handed_on(monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 0.1)
    wait = "import time; print(flush=True); time.sleep(60)"
    pipe = subprocess.PIPE
    training, other = (
        subprocess.Popen([sys.executable, "-c", wait, name], stdout=pipe, stderr=pipe)
        for name in (launch.SCRIPT, "other")
    )
    try:
        assert training.stdout
        training.stdout.readline()
        launch._end_training()
        assert b"KeyboardInterrupt" in training.communicate()[1]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
# Its processes import all for half a minute, and end as any of Python's does.
@pytest.mark.skipif(find_spec("axolotl") is not None, reason="run on the newest versions")
@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_ends_every_process(recipe, tmp_path, ranks):
    (tmp_path / "two.yaml").write_text(TWO_PROCESSES)
    options = ["--accelerate_config", tmp_path / "two.yaml"] if ranks > 1 else []
    log = tmp_path / "log.txt"
    command = ["neft", "sft", "--config", recipe, "--max_steps", 100_000, *options]
    process = commands.start(command, log)
    try:
        while "'neft/alpha'" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 128 + signal.SIGINT
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    printed = log.read_text()
    epochs = re.findall(r"'epoch': '?([\d.]+)", printed)
    assert float(epochs[0]) == pytest.approx(ranks / 125, rel=0.01)  # 500 rows by ranks x 4
    assert printed.count("NEFT: alpha 5") == 1  # the main process alone speaks
    assert "launch_sft" not in printed  # no traceback of the launcher's
    if ranks == 1:
        assert printed.rstrip().endswith("Stopped.")
        assert "Traceback" not in printed
