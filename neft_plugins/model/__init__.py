"""The noise on a model: ``attach_neft``, and the handle that a training loop holds."""

from neft_plugins.model.handle import NEFTHandle, attach_neft

__all__ = ["NEFTHandle", "attach_neft"]
