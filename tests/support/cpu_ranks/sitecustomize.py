"""Python imports this file in each rank that a launcher starts, if this folder is on PYTHONPATH."""

import gloo_ranks

gloo_ranks.prepare()
