"""Resuming under a plain Trainer: the same noise to the last bit, or the log says what changed."""

import json
import logging
from pathlib import Path

import pytest
import torch
from kills import start_plain
from plain_trainer import InterruptAt, make_trainer
from transformers import EarlyStoppingCallback, Trainer

import neft_plugins
from neft_plugins import NEFTCallback, NEFTConfig
from neft_plugins.noise.seeds import NOISE_VERSION
from neft_plugins.trainer.record import CONFIG_FILE

pytestmark = pytest.mark.slow

CONFIG = NEFTConfig(alpha=5.0, schedule="linear", distribution="gaussian")
CONSTANT = NEFTConfig(alpha=5.0)
SAVES = {"save_strategy": "steps", "save_steps": 1}
EPOCH = {"max_steps": -1, "num_train_epochs": 1}  # of four steps


def with_options(config: NEFTConfig, **options) -> NEFTConfig:
    return NEFTConfig(**config.to_dict() | options)


def train_and_save(folder: Path, config: NEFTConfig = CONFIG, **arguments) -> Path:
    """A whole run that saves each step; its second checkpoint."""
    make_trainer(folder, [NEFTCallback(config)], **SAVES, **arguments).train()
    return folder / "checkpoint-2"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Checkpoint 2 of a run of four steps with CONFIG and seed 7; not to be changed."""
    return train_and_save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def resumed(tmp_path, caplog):
    """Goes on from a checkpoint, and returns what was logged of another noise."""

    def resume(checkpoint: Path, config: NEFTConfig = CONFIG, **arguments) -> list[str]:
        caplog.clear()
        output = {"output_dir": str(tmp_path / "out"), "resume_from_checkpoint": str(checkpoint)}
        trainer = make_trainer(tmp_path, [NEFTCallback(config)], **output | arguments)
        trainer.train(resume_from_checkpoint=str(checkpoint))
        prefix = "NEFT: resumed at step 2 with other noise than before: "
        told = [message for message in caplog.messages if "resumed" in message]
        assert all(message.startswith(prefix) for message in told)
        return [message.removeprefix(prefix) for message in told]

    return resume


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_resumed_is_bit_identical_to_uninterrupted(tmp_path):
    whole = make_trainer(tmp_path / "whole", [NEFTCallback(CONFIG)])
    whole.train()
    killed = make_trainer(tmp_path / "cut", [NEFTCallback(CONFIG), InterruptAt(3)], **SAVES)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = make_trainer(tmp_path / "cut", [NEFTCallback(CONFIG)], **SAVES)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.log_history[0]["step"] == 1
    assert torch.equal(weights(whole), weights(resumed))
    losses = [
        [log["loss"] for log in t.state.log_history if "loss" in log] for t in (whole, resumed)
    ]
    assert losses[0] == losses[1]


def test_the_output_and_each_checkpoint_say_all_that_the_noise_depends_on(checkpoint):
    for folder in (checkpoint.parent, checkpoint, checkpoint.parent / "checkpoint-4"):
        record = json.loads((folder / CONFIG_FILE).read_text())
        assert record.pop("neft_plugins_version") == neft_plugins.__version__
        assert record.pop("noise_version") == NOISE_VERSION
        assert record.pop("total_steps") == 4
        assert NEFTConfig(**record) == with_options(CONFIG, seed=7)  # the trainer's


@pytest.mark.parametrize(
    ("options", "arguments", "told"),
    [
        ({}, {"max_steps": 12}, "total_steps 4 -> 12 (alpha at step 2: 2.5 -> 4.16667)"),
        (
            {},
            {"max_steps": -1, "num_train_epochs": 3},
            "total_steps 4 -> 12 (alpha at step 2: 2.5 -> 4.16667)",
        ),
        ({}, {"max_steps": 3}, "total_steps 4 -> 3 (alpha at step 2: 2.5 -> 1.66667)"),
        ({}, {"seed": 8}, "seed 7 -> 8"),
        ({"seed": 9}, {}, "seed 7 -> 9"),
        ({"alpha": 7, "tokens": "response"}, {}, "alpha 5.0 -> 7, tokens 'all' -> 'response'"),
        (
            {"schedule": "polynomial", "schedule_args": {"power": 2}},
            {"seed": 8},
            "schedule 'linear' -> 'polynomial', schedule_args {} -> {'power': 2}, seed 7 -> 8",
        ),
    ],
)
def test_what_changed_is_logged(checkpoint, resumed, options, arguments, told):
    assert resumed(checkpoint, with_options(CONFIG, **options), **arguments) == [told]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({}, EPOCH),  # as many steps as before
        ({"seed": 7}, {}),  # what was the trainer's is now ours
        ({"seed": 7}, {"seed": 8}),
    ],
)
def test_nothing_is_logged_where_the_noise_is_what_it_was(checkpoint, resumed, options, arguments):
    assert resumed(checkpoint, with_options(CONFIG, **options), **arguments) == []


@pytest.mark.parametrize(
    ("options", "before", "now", "told"),
    [
        ({}, 4, 12, []),
        ({"warmup_steps": 1}, 4, 12, []),
        # Of a warm-up of a quarter, step 2 is past the end in both runs.
        ({"warmup_steps": 0.25}, 4, 8, []),
        (
            {"warmup_steps": 0.25},
            4,
            12,
            ["total_steps 4 -> 12 (alpha at step 2: 5 -> 3.33333)"],
        ),
        # The same until the next plateau.
        (
            {"schedule": "step", "schedule_args": {"step_size": 0.75}},
            4,
            5,
            ["total_steps 4 -> 5 (alpha at step 3: 2.5 -> 5)"],
        ),
        ({"schedule": "step", "schedule_args": {"step_size": 3}}, 4, 5, []),
        # A run that had ended goes on.
        ({"schedule": "linear"}, 2, 4, ["total_steps 2 -> 4 (alpha at step 2: 0 -> 2.5)"]),
        ({}, 2, 4, []),
    ],
)
def test_other_total_steps_are_logged_if_alpha_is_another(
    tmp_path, resumed, options, before, now, told
):
    config = with_options(CONSTANT, **options)
    saved = train_and_save(tmp_path, config, max_steps=before)
    assert resumed(saved, config, max_steps=now) == told


def test_other_draws_are_logged(checkpoint, resumed, monkeypatch):
    monkeypatch.setattr("neft_plugins.trainer.record.NOISE_VERSION", NOISE_VERSION + 1)
    assert resumed(checkpoint) == [f"noise_version {NOISE_VERSION} -> {NOISE_VERSION + 1}"]


@pytest.mark.parametrize(("now", "told"), [({}, ""), ({"alpha": 7.0}, "alpha 5.0 -> 7.0, ")])
def test_the_record_of_an_older_version_is_read(tmp_path, resumed, now, told):
    """It has no draws, total steps and resolved seed; and may lack an option that came later."""
    saved = train_and_save(tmp_path)
    record = json.loads((saved / CONFIG_FILE).read_text())
    for later in ("noise_version", "total_steps", "alpha_end"):
        del record[later]
    record |= {"neft_plugins_version": "0.1.0", "seed": None}
    (saved / CONFIG_FILE).write_text(json.dumps(record))
    state = json.loads((saved / "trainer_state.json").read_text())
    state["stateful_callbacks"] = {"TrainerControl": state["stateful_callbacks"]["TrainerControl"]}
    (saved / "trainer_state.json").write_text(json.dumps(state))
    told_now = resumed(saved, with_options(CONFIG, **now), max_steps=12, seed=8, **SAVES)
    assert told_now == [f"{told}noise_version 1 -> {NOISE_VERSION}"]


def test_a_checkpoint_that_only_train_is_given_is_found(checkpoint, tmp_path, caplog):
    """No argument says where it is, and the output goes elsewhere."""
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)], seed=8)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert "resumed at step 2 with other noise than before: seed 7 -> 8" in caplog.text


def test_a_checkpoint_saved_without_noise_is_logged(checkpoint, tmp_path, caplog):
    """Noise, then none, then noise: the record of the first is not that of the second."""
    clean = make_trainer(tmp_path, **SAVES, max_steps=3)
    clean.train(resume_from_checkpoint=str(checkpoint))
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)], **SAVES)
    trainer.train(resume_from_checkpoint=True)
    assert f"resumed at step 3, but {tmp_path}/checkpoint-3/{CONFIG_FILE} cannot be" in caplog.text
    assert "it is not known whether the noise is what it was" in caplog.text
    assert (tmp_path / "checkpoint-4" / CONFIG_FILE).exists()


STRATEGIES = {
    "steps": {"save_strategy": "steps", "save_steps": 2},
    "epoch": {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2},
    "best": {
        "save_strategy": "best",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
    },
}


@pytest.mark.parametrize(("strategy", "step"), [("steps", 2), ("epoch", 4), ("best", 2)])
def test_a_kill_as_soon_as_a_checkpoint_is_complete_leaves_its_record(strategy, step, tmp_path):
    how = STRATEGIES[strategy]
    (whole,) = start_plain(tmp_path / "whole", CONFIG, **how).results()
    killed = start_plain(tmp_path / "cut", CONFIG, dies_at=step, **how)
    assert killed.wait() == [-9]
    checkpoint = tmp_path / "cut" / "out" / f"checkpoint-{step}"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == step
    assert json.loads((checkpoint / CONFIG_FILE).read_text())["schedule"] == "linear"
    again = start_plain(tmp_path / "cut", CONFIG, resume=str(checkpoint), **how)
    (resumed,) = again.results()
    assert "NEFT: resumed" not in again.printed()
    assert torch.equal(resumed["weights"], whole["weights"])
    assert resumed["log"] == whole["log"]


class SavesInItsOwnWay(Trainer):
    """As Axolotl does under FSDP2 with a quantized base: it asks no callback for its state."""

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.save_model(str(folder), _internal_call=True)
        self.state.save_to_json(str(folder / "trainer_state.json"))


def test_a_host_that_saves_in_its_own_way_leaves_the_record_too(tmp_path, caplog):
    make_trainer(tmp_path, [NEFTCallback(CONFIG)], cls=SavesInItsOwnWay, **SAVES).train()
    record = tmp_path / "checkpoint-2" / CONFIG_FILE
    assert json.loads(record.read_text())["total_steps"] == 4
    record.unlink()  # as after a kill between the two
    trainer = make_trainer(tmp_path / "out", [NEFTCallback(CONFIG)], seed=8, ignore_data_skip=True)
    trainer.train(resume_from_checkpoint=str(record.parent))
    assert "other noise than before: seed 7 -> 8" in caplog.text


def test_states_of_callbacks_may_be_restored(tmp_path, caplog):
    """The callback is the one that was given, where it was, with the noise asked for now."""

    def make(
        config: NEFTConfig, **arguments
    ) -> tuple[Trainer, NEFTCallback, EarlyStoppingCallback]:
        evaluated = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
        stopping = EarlyStoppingCallback(early_stopping_patience=3)
        trainer = make_trainer(tmp_path, [stopping], **SAVES, **evaluated, **arguments)
        return trainer, NEFTCallback(config).add_to(trainer), stopping

    trainer, _, stopping = make(CONFIG)
    trainer.train()
    other = with_options(CONFIG, alpha=4.0)
    trainer, callback, stopping = make(other, restore_callback_states_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert stopping not in trainer.callback_handler.callbacks
    assert trainer.callback_handler.callbacks[0] is callback
    assert "alpha 5.0 -> 4.0" in caplog.text
    alphas = [log["neft/alpha"] for log in trainer.state.log_history if "neft/alpha" in log]
    assert alphas[2:] == pytest.approx([2.0, 1.0])


def test_training_anew_after_an_interrupt_makes_no_checkpoint_of_it(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG), InterruptAt(2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]


def test_what_is_logged_goes_to_the_logger_that_was_given(checkpoint, tmp_path, caplog):
    host = logging.Logger("host.noise")  # of no class that a host has set for all others
    host.addHandler(caplog.handler)
    callback = NEFTCallback(CONFIG, logger=host)
    trainer = make_trainer(tmp_path, [callback], seed=8)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    told = [record.message for record in caplog.records if record.name == "host.noise"]
    assert told[0].startswith("NEFT: alpha 5 -> 0 linear over 4 steps")
    assert told[1:] == ["NEFT: resumed at step 2 with other noise than before: seed 7 -> 8"]
