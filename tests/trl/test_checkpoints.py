"""Which checkpoint a run goes on from, and what is told of it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from sft_trainer import make_trainer
from transformers import Trainer

from neft_plugins.cli.launch import launch_sft
from neft_plugins.config import NEFTConfig
from neft_plugins.trainer.callback import CONFIG_FILE, NEFTCallback
from neft_plugins.trl.checkpoints import STATE_FILE, check_checkpoint, find_checkpoint
from neft_plugins.trl.sft import make_parser

SAVES = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The output folder of a run with checkpoint-1, -2 and -3."""
    folder = tmp_path_factory.mktemp("saved")
    make_trainer(folder, **SAVES).train()
    return folder


@pytest.fixture
def output(saved, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "out"))


def step_found(asked, output: Path) -> int | None:
    found = find_checkpoint(asked, str(output))
    return None if found is None else int(found.rpartition("-")[2])


@pytest.mark.parametrize("asked", [True, "true", "True", "latest"])
def test_the_newest_is_found_by_number(asked, output):
    shutil.copytree(output / "checkpoint-3", output / "checkpoint-10")
    (output / "checkpoint-final").mkdir()
    assert step_found(asked, output) == 10


@pytest.mark.parametrize("asked", [None, False, "false", "False"])
def test_no_checkpoint_is_asked_for(asked, output):
    assert find_checkpoint(asked, str(output)) is None


def test_a_path_is_taken_as_it_is(output):
    path = str(output / "checkpoint-1")
    assert find_checkpoint(path, "elsewhere") == path


def test_whatever_a_kill_left_of_a_save_is_passed_over(output, caplog):
    """Files in the order of their writing; the last one there is half written."""
    files = sorted((output / "checkpoint-3").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    names = [file.name for file in files if file.name != CONFIG_FILE]
    assert STATE_FILE in names[-2:]  # the clock is coarse
    whole = {name: (output / "checkpoint-3" / name).read_bytes() for name in names}
    names = [name for name in names if name != STATE_FILE] + [STATE_FILE]
    for count in range(len(names)):
        shutil.rmtree(output / "checkpoint-3")
        (output / "checkpoint-3").mkdir()
        for name in names[: count + 1]:
            (output / "checkpoint-3" / name).write_bytes(whole[name])
        os.truncate(output / "checkpoint-3" / names[count], len(whole[names[count]]) // 2)
        assert step_found("latest", output) == 2, names[count]
    assert f"Not complete, so passed over: checkpoint-3 in {output}." in caplog.text


def test_what_is_resumed_is_logged(output, caplog):
    find_checkpoint("latest", str(output))
    assert f"Resuming from {output}/checkpoint-3 at step 3." in caplog.text
    assert "passed over" not in caplog.text


def test_without_a_checkpoint_training_begins_at_its_beginning(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train(resume_from_checkpoint="latest")
    assert f"No complete checkpoint in {tmp_path}: training begins at step 0." in caplog.text
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("path", ["nowhere", ".", "checkpoint-3"])
def test_a_path_that_is_no_complete_checkpoint_is_refused(path, output):
    (output / "checkpoint-3" / STATE_FILE).write_text('{"epoch": ')
    asked = output / path
    with pytest.raises(ValueError, match=f"{asked}` is no complete checkpoint: .*`latest`"):
        check_checkpoint(str(asked))


def test_it_is_refused_before_anything_is_launched(tmp_path):
    arguments = [
        "--use_cpu",
        "--dataset_name",
        "x",
        "--model_name_or_path",
        "x",
        "--output_dir",
        str(tmp_path),
    ]
    with pytest.raises(ValueError, match="`resume_from_checkpoint: nowhere` is no complete"):
        launch_sft([*arguments, "--resume_from_checkpoint", "nowhere"])


@pytest.mark.parametrize(
    ("words", "value"), [([], None), (["latest"], "latest"), (["some/path"], "some/path")]
)
def test_on_the_command_line_latest_may_be_left_out(words, value, tmp_path):
    arguments = [
        "--use_cpu",
        "--output_dir",
        str(tmp_path),
        "--resume_from_checkpoint",
        *words,
        "--seed",
        "3",
    ]
    _, training, _, _ = make_parser().parse_args_and_config(arguments)
    assert training.resume_from_checkpoint == (value or "latest")
    assert training.seed == 3


def test_saving_anew_a_checkpoint_is_incomplete_until_it_is_saved(output, monkeypatch):
    """As when a run resumed from an older one is killed: the old state does not vouch for it."""
    trainer = make_trainer(output, **SAVES)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(output / "checkpoint-1"))
    assert step_found(True, output) == 3
    assert not (output / "checkpoint-2" / STATE_FILE).exists()


@pytest.mark.parametrize("text", ["", '{"alpha": 5', "null", "[1]", "\0"])
def test_a_damaged_record_stops_no_resume_and_is_logged(text, output, caplog):
    (output / "checkpoint-2" / CONFIG_FILE).write_text(text)
    trainer = make_trainer(output, max_steps=3)
    trainer.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    assert trainer.state.global_step == 3
    assert f"NEFT: resumed at step 2, but {output}/checkpoint-2/{CONFIG_FILE} cannot be read" in (
        caplog.text
    )


def test_where_the_run_goes_on_is_where_its_old_keys_are_looked_for(output, tmp_path, caplog):
    """Also if only `train` was given the path, and the output goes elsewhere."""
    trainer = make_trainer(tmp_path / "other", neftune_noise_alpha=7.0)
    trainer.train(resume_from_checkpoint=str(output / "checkpoint-2"))
    assert "alpha 5.0 -> 7.0" in caplog.text


@pytest.mark.parametrize("ending", [KeyboardInterrupt, OSError])
def test_the_record_is_the_old_one_or_the_new_one(tmp_path, monkeypatch, ending):
    NEFTCallback(NEFTConfig(alpha=5.0)).save_config(tmp_path)
    write = Path.write_text

    def write_half(path, text, **options):
        write(path, text[: len(text) // 2], **options)
        raise ending

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(ending):
        NEFTCallback(NEFTConfig(alpha=7.0)).save_config(tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["alpha"] == 5.0
    monkeypatch.undo()
    NEFTCallback(NEFTConfig(alpha=7.0)).save_config(tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["alpha"] == 7.0
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]


def test_nodes_go_on_from_what_is_complete_on_all_of_them(output, monkeypatch):
    """Without a shared disk, a kill may have come before one node's save and after another's."""
    monkeypatch.setattr(
        "neft_plugins.trl.checkpoints.gather_object", lambda here: [*here, {1, 2}, {2, 3}]
    )
    assert step_found("latest", output) == 2
