"""NEFTCallback in a plain Trainer."""

import re
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_llama
from plain_trainer import InterruptAt, Logs, make_trainer, rows
from recorder import count_hooks, recorded, snapshot
from transformers import Trainer

from neft_plugins import NEFTCallback, NEFTConfig, attach_neft
from neft_plugins.model.handle import attached_handle
from neft_plugins.model.hooks import NoNoiseError

CONFIG = NEFTConfig(alpha=5.0, schedule="linear", distribution="gaussian")


def test_every_micro_batch_gets_the_noise_of_its_step(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)])
    with recorded(trainer.model) as passes:
        trainer.train()
    assert len(passes) == 8
    assert all(p.noisy for p in passes)
    fresh = tiny_llama()
    with attach_neft(fresh, CONFIG, total_steps=4, seed=7) as neft:
        for index, seen in enumerate(passes):
            neft.set_step(index // 2, index % 2)
            with recorded(fresh) as again:
                fresh(input_ids=seen.ids, attention_mask=mask_of(seen.ids))
            torch.testing.assert_close(again[0].noise, seen.noise, rtol=1e-4, atol=1e-6)


def mask_of(ids: torch.Tensor) -> torch.Tensor:
    by_ids = {tuple(r["input_ids"].tolist()): r["attention_mask"] for r in rows()}
    return torch.stack([by_ids[tuple(row.tolist())] for row in ids])


def test_metrics_are_in_the_log_at_each_logging_step(tmp_path):
    before, after = Logs(), Logs()
    trainer = make_trainer(
        tmp_path, [before, NEFTCallback(CONFIG), after], eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    logged = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["neft/alpha"] for log in logged] == pytest.approx([5.0, 3.75, 2.5, 1.25])
    for log in logged:
        assert log["neft/noised_tokens"] == 1.0
        assert log["neft/noise_rms"] == pytest.approx(
            log["neft/alpha"] / (3 * 7.2 * 32) ** 0.5, rel=0.2
        )
        assert log["neft/noise_to_signal"] > log["neft/noise_rms"]
    assert all("neft/alpha" in log for log in after.logs if "loss" in log)
    assert not any("neft/alpha" in log for log in before.logs)
    assert not any("neft/alpha" in log for log in after.logs if "loss" not in log)


def test_added_first_every_other_callback_logs_the_metrics(tmp_path):
    seen = Logs()
    trainer = make_trainer(tmp_path, [seen])
    NEFTCallback(CONFIG).add_to(trainer)
    trainer.train()
    assert all("neft/noise_rms" in log for log in seen.logs if "loss" in log)


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_the_same_run_twice_is_bit_identical(tmp_path):
    runs = []
    for _ in range(2):
        trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)])
        trainer.train()
        runs.append(weights(trainer))
    assert torch.equal(*runs)


def test_noise_leaves_dropout_and_shuffling_as_they_were(tmp_path):
    """Every global draw during training is the same with and without noise."""
    seen = []
    for callbacks in ([], [NEFTCallback(CONFIG)]):
        trainer = make_trainer(tmp_path, callbacks)
        with recorded(trainer.model) as passes:
            trainer.train()
        seen.append(([p.ids for p in passes], torch.get_rng_state()))
    (ids, state), (noisy_ids, noisy_state) = seen
    assert all(torch.equal(a, b) for a, b in zip(ids, noisy_ids, strict=True))
    assert torch.equal(state, noisy_state)


def test_a_full_run_leaves_no_trace(tmp_path):
    left = []
    for callbacks in ([], [NEFTCallback(CONFIG)]):
        trainer = make_trainer(tmp_path, callbacks)
        trainer.train()
        left.append((snapshot(trainer.model), list(trainer.model.state_dict())))
    assert left[0] == left[1]
    assert count_hooks(trainer.model) == 0


def test_after_an_interrupt_a_new_run_has_its_noise_once(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG), InterruptAt(2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    # As in a notebook: the same model, a new Trainer, a new callback.
    again = make_trainer(tmp_path, [NEFTCallback(CONFIG)], model=trainer.model)
    again.train()
    assert attached_handle(again.model) is None


def test_with_leaves_no_trace_after_an_interrupt(tmp_path):
    with NEFTCallback(CONFIG) as callback:
        trainer = make_trainer(tmp_path, [callback, InterruptAt(2)])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert attached_handle(trainer.model) is not None
    assert attached_handle(trainer.model) is None


def test_training_twice_with_one_trainer(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)])
    trainer.train()
    trainer.train()
    assert attached_handle(trainer.model) is None


def test_two_callbacks_are_an_error(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)])
    NEFTCallback(CONFIG).add_to(trainer)
    with pytest.raises(RuntimeError, match="already attached"):
        trainer.train()


def test_the_built_in_beside_the_callback_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)], neftune_noise_alpha=5.0)
    with pytest.raises(RuntimeError, match="Drop `neftune_noise_alpha` from the training arg"):
        trainer.train()


class OtherModel(Trainer):
    """A Trainer that trains something else than its model."""

    def compute_loss(self, model, inputs, **kwargs):
        if not hasattr(self, "other"):
            self.other = tiny_llama()
        return self.other(**inputs).loss + 0 * sum(p.sum() for p in model.parameters())


def test_a_first_step_without_noise_stops_before_the_update(tmp_path):
    for accumulation in (1, 2):
        callback = NEFTCallback(CONFIG)
        trainer = make_trainer(
            tmp_path, [callback], cls=OtherModel, gradient_accumulation_steps=accumulation
        )
        before = weights(trainer)
        with pytest.raises(NoNoiseError, match="The first training step ended and no noise was"):
            trainer.train()
        assert torch.equal(weights(trainer), before)
        assert attached_handle(trainer.model) is None


def test_data_parallel_replicas_in_one_process_are_refused():
    state, args = SimpleNamespace(max_steps=1), SimpleNamespace(n_gpu=2)
    with pytest.raises(
        ValueError, match=re.escape("nn.DataParallel, which the Trainer uses for 2")
    ):
        NEFTCallback(CONFIG).on_train_begin(args, state, None, model=tiny_llama())


def test_the_config_must_be_a_config():
    with pytest.raises(TypeError, match="takes a NEFTConfig; got dict"):
        NEFTCallback({"alpha": 5})
