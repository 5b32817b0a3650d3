"""Imported once by the server that forks Axolotl's ranks."""

import os
from contextlib import suppress
from importlib import import_module

os.environ |= {
    "ACCELERATE_USE_CPU": "false",  # or accelerate neither shards nor calls DeepSpeed
    "DS_ACCELERATOR": "cpu",
}

with suppress(ModuleNotFoundError):
    import_module("deepspeed")
import_module("axolotl_runs_preload")
