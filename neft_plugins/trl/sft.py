"""The training script of ``neft sft``: supervised fine-tuning from a YAML or the command line.

Run it as ``neft sft --config X.yaml``, or by itself: ``accelerate launch -m neft_plugins.trl.sft
--config X.yaml``.
"""

import logging
import warnings
from typing import Any

from datasets import load_dataset
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from neft_plugins.config import NEFTWarning
from neft_plugins.trl.config import NEFTSFTConfig
from neft_plugins.trl.summary import print_summary
from neft_plugins.trl.trainer import NEFTSFTTrainer


def make_parser(prog: str | None = None) -> TrlParser:
    """TRL's parser for supervised fine-tuning, with the ``neft_*`` keys.

    Args:
        prog: Name of the program in the help.

    Returns:
        The parser; it gives ScriptArguments, NEFTSFTConfig, ModelConfig and DatasetMixtureConfig.
    """
    return TrlParser(
        (ScriptArguments, NEFTSFTConfig, ModelConfig, DatasetMixtureConfig),  # pyright: ignore
        prog=prog,
    )


def check_dataset_is_named(script: ScriptArguments, mixture: DatasetMixtureConfig) -> None:
    """Refuse arguments that name no dataset; tell if one of two is not used.

    Args:
        script: Has ``dataset_name``.
        mixture: Has ``datasets``, a list to mix; it comes first, as in ``trl sft``.

    Raises:
        ValueError: If neither names a dataset.
    """
    if not mixture.datasets and not script.dataset_name:
        raise ValueError("No dataset: set `dataset_name` (a Hub id or a folder) or `datasets`.")
    if mixture.datasets and script.dataset_name:
        warnings.warn(
            f"`datasets` and `dataset_name` are both set; `dataset_name: {script.dataset_name}` "
            "is not used.",
            NEFTWarning,
            stacklevel=2,
        )


def load_splits(
    script: ScriptArguments, mixture: DatasetMixtureConfig, names: list[str]
) -> list[Any]:
    """Splits of the dataset that ``datasets`` or ``dataset_name`` names.

    Args:
        script: Has ``dataset_name`` and its options.
        mixture: Has ``datasets``.
        names: The splits wanted.

    Returns:
        The splits, in the order of the names.

    Raises:
        ValueError: If the dataset has no split of that name.
    """
    data: Any
    if mixture.datasets:
        data = get_dataset(mixture)
    else:
        options: dict[str, Any] = {
            "name": script.dataset_config,
            "streaming": script.dataset_streaming,
        }
        data = load_dataset(str(script.dataset_name), **options)
    for name in names:
        if name not in data:
            raise ValueError(
                f"The dataset has no split {name!r}; it has {', '.join(map(repr, data))}. Set "
                "`dataset_train_split` and `dataset_test_split`."
            )
    return [data[name] for name in names]


def main(
    script: ScriptArguments,
    training: NEFTSFTConfig,
    model: ModelConfig,
    mixture: DatasetMixtureConfig,
) -> None:
    """Train, save, and say what was done.

    Args:
        script: Which dataset and splits.
        training: How to train, noise included.
        model: Which model, quantization and PEFT.
        mixture: A mixture of datasets.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("neft_plugins").setLevel(logging.INFO)
    training.model_init_kwargs = _model_init_kwargs(training, model)
    names = [script.dataset_train_split]
    if training.eval_strategy != "no":
        names.append(script.dataset_test_split)
    train, *held_out = load_splits(script, mixture, names)
    trainer = NEFTSFTTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=train,
        eval_dataset=held_out[0] if held_out else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    # Before saving: on CPUs with AVX512-BF16, reading the state of a 4-bit layer that has been
    # evaluated spoils it (bitsandbytes 0.50.2).
    print_summary(trainer)
    trainer.save_model(training.output_dir)
    trainer.accelerator.print(f"Model saved to {training.output_dir}")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    # A barrier first: gloo deadlocks if a rank frees its process group, holding the GIL, while a
    # worker thread waits for the GIL to free the tensors of the last gather.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def _model_init_kwargs(training: NEFTSFTConfig, model: ModelConfig) -> dict[str, Any]:
    kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return kwargs | dict(training.model_init_kwargs or {})  # pyright: ignore


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
