"""The noise through a run of any ``Trainer``."""

from neft_plugins.trainer.callback import NEFTCallback

__all__ = ["NEFTCallback"]
