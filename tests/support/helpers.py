"""A small model, the quickstart's files, the ``neft`` command, and Python in a new process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

REPO = Path(__file__).resolve().parents[2]
MODEL = str(REPO / "recipes" / "quickstart" / "model")
DATA = str(REPO / "recipes" / "quickstart" / "data")


def tiny_llama(**config: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes | heads | config)).train()


def neft(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the ``neft`` command as a user does."""
    command = [str(Path(sys.executable).with_name("neft")), *arguments]
    defaults = {"COLUMNS": "160", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        env={**os.environ, **defaults, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def run_python(*arguments: str, timeout: float | None = None, **environment: str) -> str:
    """What Python prints in a process of its own, which must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def pip_install(source: Path, target: Path) -> None:
    """A package's source, built with what is installed here; nothing is downloaded."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target"]
    run_python("-m", "pip", "install", *options, str(target), str(source))
