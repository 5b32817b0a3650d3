"""NEFTSFTConfig: SFTConfig with the ``neft_*`` keys."""

from dataclasses import MISSING, dataclass, field
from typing import Any

from trl import SFTConfig

from neft_plugins.checks import ARGUMENTS_AS_JSON, read_arguments
from neft_plugins.config import KEY_OPTIONS, OPTIONS, NEFTConfig, default_text
from neft_plugins.keys import SPARSITY_KEYS, key_name
from neft_plugins.sparsity.config import ARGUMENTS, SPARSITY_ARGS_HELP, SparsityConfig


def _key(option: str) -> Any:
    """A field with the default and the help of an option of ``NEFTConfig``."""
    default, text = OPTIONS[option].default, OPTIONS[option].metadata["help"]
    if default is None or default is MISSING:  # what the parser would show as None
        default, text = None, f"{text} Default: {default_text(option)}."
    return field(default=default, metadata={"help": text})


@dataclass
class NEFTSFTConfig(SFTConfig):
    r"""Arguments of ``NEFTSFTTrainer``: those of TRL's ``SFTConfig``, and the noise's.

    The noise is on when ``neftune_noise_alpha``, an argument of every ``TrainingArguments``, is
    set. ``neft_tokens`` is ``tokens`` of ``NEFTConfig``, and so with every ``neft_*`` argument; its
    help is in the field's metadata. ``neft_sparsity`` and ``neft_sparsity_args`` are those of
    ``SparsityConfig``, and need no noise.

    Args:
        resume_from_checkpoint: A checkpoint's path, or 'latest'. On the command line 'latest' may
            be left out.

    Raises:
        NEFTConfigError: For a value that is not allowed, or a ``neft_*`` key without an alpha.
    """

    neft_distribution: str = _key("distribution")
    neft_distribution_args: dict[str, Any] | str | None = _key("distribution_args")
    neft_schedule: str = _key("schedule")
    neft_schedule_args: dict[str, Any] | str | None = _key("schedule_args")
    neft_alpha_end: float = _key("alpha_end")
    neft_warmup_steps: float = _key("warmup_steps")
    neft_tokens: str | list[str] = _key("tokens")
    neft_pairs: str | None = _key("pairs")
    neft_length: str | None = _key("length")
    neft_scale: str = _key("scale")
    neft_seed: int | None = _key("seed")
    neft_sparsity: float | str | None = field(
        default=None, metadata={"help": f"{ARGUMENTS['sparsity'].metadata['help']} Default: off."}
    )
    neft_sparsity_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": SPARSITY_ARGS_HELP}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to go on from; alone or with 'latest', the newest complete one of "
            "output_dir, if there is any.",
            "nargs": "?",
            "const": "latest",
        },
    )

    def __post_init__(self) -> None:
        if self.neft_tokens == [None]:  # `None` on the command line, where it takes several
            self.neft_tokens = "all"
        for option in ARGUMENTS_AS_JSON:
            key = key_name(option)
            setattr(self, key, read_arguments(option, getattr(self, key)))
        NEFTConfig.from_keys(self._keys())
        self.sparsity_config()
        super().__post_init__()

    def neft_config(self) -> NEFTConfig | None:
        """The noise these arguments ask for; None where ``neftune_noise_alpha`` is unset.

        With alpha 0 it is that of a baseline: none.
        """
        return NEFTConfig.from_keys(self._keys(), warn=False)

    def sparsity_config(self) -> SparsityConfig | None:
        """The sparsity these arguments ask for; None where ``neft_sparsity`` is unset."""
        return SparsityConfig.from_keys({key: getattr(self, key) for key in SPARSITY_KEYS})

    def _keys(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in KEY_OPTIONS}
