"""Imported once by the server that forks Axolotl's runs, and their ranks."""

import gc
import os
from contextlib import suppress
from importlib import import_module

os.environ |= {
    "AXOLOTL_DATASET_NUM_PROC": "0",  # or it starts three processes to prepare a few rows
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRITON_INTERPRET": "1",
}

import axolotl.cli.evaluate
import axolotl.cli.preprocess
import axolotl.cli.train
import axolotl.core.trainers  # and not the arguments, to which plugins add before they load
import axolotl.train  # noqa: F401
import numpy
from axolotl.utils.samplers.multipack import pack_group

import neft_plugins.trainer  # noqa: F401

# What else every run imports.
for late in (
    "axolotl.monkeypatch.relora",
    "axolotl.monkeypatch.trainer.lr",
    "axolotl.processing_strategies",
    "axolotl.utils.callbacks.qat",
    "deepspeed",
    "trackio",
    "trl.experimental.cpo.cpo_trainer",
    "trl.experimental.orpo.orpo_trainer",
    "trl.experimental.prm.prm_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.kto_trainer",
    "trl.trainer.reward_trainer",
    "wandb",
):
    with suppress(ModuleNotFoundError):
        import_module(late)

# What is made once and kept: how the weights of each architecture are read, and the packing, which
# numba compiles for each kind of arguments.
import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
pack_group(numpy.ones(1, dtype=numpy.int32), 0, 1, 1, 1, True)

# Axolotl's sampler collects garbage whenever it packs: keep it from walking all that again.
gc.freeze()
