"""DPO of Qwen3-4B with QLoRA and noise on the policy, through TRL's DPOTrainer and NEFTCallback.

For whom:  preference tuning, and a pattern for every other Trainer: build it, then ``add_to``.
           The policy's passes are noisy; the reference's, the same model with its adapter off,
           are not.
Hardware:  one GPU of 24 GB or more (an estimate: the 4-bit layers take 1.9 GB and the bf16
           embedding 0.8 GB; most of the rest is activations, of 4 pairs of up to 1024 tokens).
Command:   python recipes/trl/dpo_qlora.py
           python recipes/trl/dpo_qlora.py --model_name_or_path MODEL --dataset_name DATASET
           accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/trl/dpo_qlora.py
           (options: those of TRL's DPOConfig, ModelConfig and ScriptArguments, and the noise's)
Settings:  beta, learning rate, cosine, warm-up, length, adapter and rows per GPU: Zephyr's DPO with
           QLoRA in the alignment-handbook, for 7B. Alpha 5: the smallest of the NEFTune paper's
           (arXiv 2310.05914), which has no DPO. Ours, chosen and not tuned: the model, the linear
           decay of alpha, 4 accumulation steps.
"""

from dataclasses import asdict, dataclass, field

from datasets import load_dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from neft_plugins import NEFTCallback, NEFTConfig

DEFAULTS = {
    # The noise
    "neftune_noise_alpha": 5,
    "neft_schedule": "linear",
    # The model, in 4 bits, and its adapter
    "model_name_or_path": "Qwen/Qwen3-4B",
    "dtype": "bfloat16",
    "load_in_4bit": True,
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": ["all-linear"],
    # The data: preference pairs
    "dataset_name": "trl-lib/ultrafeedback_binarized",
    "max_length": 1024,
    # The training
    "beta": 0.01,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "learning_rate": 5e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "bf16": True,
    "seed": 0,
    # What to see and keep
    "output_dir": "runs/qwen3-4b-dpo-qlora",
    "logging_steps": 10,
    "save_strategy": "epoch",
}


@dataclass
class NoiseArguments:
    """The noise's keys beside ``neftune_noise_alpha``; docs/keys.md has more to add here."""

    neft_distribution: str = field(
        default="uniform", metadata={"help": "Distribution of the noise."}
    )
    neft_schedule: str = field(
        default="constant", metadata={"help": "How alpha changes over training."}
    )
    neft_alpha_end: float = field(default=0.0, metadata={"help": "Alpha at the schedule's end."})
    neft_warmup_steps: float = field(
        default=0,
        metadata={"help": "Steps, or fraction of training, over which alpha rises from 0."},
    )


def main(
    noise: NoiseArguments, script: ScriptArguments, training: DPOConfig, model: ModelConfig
) -> None:
    """Train and save."""
    config = NEFTConfig.from_keys(
        {"neftune_noise_alpha": training.neftune_noise_alpha, **asdict(noise)}
    )
    training.neftune_noise_alpha = None  # else the built-in hook would add noise of its own
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    dataset = load_dataset(script.dataset_name, name=script.dataset_config)
    trainer = DPOTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=dataset[script.dataset_train_split],
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    if config is not None:
        NEFTCallback(config).add_to(trainer)  # first, so that trackers log the neft/* metrics
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    parser = TrlParser((NoiseArguments, ScriptArguments, DPOConfig, ModelConfig))
    parser.set_defaults_with_config(**DEFAULTS)
    main(*parser.parse_args_and_config())
