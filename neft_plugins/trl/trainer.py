"""NEFTSFTTrainer: SFTTrainer with the noise of its NEFTSFTConfig."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from trl import SFTTrainer

from neft_plugins._compat import WaitsForEveryRank
from neft_plugins.config import KEY_OPTIONS, NEFTConfig
from neft_plugins.model.batch import NOTED
from neft_plugins.trainer.callback import NEFTCallback
from neft_plugins.trl.checkpoints import STATE_FILE, find_checkpoint

TAG = "neft"
"""Of a model that was trained with noise."""


class NEFTSFTTrainer(WaitsForEveryRank, SFTTrainer):
    """TRL's ``SFTTrainer`` with noisy embeddings, by the ``neft_*`` keys of its ``NEFTSFTConfig``.

    ``neftune_noise_alpha`` is taken over from the built-in hook, so noise is added once. Without
    it this is the ``SFTTrainer``. However training ends, the model is left without a hook.
    ``neft/*`` metrics are logged beside the loss, and ``neft_config.json`` is saved beside the
    model.

    Takes the arguments of ``SFTTrainer``. Its ``args`` may also be a plain ``SFTConfig``, whose
    ``neftune_noise_alpha`` then gets the default of every other key.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keys = {key: getattr(self.args, key, None) for key in KEY_OPTIONS}
        config = NEFTConfig.from_keys(keys, warn=False)  # NEFTSFTConfig has warned
        self.neft: NEFTCallback | None = None
        if config is not None:
            self.neftune_noise_alpha = None  # what the built-in hook goes by
            self.neft = NEFTCallback(config).add_to(self)
            tagged: Any = self.model
            tagged.add_model_tags([TAG])

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As ``SFTTrainer.train``; an exception, too, leaves the model without a hook.

        Args:
            resume_from_checkpoint: A checkpoint's path. True (or ``true``, ``latest``) for the
                newest *complete* one of the output folder; where there is none, training begins at
                step 0.
            *args: As in ``SFTTrainer.train``.
            **kwargs: Likewise.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir or ".")
        self.args.resume_from_checkpoint = checkpoint  # where the callback looks for the old keys
        try:
            return super().train(checkpoint, *args, **kwargs)
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

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """As ``SFTTrainer.create_model_card``, with the tag ``neft`` if there was noise."""
        given = [tags] if isinstance(tags, str) else list(tags or [])
        noisy = [] if self.neft is None else [TAG]
        super().create_model_card(model_name, dataset_name, [*given, *noisy])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As ``SFTTrainer.save_model``, with ``neft_config.json`` beside the model."""
        if _internal_call and output_dir and self.args.should_save:
            # A checkpoint that is saved anew is not complete until it is again.
            (Path(output_dir) / STATE_FILE).unlink(missing_ok=True)
        super().save_model(output_dir, _internal_call)
        if self.neft is not None and self.args.should_save and not _internal_call:
            self.neft.save_config(output_dir or self.args.output_dir or ".")
