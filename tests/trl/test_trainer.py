"""NEFTSFTConfig and NEFTSFTTrainer."""

import json
import re

import pytest
import torch
from helpers import MODEL
from huggingface_hub import ModelCard
from peft import LoraConfig
from plain_trainer import InterruptAt, Logs
from recorder import are_two_draws, hooks_of, is_one_draw, recorded
from sft_trainer import arguments, check_noise, make_trainer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, TrlParser

from neft_plugins import NEFTConfig, NEFTSFTConfig
from neft_plugins.config import NEFTConfigError
from neft_plugins.noise.tokens import MissingLabelsError


def test_the_keys_reach_the_noise(tmp_path):
    trainer = make_trainer(
        tmp_path,
        neft_schedule="linear",
        neft_tokens="response",
        eval_strategy="steps",
        eval_steps=1,
    )
    with recorded(trainer.model) as passes:
        trainer.train()
    trained = [p for p in passes if p.training and p.with_gradients]
    assert len(trained) == 3
    for step, seen in enumerate(trained):
        sizes = seen.noise.abs().amax(-1)
        for row, ids in zip(sizes, seen.ids, strict=True):
            length = int((ids != 2).sum())  # <pad> is token 2
            noised = row.nonzero().flatten()
            expected = 5.0 * (1 - step / 3) / (3 * length * seen.noise.shape[-1]) ** 0.5
            torch.testing.assert_close(
                row[noised], torch.full_like(row[noised], expected), rtol=1e-4, atol=0
            )
            # The completion, which ends at the last real token, and not the prompt.
            assert noised[-1] == length - 1
            assert 0 < len(noised) < length
            assert torch.equal(noised, torch.arange(noised[0], length))
    assert not any(p.noisy for p in passes if not (p.training and p.with_gradients))


@pytest.mark.parametrize(
    "given", [{"packing": True, "max_length": 128}, {"padding_free": True, "max_length": None}]
)
@pytest.mark.filterwarnings("ignore")
def test_each_packed_document_is_scaled_by_its_own_length(tmp_path, given):
    trainer = make_trainer(tmp_path, **given)
    with recorded(trainer.model) as passes:
        trainer.train()
    for seen in passes:
        assert seen.ids.shape[0] == 1
        starts = (seen.ids[0] == 0).nonzero().flatten().tolist()  # <s> is token 0
        assert len(starts) > 1
        for begin, end in zip(starts, [*starts[1:], seen.ids.shape[1]], strict=True):
            sizes = seen.noise[0, begin:end].abs()
            expected = 5.0 / (3 * (end - begin) * sizes.shape[-1]) ** 0.5
            torch.testing.assert_close(sizes, torch.full_like(sizes, expected), rtol=1e-3, atol=0)


def test_noise_is_added_once_and_the_built_in_key_stays_on_record(tmp_path):
    trainer = make_trainer(tmp_path)
    with recorded(trainer.model) as passes:
        trainer.train()
    check_noise(passes, [5.0] * 3)
    assert trainer.args.neftune_noise_alpha == 5.0


def test_without_an_alpha_it_is_the_sft_trainer(tmp_path):
    trainer = make_trainer(tmp_path, config=arguments(tmp_path))
    with recorded(trainer.model) as passes:
        trainer.train()
    assert not any(p.noisy for p in passes)
    assert trainer.neft is None
    assert not (tmp_path / "neft_config.json").exists()


@pytest.mark.parametrize("cls", [NEFTSFTConfig, SFTConfig])
def test_alpha_0_is_a_baseline(tmp_path, cls, caplog):
    """No noise, the built-in's neither, and the other keys stay as they are."""
    keys = {"neft_schedule": "linear", "neft_tokens": "response"} if cls is NEFTSFTConfig else {}
    config = arguments(tmp_path, cls, neftune_noise_alpha=0, **keys)
    trainer = make_trainer(tmp_path, config=config)
    with recorded(trainer.model) as passes:
        trainer.train()
    assert not any(p.noisy for p in passes)
    assert "NEFT: alpha 0, no noise" in caplog.messages
    logged = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["neft/alpha"] for log in logged] == [0] * 3
    assert "neft" not in trainer.model.model_tags
    assert {key: getattr(trainer.args, key) for key in keys} == keys
    assert json.loads((tmp_path / "neft_config.json").read_text())["alpha"] == 0


def test_keys_that_are_set_before_training_count(tmp_path):
    """In one process: without noise, with it, with more, and without again."""
    trainer = make_trainer(tmp_path, config=arguments(tmp_path, neft_distribution="uniform"))
    for alpha in (None, 5.0, 8.0, 0, None):
        trainer.args.neftune_noise_alpha = alpha
        trainer.args.neft_distribution = "rademacher" if alpha is not None else "uniform"
        with recorded(trainer.model) as passes:
            trainer.train()
        if alpha:
            check_noise(passes, [alpha] * 3)
        assert any(p.noisy for p in passes) == bool(alpha)
        assert hooks_of(trainer.model) == {}


def test_an_alpha_in_text_trains(tmp_path):
    """As YAML reads 5e0; the arguments keep it as it was given."""
    trainer = make_trainer(tmp_path, neftune_noise_alpha="5e0")
    with recorded(trainer.model) as passes:
        trainer.train()
    check_noise(passes, [5.0] * 3)


def test_a_wrong_key_that_is_set_before_training_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.args.neft_distribution = "gausian"
    with pytest.raises(NEFTConfigError, match="Did you mean 'gaussian'"):
        trainer.train()


def test_a_plain_sft_config_gets_the_defaults(tmp_path):
    config = arguments(tmp_path, SFTConfig, neftune_noise_alpha=5.0)
    trainer = make_trainer(tmp_path, config=config)
    assert trainer.neft.config == NEFTConfig(alpha=5.0)


def test_the_noise_has_a_seed_of_its_own_and_without_one_the_trainers(tmp_path):
    def draw(**seeds):
        # Rows of one width, whichever they are: a draw is of the whole batch.
        trainer = make_trainer(tmp_path, max_steps=1, pad_to_multiple_of=64, **seeds)
        with recorded(trainer.model) as passes:
            trainer.train()
        return passes[0]

    trainers = draw(seed=7)
    assert is_one_draw(trainers, draw(seed=3, neft_seed=7))
    assert are_two_draws(trainers, draw(seed=7, neft_seed=3))


class CallsWithoutLabels(TrainerCallback):
    """After a step, a pass of its own in training mode."""

    def on_step_end(self, args, state, control, model, **kwargs):
        with pytest.raises(MissingLabelsError, match="`tokens: response` needs labels, but"):
            model(input_ids=torch.tensor([[5, 6, 7]]))
        self.called = True


def test_labels_are_forgotten_when_their_loss_is_computed(tmp_path):
    callback = CallsWithoutLabels()
    make_trainer(tmp_path, neft_tokens="response", callbacks=[callback]).train()
    assert callback.called


@pytest.mark.parametrize("given", [{"label_smoothing_factor": 0.1}, {"compute_loss_func": True}])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_labels_are_found_when_the_model_is_not_given_them(tmp_path, given):
    if "compute_loss_func" in given:

        def loss(outputs, labels, num_items_in_batch=None):
            logits = outputs.logits[:, :-1].flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())

        given = {"compute_loss_func": loss}
    trainer = make_trainer(tmp_path, neft_tokens="response", loss_type="nll", **given)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(0 < log["neft/noised_tokens"] < 1 for log in logs)


def test_metrics_reach_every_callback_and_only_training_logs(tmp_path):
    seen = Logs()
    trainer = make_trainer(
        tmp_path, callbacks=[seen], eval_strategy="steps", eval_steps=1, neft_schedule="cosine"
    )
    trainer.train()
    logs = [log for log in seen.logs if "loss" in log]
    assert [log["neft/alpha"] for log in logs] == pytest.approx([5.0, 3.75, 1.25])
    assert not any("neft/alpha" in log for log in seen.logs if "eval_loss" in log)


def test_tensorboard_gets_the_metrics(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = make_trainer(tmp_path, report_to=["tensorboard"])
    trainer.train()
    folder = next(tmp_path.rglob("events.out.tfevents.*")).parent
    tags = events.EventAccumulator(str(folder)).Reload().Tags()["scalars"]
    assert {"train/neft/alpha", "train/neft/noise_rms", "train/loss"} <= set(tags)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, None])
def test_however_training_ends_no_hook_is_left_and_the_next_has_its_noise_once(tmp_path, ending):
    trainer = make_trainer(tmp_path, callbacks=[InterruptAt(2)] if ending else None)
    before = hooks_of(trainer.model)
    if ending:
        with pytest.raises(ending):
            trainer.train()
    else:
        trainer.train()
    assert hooks_of(trainer.model) == before
    assert not hasattr(trainer.model.get_input_embeddings(), "neftune_noise_alpha")
    trainer.pop_callback(InterruptAt)
    with recorded(trainer.model) as passes:
        trainer.train()
    check_noise(passes, [5.0] * 3)


def test_the_config_is_saved(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=3, neft_seed=11)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path, tmp_path / "checkpoint-3", tmp_path / "final"):
        assert json.loads((folder / "neft_config.json").read_text())["seed"] == 11


@pytest.mark.parametrize("alpha", [5.0, None])
@pytest.mark.parametrize("given", [None, "own", ["own", "other"]])
def test_a_model_that_was_trained_with_noise_is_tagged(tmp_path, alpha, given):
    config = arguments(tmp_path, neftune_noise_alpha=alpha)
    trainer = make_trainer(tmp_path, config=config, peft_config=LoraConfig(r=2))
    trainer.create_model_card(tags=given)
    tags = {"trl", "sft", *({"neft"} if alpha else ())}
    own = {given} if isinstance(given, str) else set(given or ())
    found = set(ModelCard.load(tmp_path / "README.md").data.tags)
    assert found >= tags | own
    assert ("neft" in found) == bool(alpha)
    assert set(trainer.model.model_tags) == tags


@pytest.mark.filterwarnings("ignore:.*MatMul8bitLt")
def test_qlora_nf4(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        MODEL,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    )
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(
        tmp_path, model, peft_config=lora, model_init_kwargs=None, gradient_checkpointing=True
    )
    assert "Linear4bit" in {type(m).__name__ for m in model.modules()}
    with recorded(trainer.model) as passes:
        trainer.train()
    assert all(p.noisy for p in passes if p.with_gradients)
    assert trainer.state.log_history[0]["neft/noised_tokens"] == 1.0


@pytest.mark.slow
def test_torch_compile(tmp_path):
    with torch._dynamo.config.patch(error_on_recompile=True):
        trainer = make_trainer(
            tmp_path,
            torch_compile=True,
            torch_compile_backend="aot_eager",
            neft_schedule="linear",
            neft_warmup_steps=1,
            pad_to_multiple_of=64,
        )
        trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["neft/alpha"] for log in logs] == [0.0, 5.0, 2.5]
    assert [log.get("neft/noise_rms", 0) > 0 for log in logs] == [False, True, True]


def test_keys_from_yaml_and_the_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nneftune_noise_alpha: 5\n"
        "neft_schedule: polynomial\nneft_schedule_args:\n  power: 3\nneft_tokens: response\n"
    )
    parser = TrlParser(NEFTSFTConfig)
    (config,) = parser.parse_args_and_config(
        ["--config", str(path), "--neft_warmup_steps", "10", "--neft_tokens", "prompt"]
    )
    assert config.neft_config() == NEFTConfig(
        alpha=5, schedule="polynomial", schedule_args={"power": 3}, tokens="prompt", warmup_steps=10
    )
    (config,) = parser.parse_args_and_config(
        ["--config", str(path), "--neft_schedule_args", '{"power": 4}']
    )
    assert config.neft_config().schedule_args == {"power": 4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"neft_distribution": "gausian"}, "Did you mean 'gaussian'?"),
        ({"neft_warmup_steps": 1.5}, "fraction of training in [0, 1); got 1.5."),
        ({"neftune_noise_alpha": "five"}, "`neftune_noise_alpha` must be a number >= 0"),
        ({"neft_schedule_args": "{power: 2}"}, "or its JSON such as '{\"power\": 2}'; got '{power"),
        (
            {"neft_schedule": "cosine", "neftune_noise_alpha": None},
            "`neft_schedule` is set but `neftune_noise_alpha` is not, so there would be no noise.",
        ),
    ],
)
def test_wrong_keys_are_refused_before_a_model_is_loaded(tmp_path, given, message):
    with pytest.raises(NEFTConfigError, match=re.escape(message)):
        arguments(tmp_path, **{"neftune_noise_alpha": 5.0} | given)
