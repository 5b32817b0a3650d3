"""Axolotl: NEFTPlugin, and the keys it reads."""

try:
    from neft_plugins.axolotl.args import NEFTArgs
    from neft_plugins.axolotl.plugin import NEFTPlugin
except ImportError as error:
    if error.name == "axolotl":
        raise
    # Axolotl goes on without a plugin whose import fails by an ImportError.
    raise RuntimeError(
        f"neft_plugins.NEFTPlugin cannot be loaded: {error}. Repair the installation (pip install "
        "'neft-plugins[axolotl]'), or remove the plugin and its neft_* keys to train without it."
    ) from error

__all__ = ["NEFTArgs", "NEFTPlugin"]
