"""What is previewed is what a run then logs."""

import pytest
from recorder import recorded
from transformers import AutoModelForCausalLM
from transformers.integrations.neftune import activate_neftune

from neft_plugins import NEFTSFTTrainer
from neft_plugins.keys import read_yaml
from neft_plugins.preview.batches import trl_sample
from neft_plugins.preview.make import preview
from neft_plugins.trl.sft import load_splits, make_parser

PAD = 2
LOGGED = ("alpha", "noise_rms", "noise_to_signal", "noised_tokens")


def train(path, **changes):
    """The trainer of `neft sft`, after training."""
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    parsed = make_parser().parse_args_and_config(["--config", str(path), *words])
    script, training, model, mixture = parsed
    training.model_init_kwargs = {"dtype": model.dtype}
    (data,) = load_splits(script, mixture, ["train"])
    trainer = NEFTSFTTrainer(model=model.model_name_or_path, args=training, train_dataset=data)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"neft_tokens": "response", "gradient_accumulation_steps": 4, "num_train_epochs": 2},
        {"neft_tokens": "prompt", "neft_length": "noised", "pad_to_multiple_of": 64},
        {"packing": True, "max_length": 256, "per_device_train_batch_size": 2},
        {"packing": True, "packing_strategy": "wrapped", "max_length": 100},
        {"padding_free": True, "max_length": None},
        {"neft_length": "row", "pad_to_multiple_of": 64},
        {"neft_scale": "relative", "neftune_noise_alpha": 0.1, "dtype": "bfloat16"},
        {"neft_tokens": "response,no_special"},
        {"max_length": 30, "dataloader_drop_last": True},  # which cuts some rows off
        {"gemma": True},
        {"gemma": True, "dtype": "bfloat16", "neftune_noise_alpha": 15},
    ],
    ids=str,
)
def test_the_noise_is_that_of_the_run(write, gemma, keys):
    keys = dict(keys)
    if keys.pop("gemma", False):
        keys["model_name_or_path"] = str(gemma)
    path = write(**keys, neft_distribution="rademacher")
    found = preview(path)
    assert found["unknown"] == []
    assert found["total_steps_is_exact"]
    trainer = train(path, logging_steps=found["total_steps"])  # one log, over all batches
    assert found["total_steps"] == trainer.state.max_steps
    log = trainer.state.log_history[0]
    for name in LOGGED:
        previewed = found["points"][0][name]
        assert previewed == pytest.approx(log[f"neft/{name}"], rel=0.02), name


@pytest.mark.slow
def test_alpha_is_that_of_the_run_at_each_step(write):
    schedule = {"neft_schedule": "cosine", "neft_warmup_steps": 2, "neft_alpha_end": 1}
    path = write(**schedule, num_train_epochs=2)
    found = preview(path)
    history = train(path, logging_steps=1).state.log_history
    alphas = [log["neft/alpha"] for log in history if "neft/alpha" in log]
    assert found["alpha"] == [[step, alpha] for step, alpha in enumerate(alphas)]
    assert [point["name"] for point in found["points"]] == ["start", "peak", "middle", "end"]
    assert found["points"][1]["alpha"] == max(alphas)


@pytest.mark.parametrize("keys", [{}, {"packing": True, "max_length": 256}], ids=str)
def test_the_built_in_is_transformers_own(write, keys):
    path = write(**keys, pad_to_multiple_of=64)
    found = preview(path)
    sample = trl_sample(read_yaml(path), 1000)
    model = AutoModelForCausalLM.from_pretrained(read_yaml(path)["model_name_or_path"]).train()
    hook = activate_neftune(model, 5.0)
    theirs, on_padding, tokens = 0.0, 0.0, 0
    for batch in sample.batches:
        with recorded(model) as calls:
            model.get_input_embeddings()(batch["input_ids"])
        energies = calls[0].noise.double().square().sum(-1)
        real = batch["input_ids"] != PAD
        theirs, tokens = theirs + float(energies[real].sum()), tokens + int(real.sum())
        on_padding += float(energies[~real].sum())
    hook.remove()
    ours = found["points"][0]["noise_rms"] ** 2 * 128 * tokens
    assert found["builtin"]["ratio"] == pytest.approx((theirs / ours) ** 0.5, rel=0.02)
    fraction = on_padding / (theirs + on_padding)
    assert found["builtin"]["on_padding"] == pytest.approx(fraction, abs=0.01)


@pytest.mark.parametrize(("rows", "processes"), [(24, 1), (48, 1), (48, 2), (48, 3)])
def test_steps_are_estimated_from_a_part_of_the_rows(write, rows, processes):
    found = preview(write(gradient_accumulation_steps=2), rows=rows, num_processes=processes)
    assert found["total_steps"] == {1: 3, 2: 2, 3: 1}[processes]  # 6 batches
    assert found["total_steps_is_exact"] == (rows == 48)
    assert (found["rows"], found["rows_of_dataset"]) == (rows, 48)


def test_the_advice_gives_what_it_says(write):
    advice = preview(write())["advice"]
    assert [each["noise_to_signal"] for each in advice] == [0.05, 0.1, 0.3, 1.0]
    for each in advice:
        for keys in (
            {"neftune_noise_alpha": each["alpha"]},
            {"neftune_noise_alpha": each["relative"], "neft_scale": "relative"},
        ):
            (median,) = [r for r in preview(write(**keys))["table"] if r["percentile"] == 50]
            assert median["start"]["noise_to_signal"] == pytest.approx(each["noise_to_signal"])
