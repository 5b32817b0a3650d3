"""The noise in Axolotl's `rl:` and reward modes: on the policy's training passes, on no other."""

import json
import math
import re

import pytest
import torch

pytest.importorskip("axolotl")

from axolotl_noise import ALPHA, LORA, NOISE, QLORA
from axolotl_runs import run_axolotl

from neft_plugins import NEFTConfig
from neft_plugins.axolotl.modes import check_mode

pytestmark = pytest.mark.slow

PROMPTS = ["the river", "an old mill", "a red kite", "the fox", "snow on the hill"]


def completion(i):
    return " was there" + " and then" * (i % 4 + 1)


def conversation(i, answer):
    return [
        {"role": "user", "content": PROMPTS[i % 5]},
        {"role": "assistant", "content": answer},
    ]


ROWS = {
    "pairs": [
        {"prompt": PROMPTS[i % 5], "chosen": completion(i), "rejected": completion(i + 1)}
        for i in range(24)
    ],
    "labelled": [
        {"prompt": PROMPTS[i % 5], "completion": completion(i), "label": bool(i % 2)}
        for i in range(24)
    ],
    "conversations": [
        {
            "chosen": conversation(i, completion(i)),
            "rejected": conversation(i, completion(i + 1)),
        }
        for i in range(24)
    ],
    "judged": [
        {
            "system": "",
            "input": PROMPTS[i % 5],
            "chosen": completion(i),
            "rejected": completion(i + 1),
        }
        for i in range(24)
    ],
    "steps": [
        {
            "prompt": PROMPTS[i % 5],
            "completions": [completion(i), completion(i + 1)],
            "labels": [True, bool(i % 2)],
        }
        for i in range(24)
    ],
    "prompts": [{"prompt": PROMPTS[i % 5]} for i in range(24)],
    "answered": [{"prompt": PROMPTS[i % 5], "ground_truth": completion(i)} for i in range(24)],
}
PAIRS = {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}
LABELLED = {"field_prompt": "prompt", "field_completion": "completion", "field_label": "label"}
GRPO = {
    "rl": "grpo",
    "micro_batch_size": 4,
    "trl": {
        "num_generations": 4,
        "max_completion_length": 6,
        "use_vllm": False,
        "reward_funcs": ["axolotl_recorder.reward_length"],
        "beta": 0.1,
    },
}
GRPO_MODES: dict[str, dict] = {
    "grpo": GRPO,
    "grpo, lora": {**GRPO, **LORA},
    "grpo, accumulated": {**GRPO, "gradient_accumulation_steps": 2},
    # Axolotl's asynchronous trainer; its reference pass fails on trl 1.9, with noise or without.
    "grpo, data producer": {**GRPO, "trl": {**GRPO["trl"], "beta": 0, "use_data_producer": True}},
    "gdpo": {**GRPO, "rl": "gdpo"},
    "grpo, samples used twice in a step": {
        **GRPO,
        "gradient_accumulation_steps": 2,
        "trl": {**GRPO["trl"], "generation_batch_size": 4, "num_iterations": 2},
    },
}
EBFT = {
    "rl": "ebft",
    "micro_batch_size": 4,
    "ebft": {"mode": "structured"},
    "trl": {"num_generations": 4, "max_completion_length": 6, "use_vllm": False},
}
SIMPO = {"rl_beta": 0.1, "simpo_gamma": 0.5}
# name -> the rows, how Axolotl reads them, the keys.
MODES = {
    "dpo": ("pairs", PAIRS, {"rl": "dpo"}),
    "dpo, lora": ("pairs", PAIRS, {"rl": "dpo", **LORA}),
    "dpo, qlora, checkpointed": (
        "pairs",
        PAIRS,
        {"rl": "dpo", **QLORA, "gradient_checkpointing": True},
    ),
    "ipo, lora": ("pairs", PAIRS, {"rl": "ipo", **LORA}),
    "kto": ("labelled", LABELLED, {"rl": "kto", "remove_unused_columns": False}),
    "kto, lora": ("labelled", LABELLED, {"rl": "kto", "remove_unused_columns": False, **LORA}),
    "orpo": ("conversations", "chat_template.argilla", {"rl": "orpo"}),
    "simpo": ("pairs", PAIRS, {"rl": "simpo", **SIMPO}),
    "cpo, lora": ("pairs", PAIRS, {"rl": "simpo", **SIMPO, "cpo_alpha": 1.0, **LORA}),
    **{
        name: ("prompts", "axolotl_recorder.rows_as_they_are", keys)
        for name, keys in GRPO_MODES.items()
    },
    "ebft": ("answered", "axolotl_recorder.rows_as_they_are", EBFT),
    "ebft, lora": ("answered", "axolotl_recorder.rows_as_they_are", {**EBFT, **LORA}),
    "reward model": (
        "judged",
        "bradley_terry.chat_template",
        {
            "reward_model": True,
            "model_type": "AutoModelForSequenceClassification",
            "num_labels": 1,
            "remove_unused_columns": False,
        },
    ),
    "process reward model": (
        "steps",
        "stepwise_supervised",
        {
            "process_reward_model": True,
            "model_type": "AutoModelForTokenClassification",
            "num_labels": 2,
            "remove_unused_columns": False,
        },
    ),
}


@pytest.fixture
def run_mode(tmp_path):
    def run(mode, **more):
        rows, kind, keys = MODES[mode]
        path = tmp_path / "train.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in ROWS[rows]))
        dataset = {"path": str(path), "ds_type": "json", "type": kind, "split": "train"}
        template = {"chat_template": "tokenizer_default"}
        return run_axolotl(tmp_path, **{"datasets": [dataset], **template, **keys, **more})

    return run


@pytest.mark.parametrize("mode", MODES)
def test_the_policy_is_trained_with_noise_and_all_else_is_without(run_mode, mode):
    run = run_mode(mode, **NOISE)
    trained = [step for step in run.passes if step.with_gradients]
    assert len(trained) >= 2
    for step in trained:
        real = step.given["attention_mask"] != 0
        lengths = real.sum(1, keepdim=True)
        expected = ALPHA / (3 * lengths * step.noise.shape[-1]).sqrt() * real
        torch.testing.assert_close(
            step.noise.abs(),
            expected.unsqueeze(-1).expand(step.noise.shape),
            rtol=1e-3,
            atol=1e-6,
        )
    for step in run.passes:
        assert step.noisy == step.with_gradients
    if mode.startswith(("grpo", "gdpo", "ebft")):
        assert len(run.passes) > 2 * len(trained)  # generation, token by token
    entry = next(entry for entry in run.log["history"] if "loss" in entry)
    assert entry["neft/alpha"] == ALPHA
    assert run.log["hooks_left"] == 0
    assert math.isfinite(float(entry["loss"]))
    if mode in GRPO_MODES:  # what is trained on is compared with itself
        ratios = [entry["clip_ratio/region_mean"] for entry in run.log["history"][:2]]
        assert ratios == [0.0, 0.0]


@pytest.mark.parametrize("mode", ["dpo", "kto", "orpo", "simpo", "grpo", "reward model"])
@pytest.mark.parametrize("tokens", ["response", "prompt"])
def test_tokens_that_need_labels_are_refused(run_mode, mode, tokens):
    run = run_mode(mode, **NOISE, neft_tokens=tokens)
    assert run.exit_code != 0
    reason = "`reward_model: true`" if mode == "reward model" else f"`rl: {mode}`"
    message = (
        f"`neft_tokens: {tokens}` needs labels, but with {reason} Axolotl does not give them to "
        "the model. Use `neft_tokens: all`."
    )
    assert message in run.printed
    assert not run.output.exists()  # before a model is loaded


RATIO = "the trainer would compare log-probabilities of the training pass, which has noise"
REUSED = "`steps_per_generation: 1` and `num_iterations: 2` at `gradient_accumulation_steps: 1`"
UNCORRECTED = {"use_vllm": True, "vllm_importance_sampling_correction": False}


@pytest.mark.parametrize("mode", ["grpo", "gdpo", "ebft"])
def test_a_ratio_of_noisy_to_clean_is_refused_before_a_model_is_loaded(run_mode, mode):
    run = run_mode(mode, **NOISE, trl={**MODES[mode][2]["trl"], "num_iterations": 2})
    assert run.exit_code != 0
    assert f"Noise does not go with {REUSED}: {RATIO}" in run.printed
    assert not run.output.exists()


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        (
            {"rl": "grpo", "trl": {"use_vllm": True}},
            "`use_vllm` and `vllm_importance_sampling_correction`",
        ),
        (
            {"rl": "ebft", "trl": UNCORRECTED},  # Axolotl does not hand it on there
            "`use_vllm` and `vllm_importance_sampling_correction`",
        ),
        (
            {"rl": "grpo", "trl": {**UNCORRECTED, "off_policy_mask_threshold": 0.5}},
            "`use_vllm` and `off_policy_mask_threshold: 0.5`",
        ),
        (
            {"rl": "grpo", "trl": {"num_iterations": 3}, "gradient_accumulation_steps": "4"},
            "`steps_per_generation: 4` and `num_iterations: 3` at `gradient_accumulation_steps: 4`",
        ),
        ({"rl": "ebft", "trl": {"generation_batch_size": 4, "num_iterations": 2}}, REUSED),
    ],
)
def test_what_is_refused_at_validation(keys, settings):
    with pytest.raises(ValueError, match=re.escape(f"Noise does not go with {settings}: ")):
        check_mode(NEFTConfig(alpha=ALPHA), keys)


def test_what_the_number_of_ranks_decides_is_refused_when_training_begins(run_mode):
    run = run_mode("grpo", **NOISE, trl={**GRPO["trl"], "generation_batch_size": 8})
    assert run.exit_code != 0
    settings = (
        "`steps_per_generation: 2` and `num_iterations: 1` at `gradient_accumulation_steps: 1`"
    )
    assert f"Noise does not go with {settings}: {RATIO}" in run.printed


@pytest.mark.parametrize(
    "keys",
    [
        {"rl": "grpo"},
        {"rl": "grpo", "trl": UNCORRECTED},
        {"rl": "grpo", "trl": {"generation_batch_size": 4, "num_iterations": 2}},
        {"rl": "grpo", "trl": {"num_iterations": "many"}},  # Axolotl has an error for it
        {"rl": "ebft", "ebft": {"mode": "strided"}, "trl": {"num_iterations": 2}},
        {"rl": "dpo", "trl": {"num_iterations": 2}},
    ],
)
def test_nothing_else_is_refused_at_validation(keys):
    check_mode(NEFTConfig(alpha=ALPHA), keys)
