"""On a CUDA device: bfloat16, NF4, packing by varlen kernels, ZeRO-3, no waiting for the device."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import NOISE, PACKINGS, check_is_the_equation
from forks import FOLDERS
from helpers import REPO
from reference import ENCODINGS, Document, Embedder

from neft_plugins import NEFTConfig, attach_neft

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "support" / "train_and_record.py"
BF16 = {"dtype": "bfloat16"}
ROUNDING = 4e-3  # of a difference of embeddings in bfloat16
ZERO3 = json.loads((REPO / "recipes" / "deepspeed" / "zero3.json").read_text())


def train(folder: Path, keys: dict[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    """A run on one rank, started by torchrun."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    given = json.dumps({"keys": NOISE | keys, "how": how})
    environment = {**os.environ, "ACCELERATE_USE_CPU": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, FOLDERS))
    if keys.get("use_cpu"):
        environment["DS_ACCELERATOR"] = "cpu"
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder), given],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "rank0.pt", weights_only=False)


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", ["full", "lora", "qlora"])
def test_bfloat16_and_nf4(adapter, tmp_path):
    how = BF16 | {"adapter": adapter}
    record = train(tmp_path / "one", PACKINGS["padded"], how)
    assert record["device"] == "cuda"
    check_is_the_equation(record, ROUNDING)
    again = train(tmp_path / "two", PACKINGS["padded"], how)
    for one, two in zip(record["passes"], again["passes"], strict=True):
        assert torch.equal(one.noise, two.noise)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_packing(attention, tmp_path):
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    how = BF16 | {"model_init_kwargs": {"attn_implementation": attention}}
    record = train(tmp_path / "packed", PACKINGS["packed"], how)
    assert record["device"] == "cuda"
    check_is_the_equation(record, ROUNDING)


# On the CPU, this is the test of this file.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero3_on_one_device(device, tmp_path):
    keys = PACKINGS["padded"] | {"deepspeed": ZERO3, "use_cpu": device == "cpu"}
    record = train(tmp_path / "zero3", keys, BF16)
    assert record["device"] == device
    assert record["sharded"]
    check_is_the_equation(record, ROUNDING)


@pytest.mark.gpu
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_no_pass_waits_for_the_device(encoding):
    documents = [Document(5, prompt=2), Document(3, prompt=1)]
    batch = {key: value.cuda() for key, value in ENCODINGS[encoding](documents).arguments.items()}
    model = Embedder(8).cuda()
    config = NEFTConfig(alpha=5.0, tokens="response")
    with attach_neft(model, config) as neft:
        model(**batch)  # the first may allocate
        neft.set_step(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(**batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert neft.metrics()["neft/noise_rms"] > 0
