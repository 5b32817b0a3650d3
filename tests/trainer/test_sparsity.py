"""SparsityCallback in a plain Trainer."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_llama
from peft import LoraConfig, get_peft_model
from plain_trainer import InterruptAt, Logs, make_trainer
from safetensors.torch import load_file
from sparse_runs import start_plain
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neft_plugins import NEFTCallback, NEFTConfig
from neft_plugins.sparsity.config import SparsityConfig
from neft_plugins.trainer.sparsity import SparsityCallback

CONFIG = SparsityConfig(0.6, start=0, ramp_end=4, stop=8, every=3, window=2, exchange=0.5)
STATIC = SparsityConfig(0.6, ramp_end=4, dynamic=False)
STEPS = 8
SAVES = {"save_strategy": "steps", "save_steps": 1}


def small(kind: str = "full") -> Any:
    torch.manual_seed(0)
    model = tiny_llama(attention_dropout=0.1)
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"])) if kind == "lora" else model


def make(folder: Path, *callbacks: Any, kind: str = "full", **arguments: Any) -> Trainer:
    arguments = {"max_steps": STEPS, "model": small(kind)} | arguments
    return make_trainer(folder, callbacks, **arguments)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def changed(trainer: Trainer) -> dict[str, float]:
    before = dict(small().named_parameters())
    now = dict(trainer.model.named_parameters())
    return {name: (now[name] != before[name]).float().mean().item() for name in now}


def numbers(trainer: Trainer) -> list[dict[str, float]]:
    names = ("loss", "grad_norm", "neft/density", "neft/exchanged", "neft/update_kept")
    log = [log for log in trainer.state.log_history if "loss" in log]
    return [{name: each[name] for name in names} for each in log]


def test_a_run_is_sparse_and_says_so(tmp_path, caplog):
    """With gradient accumulation, as each run of these tests."""
    before, after = Logs(), Logs()
    trainer = make(tmp_path, before, SparsityCallback(CONFIG), after)
    trainer.train()
    for name, fraction in changed(trainer).items():
        if "proj" in name:
            assert fraction == pytest.approx(0.4, abs=1e-3)
        elif "norm" in name or "lm_head" in name:
            assert fraction > 0.99
    log = numbers(trainer)
    densities = [1, 1, 0.4 + 0.6 / 64, 0.4, 0.4, 0.4, 0.4, 0.4]
    assert [each["neft/density"] for each in log] == pytest.approx(densities, abs=1e-3)
    assert [each["neft/exchanged"] > 0 for each in log] == [False] * 3 + [True] * 5
    assert all(0.3 < each["neft/update_kept"] < 1 for each in log[2:])
    assert all("neft/density" in each for each in after.logs if "loss" in each)
    assert not any("neft/density" in each for each in [*before.logs, after.logs[-1]])
    line = (
        "NEFT: sparse change of 14 matrices (78.3% of the trainable parameters), density 1 -> 0.4 "
        "over steps 0 to 4, every 3 steps up to 8, exchange 0.5"
    )
    assert caplog.messages.count(line) == 1


def test_dense_is_the_run_without_and_says_so(tmp_path, caplog):
    plain = make(tmp_path)
    plain.train()
    dense = make(tmp_path, SparsityCallback(SparsityConfig(0)))
    dense.train()
    assert torch.equal(weights(plain), weights(dense))
    assert "NEFT: sparsity 0, every weight is trained" in caplog.messages
    assert {each["neft/density"] for each in numbers(dense)} == {1}


def test_noise_and_sparsity_are_of_each_other_unaware(tmp_path):
    """Each as it would be alone: the noise of the first step, the masks of any."""
    noise = NEFTConfig(alpha=5.0)
    first = []
    for callbacks in ([NEFTCallback(noise)], [SparsityCallback(CONFIG), NEFTCallback(noise)]):
        trainer = make(tmp_path, *callbacks)
        trainer.train()
        first.append(trainer.state.log_history[0])
    assert changed(trainer)["model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.4, abs=1e-3)
    assert first[1].items() > {k: v for k, v in first[0].items() if k != "neft/density"}.items()


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_weights_without_masters_are_sparse_in_their_own_dtype(tmp_path, dtype):
    trainer = make(tmp_path, SparsityCallback(CONFIG), model=small().to(dtype))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert value.dtype == dtype
        if "proj" in name:
            assert 0 < (value != before[name]).float().mean() <= 0.4 + 1e-3


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Any:
    """A whole run that saves each step, done once of each kind; not to be changed."""
    done: dict[Any, tuple[Trainer, Path]] = {}

    def run(kind: str, config: SparsityConfig) -> tuple[Trainer, Path]:
        if (kind, config) not in done:
            folder = tmp_path_factory.mktemp("whole")
            trainer = make(folder, SparsityCallback(config), kind=kind, **SAVES)
            trainer.train()
            done[kind, config] = trainer, folder
        return done[kind, config]

    return run


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("config", [CONFIG, STATIC], ids=["dynamic", "static"])
def test_resumed_is_bit_identical_to_uninterrupted(kind, config, whole, tmp_path):
    trainer, folder = whole(kind, config)
    for step in (1, 4, 5, 7):  # dense, at an update, in the window of one, after the last
        checkpoint = str(folder / f"checkpoint-{step}")
        resumed = make(
            tmp_path, SparsityCallback(config), kind=kind, resume_from_checkpoint=checkpoint
        )
        resumed.train(resume_from_checkpoint=checkpoint)
        assert torch.equal(weights(resumed), weights(trainer)), step
        assert numbers(resumed) == numbers(trainer), step


@pytest.mark.slow
def test_a_killed_run_goes_on_as_the_uninterrupted_one(tmp_path):
    """In the window of an update."""
    how = {"max_steps": STEPS, **SAVES}
    (wanted,) = start_plain(tmp_path / "whole", CONFIG, **how).results()
    assert start_plain(tmp_path, CONFIG, dies_at=5, **how).wait() == [-9]
    assert not (tmp_path / "out" / "checkpoint-6").exists()
    (resumed,) = start_plain(tmp_path, CONFIG, resume=True, **how).results()
    assert torch.equal(resumed, wanted)


def test_the_masks_are_saved_before_the_checkpoint_counts_as_complete(tmp_path, monkeypatch):
    seen = []

    def save(self: TrainerState, path: str) -> None:
        seen.append((Path(path).parent / "neft_sparsity.pt").exists())

    monkeypatch.setattr(TrainerState, "save_to_json", save)
    make(tmp_path, SparsityCallback(CONFIG), **SAVES).train()
    assert seen == [True] * STEPS
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_host_that_saves_in_a_way_of_its_own_has_the_masks_too(tmp_path, monkeypatch):
    def save(self: Trainer, *args: Any) -> None:
        Path(self.args.output_dir, f"checkpoint-{self.state.global_step}").mkdir()

    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    make(tmp_path, SparsityCallback(CONFIG), **SAVES).train()
    assert len(list(tmp_path.rglob("neft_sparsity.pt"))) == STEPS


def test_a_checkpoint_is_written_once(tmp_path, monkeypatch):
    written = []
    save = torch.save
    monkeypatch.setattr(
        "neft_plugins.trainer.sparsity.torch.save",
        lambda *args: (written.append(str(args[1])), save(*args)),
    )
    make(tmp_path, SparsityCallback(CONFIG), save_strategy="steps", save_steps=4).train()
    assert sum("neft_sparsity" in path for path in written) == 2


def test_masks_whose_checkpoint_was_deleted_are_written_again(tmp_path):
    class SavesAgain(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            shutil.rmtree(folder)
            callback.save_state(folder)

    callback, folder = SparsityCallback(CONFIG), tmp_path / "checkpoint-4"
    make(tmp_path, callback, SavesAgain(), save_strategy="steps", save_steps=4, max_steps=4).train()
    assert (folder / "neft_sparsity.pt").is_file()


def test_a_best_model_that_is_loaded_at_the_end_stays_as_it_was_saved(tmp_path):
    trainer = make(
        tmp_path,
        SparsityCallback(CONFIG),
        **SAVES,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that it is none of the last
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert not best.endswith(f"-{STEPS}")
    for name, value in load_file(Path(best) / "model.safetensors").items():
        assert torch.equal(trainer.model.get_parameter(name), value)


@pytest.fixture
def checkpoint(whole, tmp_path) -> Path:
    """A checkpoint of step 4, to be changed."""
    _, folder = whole("full", CONFIG)
    return Path(shutil.copytree(folder / "checkpoint-4", tmp_path / "saved" / "checkpoint-4"))


def resume(folder: Path, checkpoint: Path, config: SparsityConfig = CONFIG, **how: Any) -> None:
    how = {"resume_from_checkpoint": str(checkpoint)} | how
    make(folder, SparsityCallback(config), **how).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SparsityConfig(0), "was saved by a run with sparsity, and this one has none"),
        (STATIC, "another SparsityConfig: start 0 -> 0.05, stop 8 -> 0.75, every 3 -> 20"),
    ],
)
def test_another_config_is_refused(checkpoint, tmp_path, config, message):
    with pytest.raises(ValueError, match=message) as error:
        resume(tmp_path, checkpoint, config)
    assert str(checkpoint) in str(error.value)


def test_a_checkpoint_without_masks_is_refused(checkpoint, tmp_path):
    (checkpoint / "neft_sparsity.pt").unlink()
    with pytest.raises(ValueError, match=r"has no neft_sparsity.pt: it was saved without sparsity"):
        resume(tmp_path, checkpoint)
    resume(tmp_path, checkpoint, SparsityConfig(0))


def test_masks_of_other_processes_are_refused(checkpoint, tmp_path):
    file = checkpoint / "neft_sparsity.pt"
    file.rename(checkpoint / "neft_sparsity-00001-of-00002.pt")
    with pytest.raises(ValueError, match=r"but neft_sparsity-00001-of-00002\.pt: it was saved"):
        resume(tmp_path, checkpoint)


def test_damaged_masks_are_refused(checkpoint, tmp_path):
    file = checkpoint / "neft_sparsity.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=re.escape(f"{file} cannot be read (")):
        resume(tmp_path, checkpoint)


def test_masks_of_another_step_or_run_are_refused(checkpoint, whole, tmp_path):
    file = checkpoint / "neft_sparsity.pt"
    _, folder = whole("full", CONFIG)
    shutil.copy(folder / "checkpoint-3" / file.name, file)
    with pytest.raises(ValueError, match="is of step 3, and the run goes on at step 4"):
        resume(tmp_path, checkpoint)
    shutil.copy(folder / "checkpoint-4" / file.name, file)
    shutil.copy(folder / "checkpoint-5" / "model.safetensors", checkpoint)
    with pytest.raises(ValueError, match="has other weights than when the sparsity was saved"):
        resume(tmp_path, checkpoint)


def test_where_the_checkpoint_is_must_be_known(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder .*Set `resume_from_checkpoint` in"):
        resume(tmp_path / "empty", checkpoint, resume_from_checkpoint=None)


def test_a_callback_that_is_given_twice_is_refused(tmp_path):
    callback = SparsityCallback(CONFIG)
    for callbacks in ([callback, callback], [callback, SparsityCallback(CONFIG)]):
        with pytest.raises(RuntimeError, match="given a SparsityCallback twice"):
            make(tmp_path, *callbacks).train()
    trainer = make(tmp_path, callback)
    with pytest.raises(RuntimeError, match="given a SparsityCallback twice"):
        callback.add_to(trainer)


def test_two_trainings_in_a_row_each_begin_anew(tmp_path):
    callback = SparsityCallback(CONFIG)
    trainer = make(tmp_path, callback)
    trainer.train()
    assert callback.sparsifier is None
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        if "proj" in name:
            assert (value != before[name]).float().mean() == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("again", ["the same callback", "another callback"])
def test_after_an_interrupt_a_new_run_begins_anew(tmp_path, again):
    callback = SparsityCallback(CONFIG)
    trainer = make(tmp_path, callback, InterruptAt(6))
    with pytest.raises(KeyboardInterrupt), callback:
        trainer.train()
    assert callback.sparsifier is None
    next_one = callback if again == "the same callback" else SparsityCallback(CONFIG)
    trainer = make(tmp_path, next_one)
    trainer.train()
    assert changed(trainer)["model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.4, abs=1e-3)


def test_after_an_interrupt_the_same_model_begins_anew(tmp_path):
    callback, interrupt = SparsityCallback(CONFIG), InterruptAt(6)
    trainer = make(tmp_path, callback, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(interrupt)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        if "proj" in name:
            assert (value != before[name]).float().mean() == pytest.approx(0.4, abs=1e-3)


def test_added_first_every_other_callback_logs_the_metrics(tmp_path):
    seen = Logs()
    trainer = make(tmp_path, seen)
    SparsityCallback(CONFIG).add_to(trainer)
    trainer.train()
    assert all("neft/density" in log for log in seen.logs if "loss" in log)


def test_something_else_than_a_config_is_refused():
    with pytest.raises(TypeError, match=r"takes a SparsityConfig; got 0\.5"):
        SparsityCallback(0.5)


class OutOfMemoryOnce(Trainer):
    """In the sixth micro-batch."""

    calls = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().training_step(*args, **kwargs)


def test_a_smaller_batch_is_sparse_against_the_first_start(tmp_path):
    """``auto_find_batch_size`` begins again, from weights that some steps have changed."""
    callback = SparsityCallback(SparsityConfig(0.9, every=2, window=1))
    trainer = make_trainer(
        tmp_path,
        [callback],
        cls=OutOfMemoryOnce,
        auto_find_batch_size=True,
        gradient_accumulation_steps=1,
        max_steps=8,
    )
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.calls > 8
    densities = [log["neft/density"] for log in trainer.state.log_history if "loss" in log]
    assert densities[0] == 1.0  # the masks begin again
    assert densities[-1] == pytest.approx(0.1, abs=0.01)
    for name, before in start.items():
        if "proj" in name:
            changed = trainer.model.get_parameter(name) != before
            assert 0 < int(changed.sum()) <= int(0.1 * before.numel() + 0.5), name


def test_an_optimizer_with_a_second_copy_of_the_weights_is_refused(tmp_path):
    args = TrainingArguments(str(tmp_path), optim="schedule_free_adamw", use_cpu=True, report_to=[])
    state = TrainerState(max_steps=4)
    with pytest.raises(ValueError, match="cannot follow `optim: schedule_free_adamw`, whose w"):
        SparsityCallback(CONFIG).on_train_begin(args, state, TrainerControl(), model=tiny_llama())
    dense = SparsityCallback(SparsityConfig(0))
    dense.on_train_begin(args, TrainerState(max_steps=4), TrainerControl(), model=tiny_llama())
