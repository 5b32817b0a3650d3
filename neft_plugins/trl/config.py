"""NEFTSFTConfig: SFTConfig with the ``neft_*`` keys."""

import json
from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from neft_plugins.config import KEY_OPTIONS, NEFTConfig, NEFTConfigError


def _key(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass
class NEFTSFTConfig(SFTConfig):
    r"""Arguments of ``NEFTSFTTrainer``: those of TRL's ``SFTConfig``, and the noise's.

    The noise is on when ``neftune_noise_alpha``, an argument of every ``TrainingArguments``, is
    set. What each key means is told by ``NEFTConfig``.

    Args:
        neft_distribution: Distribution of the noise.
        neft_schedule: How alpha changes over training.
        neft_schedule_args: Arguments of the schedule, a mapping or its JSON.
        neft_alpha_end: Alpha at the end of the schedule.
        neft_warmup_steps: Steps over which alpha rises from 0; below 1, a share of training.
        neft_tokens: Which tokens get noise.
        neft_length: Which length scales the noise; 'sequence' where unset.
        neft_scale: 'absolute', or 'relative' to each embedding's RMS.
        neft_seed: Seed of the noise; ``seed`` where unset.
        resume_from_checkpoint: A checkpoint's path, or 'latest'. On the command line 'latest' may
            be left out.

    Raises:
        NEFTConfigError: For a value that is not allowed, or a ``neft_*`` key without an alpha.
    """

    neft_distribution: str = _key(
        "uniform",
        "Distribution of the noise: uniform, gaussian, rademacher, or a registered name.",
    )
    neft_schedule: str = _key(
        "constant",
        "How neftune_noise_alpha changes over training: constant, linear, cosine, polynomial, "
        "exponential, step, or a registered name.",
    )
    neft_schedule_args: dict[str, Any] | str | None = _key(
        None, "Arguments of the schedule, such as '{\"power\": 2}' for polynomial."
    )
    neft_alpha_end: float = _key(0.0, "Alpha at the end of the schedule.")
    neft_warmup_steps: float = _key(
        0,
        "Number of steps over which alpha rises from 0 (int), or their share of training (float "
        "in [0, 1)).",
    )
    neft_tokens: str = _key(
        "all",
        "Tokens that get noise: all, response (labels != -100), prompt, or a registered name.",
    )
    neft_length: str | None = _key(
        None,
        "Length that scales the noise: sequence (real tokens of the document; the default), row "
        "(width of the tensor, as in transformers), noised (its tokens that get noise).",
    )
    neft_scale: str = _key(
        "absolute", "absolute, or relative: alpha is then the noise-to-signal ratio (0.02 to 0.2)."
    )
    neft_seed: int | None = _key(None, "Seed of the noise; the value of seed where unset.")
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
        self._parse_schedule_args()
        self.neft_config()
        super().__post_init__()

    def neft_config(self) -> NEFTConfig | None:
        """The noise these arguments ask for; None where ``neftune_noise_alpha`` is unset."""
        return NEFTConfig.from_keys({key: getattr(self, key) for key in KEY_OPTIONS})

    def _parse_schedule_args(self) -> None:
        if isinstance(self.neft_schedule_args, str):
            try:
                self.neft_schedule_args = json.loads(self.neft_schedule_args)
            except json.JSONDecodeError as error:
                raise NEFTConfigError(
                    "`neft_schedule_args` must be a mapping of the schedule's arguments, or its "
                    f"JSON such as '{{\"power\": 2}}'; got {self.neft_schedule_args!r} ({error})."
                ) from None
