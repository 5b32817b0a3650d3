"""Imported once by the server that forks the ranks."""

import gc
import os

os.environ |= {
    "ACCELERATE_USE_CPU": "false",  # or accelerate neither shards nor calls DeepSpeed
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import contextlib

import torch

with contextlib.suppress(ImportError):
    pass


import neft_plugins.trl.sft  # noqa: F401

torch.set_num_threads(1)
gc.freeze()
