"""Imported once by the server that forks the ranks."""

import gc
import os
from contextlib import suppress
from importlib import import_module

os.environ |= {
    "ACCELERATE_USE_CPU": "false",  # or accelerate neither shards nor calls DeepSpeed
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

with suppress(ModuleNotFoundError):
    dir(import_module("deepspeed").ops.__compatible_ops__)  # or each rank starts compilers to know
for slow in ("peft", "bitsandbytes", "transformers.models.llama", "neft_plugins.trl.sft"):
    import_module(slow)
with suppress(ModuleNotFoundError):
    import_module("trackio")  # trl asks it for an address at each checkpoint

# What is made once and kept: how the weights of each architecture are read.
import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")

gc.freeze()
