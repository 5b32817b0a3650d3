"""NEFTPlugin: the noise in Axolotl, by ``neft_*`` keys in its YAML."""

from axolotl.integrations.base import BasePlugin


class NEFTPlugin(BasePlugin):
    """Not in this version: listing it stops the run, so that no run goes without its noise."""

    def __init__(self) -> None:
        # Not an ImportError, which Axolotl would swallow.
        raise RuntimeError(
            "This version of neft-plugins has no Axolotl plugin yet. Remove "
            "neft_plugins.NEFTPlugin from `plugins:`; Axolotl's own `neftune_noise_alpha` still "
            "works without it. For the neft_* keys, train with `neft sft` or NEFTSFTTrainer."
        )
