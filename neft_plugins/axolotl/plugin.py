"""NEFTPlugin: the noise in Axolotl, by ``neft_*`` keys in its YAML."""

import shutil
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from transformers import Trainer

from neft_plugins.axolotl.args import noise_keys
from neft_plugins.checks import refuse_keys_inside
from neft_plugins.config import NEFTConfig, NEFTConfigError
from neft_plugins.keys import ALPHA_KEY, AXOLOTL_KEYS_FILE
from neft_plugins.sparsity.config import SparsityConfig
from neft_plugins.trainer.callback import NEFTCallback
from neft_plugins.trainer.sparsity import SparsityCallback

# Of other packages' loggers, Axolotl shows warnings only.
LOG = get_logger("axolotl.neft_plugins")


class NEFTPlugin(BasePlugin):
    """Add noise to the input embeddings in Axolotl's training, in the built-in's place.

    ``plugins: [neft_plugins.NEFTPlugin]`` in the YAML. The keys are those of ``NEFTArgs`` and
    ``neftune_noise_alpha``; without an alpha, Axolotl trains as it does without the plugin, and
    with 0 without noise, which is logged. It works through a ``NEFTCallback`` and needs no trainer
    class, so it goes with other plugins.
    """

    def register(self, cfg: dict[str, Any]) -> None:
        """Refuse keys where nothing reads them, and to be listed under two names."""
        refuse_keys_inside(cfg)
        plugins = PluginManager.get_instance().plugins
        listed = dict.fromkeys(cfg["plugins"])
        ours = [name for name in listed if isinstance(plugins.get(name), NEFTPlugin)]
        if len(ours) > 1:
            raise NEFTConfigError(
                f"`plugins` lists NEFTPlugin {len(ours)} times, as {', '.join(ours)}. Keep one."
            )

    def get_input_args(self) -> str:
        """The class of the keys, by name."""
        return "neft_plugins.axolotl.NEFTArgs"

    def get_training_args(self, cfg: DictDefault) -> Any:
        """Take the alpha from the built-in hook, so that noise is added once."""
        return {ALPHA_KEY: None} if self._config(cfg) is not None else None

    def post_trainer_create(self, cfg: DictDefault, trainer: Trainer) -> None:
        """Give the trainer the callback, before those that log."""
        config = self._config(cfg)
        if config is not None:
            # Its SequenceParallelContextManager cuts rows into contiguous shards.
            NEFTCallback(config, logger=LOG, contiguous_shards=True).add_to(trainer)
        sparsity = SparsityConfig.from_keys(cfg) if self._is_listed(cfg) else None
        if sparsity is not None:
            SparsityCallback(sparsity, logger=LOG).add_to(trainer)
        if trainer.args.should_save:
            _keep_yaml(cfg)

    def _config(self, cfg: DictDefault) -> NEFTConfig | None:
        """What noise; None without an alpha."""
        if not self._is_listed(cfg):
            return None
        return NEFTConfig.from_keys(noise_keys(cfg), warn=False)  # NEFTArgs has warned

    def _is_listed(self, cfg: DictDefault) -> bool:
        """Whether this run's YAML lists the plugin, and not only an earlier run's."""
        plugins = PluginManager.get_instance().plugins
        return any(plugins.get(name) is self for name in cfg.plugins or [])


def _keep_yaml(cfg: DictDefault) -> None:
    """Copy the YAML into the output folder, for a report; Axolotl's model card comes late."""
    given, folder = cfg.axolotl_config_path, cfg.output_dir
    if given and folder and Path(given).is_file():
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given, Path(folder) / AXOLOTL_KEYS_FILE)
