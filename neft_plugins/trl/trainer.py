"""NEFTSFTTrainer: SFTTrainer with the noise of its NEFTSFTConfig."""

from typing import Any

from torch import Tensor, nn
from trl import SFTTrainer

from neft_plugins.callback import NEFTCallback
from neft_plugins.config import KEY_KNOBS, NEFTConfig
from neft_plugins.passes import NOTED


class NEFTSFTTrainer(SFTTrainer):
    """TRL's ``SFTTrainer`` with noisy embeddings, by the ``neft_*`` keys of its ``NEFTSFTConfig``.

    ``neftune_noise_alpha`` is taken over from the built-in hook, so noise is added once. Without
    it this is the ``SFTTrainer``. However training ends, the model is left without a hook.
    ``neft/*`` metrics are logged beside the loss, and ``neft_config.json`` is saved beside the
    model.

    Takes the arguments of ``SFTTrainer``. Its ``args`` may also be a plain ``SFTConfig``, whose
    ``neftune_noise_alpha`` then gets the default of every other key.
    """

    _tag_names = [*SFTTrainer._tag_names, "neft"]  # noqa: RUF012 - TRL's own way to tag a model card

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = NEFTConfig.from_keys({key: getattr(self.args, key, None) for key in KEY_KNOBS})
        self.neft: NEFTCallback | None = None
        if config is not None:
            self.neftune_noise_alpha = None  # what the built-in hook goes by
            self.neft = NEFTCallback(config).add_to(self)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``SFTTrainer.train``; an exception, too, leaves the model without a hook."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.neft is not None:
                self.neft.remove()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As ``SFTTrainer.compute_loss``; the noise sees the labels even if the model does not."""
        handle = self.neft.handle if self.neft is not None else None
        if handle is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        handle.set_batch(**{key: value for key, value in inputs.items() if key in NOTED})
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            handle.set_batch()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As ``SFTTrainer.save_model``, with ``neft_config.json`` beside the model."""
        super().save_model(output_dir, _internal_call)
        if self.neft is not None and self.args.should_save:
            self.neft.save_config(output_dir or self.args.output_dir or ".")
