"""NEFTCallback in a plain Trainer."""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import MODEL, tiny_llama
from plain_trainer import InterruptAt, Logs, check_noise, make_trainer, mask_of
from recorder import count_hooks, recorded, snapshot
from transformers import AutoTokenizer, Trainer, default_data_collator

from neft_plugins import NEFTCallback, NEFTConfig, attach_neft
from neft_plugins.model.handle import attached_handle
from neft_plugins.model.hooks import NoNoiseError

SUPPORT = Path(__file__).parents[1] / "support"
CONFIG = NEFTConfig(alpha=5.0, schedule="linear", distribution="gaussian")
EXACT = NEFTConfig(alpha=5.0, schedule="linear", distribution="rademacher")
ALPHAS = [5.0, 3.75, 2.5, 1.25]


@pytest.mark.parametrize(("own", "trainers", "used"), [(None, 7, 7), (11, 7, 11), (0, 7, 0)])
def test_every_micro_batch_gets_the_noise_of_its_step(tmp_path, own, trainers, used):
    """Drawn by the config's seed, and only where it has none by the trainer's."""
    callback = NEFTCallback(replace(CONFIG, seed=own))
    trainer = make_trainer(tmp_path, [callback], seed=trainers)
    with recorded(trainer.model) as passes:
        trainer.train()
    assert len(passes) == 8
    assert all(p.noisy for p in passes)
    fresh = tiny_llama()
    with attach_neft(fresh, CONFIG, total_steps=4, seed=used) as neft:
        for index, seen in enumerate(passes):
            neft.set_step(index // 2, index % 2)
            with recorded(fresh) as again:
                fresh(input_ids=seen.ids, attention_mask=mask_of(seen.ids))
            torch.testing.assert_close(again[0].noise, seen.noise, rtol=1e-4, atol=1e-6)


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


@pytest.mark.parametrize("again", ["a new trainer", "the same trainer"])
def test_after_an_interrupt_a_new_run_has_its_noise_once(tmp_path, again):
    callback = NEFTCallback(EXACT)
    trainer = make_trainer(tmp_path, [callback, InterruptAt(2)])
    with recorded(trainer.model) as passes:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        check_noise(passes, ALPHAS[:2])
        passes.clear()
        if again == "the same trainer":
            trainer.pop_callback(InterruptAt)
        else:  # as in a notebook: the same model, a new trainer, a new callback
            trainer = make_trainer(tmp_path, [NEFTCallback(EXACT)], model=trainer.model)
        trainer.train()
    check_noise(passes, ALPHAS)
    assert count_hooks(trainer.model) == 0


def test_a_callback_that_goes_to_another_model_leaves_the_one_before(tmp_path):
    callback = NEFTCallback(EXACT)
    trainer = make_trainer(tmp_path, [callback, InterruptAt(1)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    other = make_trainer(tmp_path, [callback])
    with recorded(other.model) as passes:
        other.train()
    check_noise(passes, ALPHAS)
    assert count_hooks(trainer.model) == count_hooks(other.model) == 0


def test_with_leaves_no_trace_after_an_interrupt(tmp_path):
    with NEFTCallback(EXACT) as callback:
        trainer = make_trainer(tmp_path, [callback, InterruptAt(2)])
        with recorded(trainer.model) as passes:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        check_noise(passes, ALPHAS[:2])
    with recorded(trainer.model) as passes:
        trainer.model.train()(input_ids=torch.randint(3, 64, (2, 9)))
    assert not passes[0].noisy
    assert count_hooks(trainer.model) == 0


def test_training_twice_with_one_trainer(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(EXACT)])
    for _ in range(2):
        with recorded(trainer.model) as passes:
            trainer.train()
        check_noise(passes, ALPHAS)
        assert count_hooks(trainer.model) == 0


def test_two_callbacks_are_an_error(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)])
    NEFTCallback(CONFIG).add_to(trainer)
    with pytest.raises(
        RuntimeError, match=r"another NEFTCallback already.* NEFTSFTTrainer has its"
    ):
        trainer.train()


def test_the_baseline_may_stand_in_the_arguments_too(tmp_path):
    trainer = make_trainer(tmp_path, [NEFTCallback(NEFTConfig(0))], neftune_noise_alpha=0)
    trainer.train()
    assert trainer.state.log_history[0]["neft/alpha"] == 0


def test_one_callback_given_twice_is_an_error(tmp_path):
    callback = NEFTCallback(CONFIG)
    trainer = make_trainer(tmp_path, [callback])
    with pytest.raises(RuntimeError, match=r"this NEFTCallback twice\. Give it once\."):
        callback.add_to(trainer)
    trainer = make_trainer(tmp_path, [callback, callback])
    with pytest.raises(RuntimeError, match=r"this NEFTCallback twice\. Give it once\."):
        trainer.train()
    # The Trainer cannot say that this ended it; a new run begins with the callback alone.
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    assert count_hooks(trainer.model) == 0


def test_a_baseline_has_no_noise_and_says_so(tmp_path, caplog):
    """Alpha 0, whatever the other options; nothing is attached, and every log has it."""
    weights_of = {}
    for name, callbacks in (
        ("baseline", [NEFTCallback(replace(CONFIG, alpha=0, alpha_end=3.0))]),
        ("plain", []),
    ):
        trainer = make_trainer(tmp_path, callbacks, save_strategy="steps", save_steps=2)
        with recorded(trainer.model) as passes:
            trainer.train()
        assert len(passes) == 8
        assert not any(p.noisy for p in passes)
        weights_of[name] = weights(trainer)
        logged = [log for log in trainer.state.log_history if "loss" in log]
        seen = {key: value for log in logged for key, value in log.items() if "neft" in key}
        assert seen == ({"neft/alpha": 0.0} if callbacks else {})
    assert torch.equal(weights_of["baseline"], weights_of["plain"])
    assert [m for m in caplog.messages if "NEFT" in m] == ["NEFT: alpha 0, no noise"]


def test_a_baseline_that_goes_on_with_noise_is_logged(tmp_path, caplog):
    saves = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, [NEFTCallback(replace(CONFIG, alpha=0))], **saves).train()
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "NEFT: resumed at step 2 with other noise than before: alpha 0 -> 5" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(find_spec("axolotl") is not None, reason="run on the newest versions")
def test_what_noise_there_is_is_shown_in_a_script(tmp_path):
    """On stderr, once, where no logging was set up."""
    code = f"""
        import sys
        sys.path.insert(0, {str(SUPPORT)!r})
        from plain_trainer import make_trainer
        from neft_plugins import NEFTCallback, NEFTConfig
        config = NEFTConfig(alpha=5.0, schedule="linear")
        make_trainer({str(tmp_path)!r}, [NEFTCallback(config)], max_steps=1).train()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    line = "NEFT: alpha 5 -> 0 linear over 1 steps, uniform, all tokens, L = sequence"
    (shown,) = [each for each in result.stderr.splitlines() if "NEFT: " in each]
    assert shown.endswith(line)


@pytest.mark.parametrize("alpha", [0, 10.0])
def test_an_alpha_set_on_the_arguments_later_is_refused(tmp_path, alpha):
    """The Trainer does not see it any more, and the callback goes by its config."""
    trainer = make_trainer(tmp_path, [NEFTCallback(CONFIG)])
    trainer.args.neftune_noise_alpha = alpha
    message = f"have `neftune_noise_alpha: {alpha:g}`, and NEFTCallback has alpha 5. Leave it out"
    with pytest.raises(ValueError, match=message):
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


@pytest.mark.parametrize("within_a_processor", [False, True])
def test_padding_of_packed_rows_is_the_tokenizers_whatever_the_model_says(
    tmp_path, within_a_processor
):
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    pad = tokenizer.pad_token_id
    model = tiny_llama(pad_token_id=pad + 1)
    ids = torch.tensor([5, 6, 5, 7, 8, pad, pad, pad])
    row = {"input_ids": ids, "position_ids": torch.tensor([0, 1, 2, 0, 1, 0, 1, 2])}
    processor = SimpleNamespace(tokenizer=tokenizer) if within_a_processor else tokenizer
    trainer = make_trainer(
        *(tmp_path, [NEFTCallback(EXACT)], model),
        processing_class=processor,
        train_dataset=[{**row, "labels": ids}] * 4,
        data_collator=default_data_collator,
        max_steps=1,
    )
    with recorded(model) as passes:
        trainer.train()
    length = torch.tensor([3, 3, 3, 2, 2])
    size = torch.cat([5.0 / (3 * length * 32).sqrt(), torch.zeros(3)])
    for call in passes:
        expected = size[:, None].expand(call.noise.shape)
        torch.testing.assert_close(call.noise.abs(), expected, rtol=1e-3, atol=1e-6)


def test_data_parallel_replicas_in_one_process_are_refused():
    state, args = SimpleNamespace(max_steps=1), SimpleNamespace(n_gpu=2)
    with pytest.raises(
        ValueError, match=re.escape("nn.DataParallel, which the Trainer uses for 2")
    ):
        NEFTCallback(CONFIG).on_train_begin(args, state, None, model=tiny_llama())


def test_the_config_must_be_a_config():
    with pytest.raises(TypeError, match="takes a NEFTConfig; got dict"):
        NEFTCallback({"alpha": 5})
