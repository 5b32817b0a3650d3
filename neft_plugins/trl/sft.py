"""The training script of ``neft sft``: supervised fine-tuning from a YAML or the command line.

Run it as ``neft sft --config X.yaml``, or by itself: ``accelerate launch -m neft_plugins.trl.sft
--config X.yaml``. What only training needs is imported where it trains: ``--help`` does not wait.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from neft_plugins.config import KEY_OPTIONS
from neft_plugins.keys import is_none_in_text
from neft_plugins.messages import NO_MODEL
from neft_plugins.trl.config import NEFTSFTConfig
from neft_plugins.trl.options import launch_parser, split_options
from neft_plugins.trl.run_keys import given_keys, write_keys


@dataclass
class NEFTScriptArguments(ScriptArguments):
    """TRL's ScriptArguments, and what the script does when training is done.

    Args:
        final_evaluation: Whether to evaluate without noise then.
    """

    final_evaluation: bool = field(
        default=True,
        metadata={
            "help": "Whether to evaluate without noise when training is done, on at most 500 "
            "training rows and as many held-out rows, for the table of what the run did. Without "
            "`eval_strategy` there are no held-out rows, and nothing is evaluated."
        },
    )


class SplitError(ValueError):
    """The dataset has no split of the name that was asked for; known when it has been loaded."""


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        """A wrong value: its message alone, without the usage, which is 200 lines long."""
        raise ValueError(message)


def make_parser(prog: str | None = None) -> TrlParser:
    """TRL's parser for supervised fine-tuning, with the ``neft_*`` keys.

    Args:
        prog: Name of the program in the help.

    Returns:
        The parser; it gives NEFTScriptArguments, NEFTSFTConfig, ModelConfig and
        DatasetMixtureConfig. It raises ValueError where argparse would exit.
    """
    parser = _Parser(
        (NEFTScriptArguments, NEFTSFTConfig, ModelConfig, DatasetMixtureConfig),  # pyright: ignore
        prog=prog,
        allow_abbrev=False,  # or --neft_alpha would be --neft_alpha_end
    )
    for action in parser._actions:
        if action.dest in KEY_OPTIONS:
            action.type = _or_unset(action.type)
    return parser


def _or_unset(parse: Any) -> Callable[[str], Any]:
    """What an argument's text means: ``None`` that it is unset. Newer TRL has it for some."""

    def parse_or_unset(text: str) -> Any:
        return None if is_none_in_text(text) else parse(text)

    parse_or_unset.__name__ = parse.__name__  # by which argparse's errors call it
    return parse_or_unset


def named_model(name: str | None) -> str:
    """The name of the model, which must be given.

    Raises:
        ValueError: If it is not.
    """
    if not name:
        raise ValueError(NO_MODEL)
    return name


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
        SplitError: If the dataset has no split of that name.
    """
    from datasets import load_dataset
    from trl import get_dataset

    data: Any
    if mixture.datasets:
        data = get_dataset(mixture)
        way_out = (
            "Set `test_split_size` to the fraction of its rows that is held out as 'test', such as "
            "0.1, or do not evaluate."
        )
    else:
        way_out = "Set `dataset_train_split` and `dataset_test_split`."
        options: dict[str, Any] = {
            "name": script.dataset_config,
            "streaming": script.dataset_streaming,
        }
        data = load_dataset(str(script.dataset_name), **options)
    for name in names:
        if name not in data:
            raise SplitError(
                f"The {'mixture' if mixture.datasets else 'dataset'} has no split {name!r}; it has "
                f"{', '.join(map(repr, data))}. {way_out}"
            )
    return [data[name] for name in names]


def main(
    script: NEFTScriptArguments,
    training: NEFTSFTConfig,
    model: ModelConfig,
    mixture: DatasetMixtureConfig,
    keys: dict[str, Any] | None = None,
) -> None:
    """Train, save, and say what was done.

    Args:
        script: Which dataset and splits, and whether to evaluate at the end.
        training: How to train, noise included.
        model: Which model, quantization and PEFT.
        mixture: A mixture of datasets.
        keys: What of all this was given; kept in the output folder, for ``neft report``.
    """
    from trl import get_peft_config, get_quantization_config

    from neft_plugins.trl.summary import print_summary
    from neft_plugins.trl.trainer import NEFTSFTTrainer

    training.model_init_kwargs = _model_init_kwargs(training, model)
    names = [script.dataset_train_split]
    if training.eval_strategy != "no":
        names.append(script.dataset_test_split)
    train, *held_out = load_splits(script, mixture, names)
    trainer = NEFTSFTTrainer(
        model=named_model(model.model_name_or_path),
        args=training,
        train_dataset=train,
        eval_dataset=held_out[0] if held_out else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    if keys is not None and training.should_save:
        write_keys(keys, trainer.args.output_dir or ".")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_state()
    # Before saving: on CPUs with AVX512-BF16, reading the state of a 4-bit layer that has been
    # evaluated spoils it (bitsandbytes 0.50.2).
    print_summary(trainer, evaluate=script.final_evaluation)
    trainer.save_model(training.output_dir)
    trainer.accelerator.print(f"Model saved to {training.output_dir}")
    trainer.accelerator.print(f"What the noise did: neft report {training.output_dir}")
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


def run(words: list[str]) -> None:
    """Parse a command line, and train.

    Args:
        words: The training script's options. Keys of accelerate's in the YAML have had their time.

    Raises:
        ValueError: For an unknown option or key, or a wrong value.
    """
    parser = make_parser()
    values, *_ = split_options(words, parser, launch_parser())
    arguments = parser.parse_args_and_config(words, fail_with_unknown_args=False)
    main(*arguments, keys=given_keys(words, values))


if __name__ == "__main__":
    run(sys.argv[1:])
