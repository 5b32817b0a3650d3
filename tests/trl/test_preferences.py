"""NEFTCallback in DPOTrainer and RewardTrainer: policy passes noisy, reference passes clean."""

import pytest
import torch
import trl
from datasets import Dataset
from helpers import MODEL
from packaging.version import Version
from peft import LoraConfig
from recorder import recorded
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from neft_plugins import NEFTCallback, NEFTConfig
from neft_plugins.noise.tokens import MissingLabelsError

ROWS = [
    {"prompt": f"A story of {i}:", "chosen": " The river sang. " * 2, "rejected": " No."}
    for i in range(8)
]
CONFIG = NEFTConfig(alpha=5.0, distribution="rademacher", schedule="linear")


def arguments(tmp_path, cls):
    return cls(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
    )


def dpo(tmp_path, config=CONFIG, peft_config=None) -> DPOTrainer:
    load = AutoModelForCausalLM.from_pretrained
    return DPOTrainer(
        model=load(MODEL, dtype=torch.float32),
        ref_model=None if peft_config else load(MODEL, dtype=torch.float32),
        args=arguments(tmp_path, DPOConfig),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        callbacks=[NEFTCallback(config)],
        peft_config=peft_config,
    )


def test_dpo_with_an_adapter_has_a_clean_reference(tmp_path):
    trainer = dpo(tmp_path, peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"))
    with recorded(trainer.model) as passes:
        trainer.train()
    policy = [p for p in passes if p.with_gradients]
    reference = [p for p in passes if not p.with_gradients]
    assert len(policy) == len(reference) == 2
    assert all(p.noisy for p in policy)
    assert not any(p.noisy for p in reference)
    assert trainer.state.log_history[0]["neft/alpha"] == 5.0
    assert trainer.state.log_history[1]["neft/alpha"] == 2.5


def test_dpo_with_a_separate_reference_model(tmp_path):
    trainer = dpo(tmp_path)
    reference_model = trainer.accelerator.unwrap_model(trainer.ref_model)
    with recorded(trainer.model) as policy, recorded(reference_model) as reference:
        trainer.train()
    assert len(policy) == len(reference) == 2
    assert all(p.noisy for p in policy)
    assert not any(p.noisy for p in reference)


def test_response_tokens_follow_the_completion_mask_or_are_refused(tmp_path):
    trainer = dpo(tmp_path, NEFTConfig(alpha=5.0, tokens="response"))
    if Version(trl.__version__) < Version("1.16"):  # its model is not given labels
        with pytest.raises(MissingLabelsError, match="or completion mask from the model"):
            trainer.train()
        return
    prompt = len(trainer.train_dataset[0]["prompt_ids"])
    with recorded(trainer.model) as passes:
        trainer.train()
    for seen in (p for p in passes if p.with_gradients):
        noised = seen.noise.abs().amax(-1) > 0
        assert not noised[:, :prompt].any()
        real = seen.ids != 2  # <pad> is token 2
        assert torch.equal(noised[:, prompt:], real[:, prompt:])


def test_reward_trainer(tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(
        MODEL, num_labels=1, dtype=torch.float32
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments(tmp_path, RewardConfig),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        callbacks=[NEFTCallback(CONFIG)],
    )
    with recorded(model) as passes:
        trainer.train()
    assert [each.noisy for each in passes] == [True, True]
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(log["neft/noise_rms"] > 0 for log in logs)
