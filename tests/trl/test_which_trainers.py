"""Which of TRL's trainers are right under noise: the rows of the tables in docs/trl.md."""

import math
import re

import pytest
import trl
from helpers import MODEL, REPO
from peft import LoraConfig
from recorder import count_hooks, recorded
from transformers import AutoTokenizer, Trainer
from trl_trainers import (
    STEPS,
    Case,
    language_model,
    logs,
    reward_model,
    rows,
    step_reward_model,
    train,
)

from neft_plugins import NEFTCallback, NEFTConfig
from neft_plugins.trainer.old_log_probabilities import check_old_log_probabilities

pytestmark = pytest.mark.slow

CONFIG = NEFTConfig(alpha=5.0)
X = "trl.experimental"
STABLE_DISTILLATION = hasattr(trl, "DistillationTrainer")
DISTILLATION = ("trl", "chats") if STABLE_DISTILLATION else (f"{X}.distillation", "conversations")

SHORT = {"max_completion_length": 6}
GROUPS = {**SHORT, "num_generations": 4}
# Their evaluation is of given completions, which rows of prompts have not.
NO_EVALUATION = {"max_new_tokens": 6, "eval_strategy": "no"}
ON_POLICY = {**SHORT, "lmbda": 1.0}
REWARD, REFERENCE, TEACHER = ("reward_funcs",), ("ref_model",), ("teacher_model",)

# A loss of the training pass alone.
ALONE = {
    "SFT": Case("trl", "SFT", "completions"),
    "Reward": Case("trl", "Reward", "pairs", model=reward_model),
    "ORPO": Case(f"{X}.orpo", "ORPO", "pairs"),
    "CPO": Case(f"{X}.cpo", "CPO", "pairs"),
    "TPO": Case(f"{X}.tpo", "TPO", "triples"),
    "PRM": Case(f"{X}.prm", "PRM", "steps", model=step_reward_model),
    "SSD": Case(f"{X}.ssd", "SSD", "prompts", SHORT),
}
# A loss that compares it with a reference or a teacher.
BESIDE = {
    "DPO": Case("trl", "DPO", "pairs"),
    "KTO": Case("trl", "KTO", "labelled"),
    "BCO": Case(f"{X}.bco", "BCO", "labelled", takes=REFERENCE),
    "OnlineDPO": Case(f"{X}.online_dpo", "OnlineDPO", "prompts", NO_EVALUATION, REWARD),
    "NashMD": Case(f"{X}.nash_md", "NashMD", "chats", NO_EVALUATION, REFERENCE, reward_model),
    "XPO": Case(f"{X}.xpo", "XPO", "chats", NO_EVALUATION, REFERENCE, reward_model, passes=2),
    "A2PO": Case(f"{X}.a2po", "A2PO", "prompts", SHORT, REWARD),
    "GKD": Case(f"{X}.gkd", "GKD", "conversations", {"max_new_tokens": 6, "lmbda": 1.0}, TEACHER),
    "GOLD": Case(f"{X}.gold", "GOLD", "conversations", ON_POLICY, TEACHER),
    "Distillation": Case(DISTILLATION[0], "Distillation", DISTILLATION[1], SHORT, TEACHER),
    "IWOPD": Case(f"{X}.iw_opd", "IWOPD", "conversations", ON_POLICY, TEACHER),
    "SDFT": Case(f"{X}.sdft", "SDFT", "hints", GROUPS),
    "SDPO": Case(f"{X}.sdpo", "SDPO", "hints", GROUPS, REWARD),
}
# A loss with a ratio of new to old probabilities.
GRPO = Case("trl", "GRPO", "prompts", GROUPS, REWARD)
CLIPPED = {
    "GRPO": GRPO,
    "GRPO, one generation for two micro-batches": GRPO.with_options(gradient_accumulation_steps=2),
    "GRPO, samples used twice in a step": GRPO.with_options(
        gradient_accumulation_steps=2, steps_per_generation=1, num_iterations=2
    ),
    "GRPO, beta": GRPO.with_options(beta=0.1),
    "GRPO, gspo_token": Case(f"{X}.gspo_token", "GRPO", "prompts", GROUPS, REWARD),
    "GMPO": Case(f"{X}.gmpo", "GMPO", "prompts", GROUPS, REWARD),
    "GRPOWithReplayBuffer": Case(
        f"{X}.grpo_with_replay_buffer", "GRPOWithReplayBuffer", "prompts", GROUPS, REWARD
    ),
    "MiniLLM": Case(f"{X}.minillm", "MiniLLM", "prompts", GROUPS, REWARD + TEACHER, passes=2),
}
CASES = ALONE | BESIDE | CLIPPED


@pytest.mark.parametrize("name", CASES)
def test_training_passes_have_noise_and_no_others(tmp_path, name):
    case = CASES[name]
    trainer = case.trainer(tmp_path, NEFTCallback(CONFIG))
    passes, others = train(trainer)
    trained = [each for each in passes if each.with_gradients]
    micro_batches = STEPS * trainer.args.gradient_accumulation_steps
    assert len(trained) == micro_batches * case.passes
    assert all(each.noisy for each in trained)
    clean = [each for each in passes if not each.with_gradients]
    assert clean  # evaluation, or generation
    assert not any(each.noisy for each in clean + others)
    assert others or name not in BESIDE
    if name in CLIPPED:
        assert logs(trainer, "clip_ratio/region_mean") == [0.0] * STEPS
    assert len(logs(trainer, "neft/noise_rms")) == STEPS
    assert all(map(math.isfinite, logs(trainer, "loss")))
    assert count_hooks(trainer.model) == 0


@pytest.mark.parametrize("name", ["DPO", "KTO", "OnlineDPO", "GRPO, beta"])
def test_a_reference_without_the_adapter_is_clean(tmp_path, name):
    lora = LoraConfig(r=4, task_type="CAUSAL_LM")
    case = CASES[name].with_options(eval_strategy="no")
    trainer = case.trainer(tmp_path, NEFTCallback(CONFIG), lora)
    passes, others = train(trainer)
    assert not others  # the reference is the policy itself
    assert [each.with_gradients for each in passes].count(True) == STEPS
    assert [each.with_gradients for each in passes].count(False) >= STEPS
    for each in passes:
        assert each.noisy == each.with_gradients


RLOO = Case("trl", "RLOO", "prompts", GROUPS, REWARD)
REUSED = {"num_iterations": 2}
MISALIGNED = (
    "`steps_per_generation: {}` and `num_iterations: {}` at `gradient_accumulation_steps: 1`"
)
REFUSED = {
    "RLOO": (RLOO, "RLOOConfig"),
    "GRPO, num_iterations": (GRPO.with_options(**REUSED), MISALIGNED.format(1, 2)),
    "GRPO, steps_per_generation": (
        GRPO.with_options(steps_per_generation=2),
        MISALIGNED.format(2, 1),
    ),
    "GRPO, generation_batch_size": (
        GRPO.with_options(generation_batch_size=8),
        MISALIGNED.format(2, 1),
    ),
    **{
        f"{name}, num_iterations": (CASES[name].with_options(**REUSED), MISALIGNED.format(1, 2))
        for name in ("GMPO", "GRPOWithReplayBuffer", "MiniLLM", "SDFT", "SDPO")
    },
}


def refused(train, settings):
    with pytest.raises(ValueError, match=f"Noise does not go with {re.escape(settings)}: "):
        train()


@pytest.mark.parametrize("name", REFUSED)
def test_a_ratio_of_noisy_to_clean_is_refused_when_training_begins(tmp_path, name):
    case, settings = REFUSED[name]
    trainer = case.trainer(tmp_path, NEFTCallback(CONFIG))
    with recorded(trainer.model) as passes:
        refused(trainer.train, settings)
    assert not passes
    assert count_hooks(trainer.model) == 0


def test_ppo_is_refused(tmp_path):
    ppo = Case(f"{X}.ppo", "PPO", "prompts", {"response_length": 6, "eval_strategy": "no"})
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    trainer = ppo.find("PPOTrainer")(
        args=ppo.arguments(tmp_path),
        processing_class=tokenizer,
        model=language_model(),
        ref_model=language_model(),
        reward_model=reward_model(),
        value_model=reward_model(),
        train_dataset=rows("prompts").map(lambda row: tokenizer(row["prompt"])),
        callbacks=[NEFTCallback(CONFIG)],
    )
    refused(trainer.train, "PPOConfig")


# Their trainers need a GPU with vLLM, but the arguments alone decide.
NO_ROWS = {"eval_strategy": "no", "remove_unused_columns": False}
WITH_VLLM = GRPO.with_options(**NO_ROWS, use_vllm=True)
UNCORRECTED = WITH_VLLM.with_options(vllm_importance_sampling_correction=False)
NEEDS_GPU = {
    "AsyncGRPO": (Case(f"{X}.async_grpo", "AsyncGRPO", "prompts", NO_ROWS), "AsyncGRPOConfig"),
    "GRPO, vLLM": (WITH_VLLM, "`use_vllm` and `vllm_importance_sampling_correction`"),
    "GRPO, vLLM, off-policy mask": (
        UNCORRECTED.with_options(off_policy_mask_threshold=0.5),
        "`use_vllm` and `off_policy_mask_threshold: 0.5`",
    ),
}


@pytest.mark.parametrize("name", NEEDS_GPU)
def test_samples_of_vllm_are_refused(tmp_path, name):
    case, settings = NEEDS_GPU[name]
    arguments = case.arguments(tmp_path)
    trainer = Trainer(
        language_model(), arguments, train_dataset=rows("prompts"), callbacks=[NEFTCallback(CONFIG)]
    )
    refused(trainer.train, settings)


def test_samples_of_vllm_that_are_not_corrected_for_are_not_refused(tmp_path):
    check_old_log_probabilities(UNCORRECTED.arguments(tmp_path))


def test_the_tables_of_the_documentation_are_these_cases():
    page = (REPO / "docs" / "trl.md").read_text()
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    (section,) = (part for part in section if part.startswith("Which trainers are right\n"))
    right, wrong = section.split("Refused", 1)
    assert set(re.findall(r"`(\w+)Trainer`", right)) == {name.split(",")[0] for name in CASES}
    tested = {*REFUSED, *NEEDS_GPU, "PPO"}
    assert set(re.findall(r"`(\w+)Trainer`", wrong)) == {name.split(",")[0] for name in tested}
