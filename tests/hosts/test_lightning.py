"""The callback of docs/other_hosts.md through what else a Lightning Trainer does."""

from typing import Any

import pytest
import torch
from helpers import tiny_llama
from host_blocks import CONFIG, LIGHTNING, blocks_of, loader_of, make_batches, plain_noise
from recorder import Call, recorded

from neft_plugins import NEFTConfig
from neft_plugins.config import NEFTWarning

lightning = pytest.importorskip("lightning")


class Tuner(lightning.LightningModule):
    def __init__(self, training: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = tiny_llama().train(training)

    def training_step(self, batch: Any, index: int) -> Any:
        return self.model(**batch).loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("held_out", self.model(**batch).loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@pytest.fixture
def callback(tmp_path, monkeypatch) -> Any:
    """The class that the page shows; Lightning writes where it is."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(blocks_of(LIGHTNING)[0], names)
    return names["NEFT"]


def fit(module: Tuner, noise: Any, ckpt_path: str | None = None, **options: Any) -> list[Call]:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(
        **quiet, callbacks=[noise, *options.pop("callbacks", [])], accelerator="cpu", **options
    )
    loader = loader_of(make_batches(4))
    with recorded(module.model) as calls:
        trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return calls


def test_validation_is_clean_and_training_is_not(callback):
    calls = fit(Tuner(), callback(CONFIG), max_epochs=2, val_check_interval=2)
    clean = [call for call in calls if not call.training]
    noisy = [call for call in calls if call.training]
    assert len(clean) == 2 + 2 * 2 * 4  # two of a first check, then twice an epoch
    assert not any(call.noisy for call in clean)
    where = [(step, 0) for step in range(8)]
    expected = plain_noise(noisy, where, make_batches(4))
    for call, noise in zip(noisy, expected, strict=True):
        torch.testing.assert_close(call.noise, noise, rtol=0, atol=2e-6)


def test_a_resumed_run_is_bit_identical(callback, tmp_path):
    save = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    run = {"max_epochs": 3, "accumulate_grad_batches": 3, "limit_val_batches": 0}
    whole = Tuner()
    calls = fit(whole, callback(CONFIG), callbacks=[save], **run)
    resumed = Tuner()
    rest = fit(resumed, callback(CONFIG), str(tmp_path / "epoch=1.ckpt"), **run)
    assert len(rest) == 4
    for one, other in zip(calls[8:], rest, strict=True):
        assert one.noisy
        assert torch.equal(one.noise, other.noise)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_an_end_alpha_is_constant_or_training_stops(callback):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 6

    run = {"max_epochs": -1, "limit_val_batches": 0, "callbacks": [Stop()]}
    assert all(call.noisy for call in fit(Tuner(), callback(NEFTConfig(alpha=5.0)), **run))
    with pytest.raises(ValueError, match="Pass `total_steps`"):
        fit(Tuner(), callback(CONFIG), **run)


def test_a_model_in_eval_mode_is_noticed(callback):
    with pytest.warns(NEFTWarning, match="The noise never fired"):
        fit(Tuner(training=False), callback(CONFIG), max_epochs=1, limit_val_batches=0)


def test_metrics_are_logged(callback):
    seen: list[dict[str, Any]] = []

    class Read(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    fit(Tuner(), callback(CONFIG), max_epochs=1, log_every_n_steps=2, callbacks=[Read()])
    assert [one["neft/alpha"] for one in seen] == [5.0, 5.0, 2.5, 2.5]
    assert all(one["neft/noise_rms"] > 0 for one in seen)
