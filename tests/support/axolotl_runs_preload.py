"""Imported once by the server that forks Axolotl's runs."""

import gc
import os

os.environ |= {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
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

# Axolotl's sampler collects garbage whenever it packs: keep it from walking all that again.
gc.freeze()
