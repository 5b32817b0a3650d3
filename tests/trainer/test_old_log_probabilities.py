"""What the trainer's arguments say of its old log-probabilities, whichever library they are of."""

import re
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from neft_plugins.trainer.old_log_probabilities import check_old_log_probabilities

REASON = (
    "Noise does not go with {}: the trainer would compare log-probabilities of the training pass, "
    "which has noise, with older ones of a pass that has none, and their ratio is not 1 even where "
    "the policy did not change. {}, or train without noise."
)
GRPO = {"gradient_accumulation_steps": 4, "steps_per_generation": 4, "num_iterations": 1}
VLLM = {"use_vllm": True, "vllm_importance_sampling_correction": False}


def named(name, module):
    """Arguments of a class of that name, as a user's subclass of it."""
    base = type(name, (SimpleNamespace,), {"__module__": module})
    return type("MyConfig", (base,), {})(**GRPO)


@pytest.mark.parametrize(
    ("given", "settings", "way_out"),
    [
        (
            {"num_iterations": 2},
            "`steps_per_generation: 4` and `num_iterations: 2` at `gradient_accumulation_steps: 4`",
            "Make `gradient_accumulation_steps` a multiple of their product (8), as it is where "
            "neither they nor `generation_batch_size` are set",
        ),
        (
            {"steps_per_generation": 3},
            "`steps_per_generation: 3` and `num_iterations: 1` at `gradient_accumulation_steps: 4`",
            "Make `gradient_accumulation_steps` a multiple of their product (3), as it is where "
            "neither they nor `generation_batch_size` are set",
        ),
        (
            {"use_vllm": True, "vllm_importance_sampling_correction": True},
            "`use_vllm` and `vllm_importance_sampling_correction`",
            "Set `vllm_importance_sampling_correction: false` or `use_vllm: false`",
        ),
        (
            {**VLLM, "off_policy_mask_threshold": 0.5},
            "`use_vllm` and `off_policy_mask_threshold: 0.5`",
            "Leave `off_policy_mask_threshold` unset",
        ),
    ],
)
def test_old_log_probabilities_of_clean_passes_are_refused(given, settings, way_out):
    with pytest.raises(ValueError, match=re.escape(REASON.format(settings, way_out))):
        check_old_log_probabilities(SimpleNamespace(**GRPO | given))


@pytest.mark.parametrize("name", ["RLOOConfig", "PPOConfig", "AsyncGRPOConfig"])
def test_trainers_that_always_have_them_are_refused(name):
    message = REASON.format(name, "Use GRPOTrainer with its defaults")
    with pytest.raises(ValueError, match=re.escape(message)):
        check_old_log_probabilities(named(name, "trl.trainer.some_config"))
    check_old_log_probabilities(named(name, "another_library"))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"steps_per_generation": 2},
        {"steps_per_generation": 2, "num_iterations": 2},  # all in one optimizer step
        VLLM,
        {"vllm_importance_sampling_correction": True},  # TRL's default, of which vLLM is no part
        {"off_policy_mask_threshold": 0.5},
    ],
)
def test_samples_of_the_same_optimizer_step_need_none(given):
    check_old_log_probabilities(SimpleNamespace(**GRPO | given))


def test_samples_that_are_trained_on_as_text_need_none():
    arguments = named("SSDConfig", "trl.experimental.ssd.ssd_config")
    arguments.num_iterations = 2
    check_old_log_probabilities(arguments)


def test_other_trainers_pass(tmp_path):
    check_old_log_probabilities(TrainingArguments(str(tmp_path), use_cpu=True))
