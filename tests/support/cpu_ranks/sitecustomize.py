"""Python imports this file in each rank that a launcher starts, if this folder is on PYTHONPATH."""

import gc

import gloo_ranks

gc.set_threshold(100_000)  # as tests/conftest.py does: fewer walks through what is imported
gloo_ranks.prepare()
