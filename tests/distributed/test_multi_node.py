"""The scripts of recipes/multi_node: what they say, and two nodes that train by them.

A stranger's package adds a distribution that writes down what each rank drew, so that the commands
are run as they are.
"""

import json
import math
import os
import re
import stat
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import commands
import nodes
import pytest
import torch
import yaml
from helpers import MODEL, REPO
from transformers import AutoTokenizer

SCRIPTS = sorted((REPO / "recipes" / "multi_node").iterdir())
NAMES = [path.name for path in SCRIPTS]
PARTS = ("For whom", "Hardware", "Command", "Settings")
ALPHA, STEPS, ROWS = 5.0, 2, 4
TRIAL = (64, 1024)  # drawn once of a third party's distribution, when the noise is attached

WRITTEN = """
import os
from pathlib import Path

import torch
from neft_plugins.noise.distributions import rademacher


def written(shape, generator):
    draw = rademacher(shape, generator)
    folder = Path(os.environ["DRAWS"])
    torch.save(draw, folder / f"rank{os.environ['RANK']}-{len(list(folder.iterdir()))}.pt")
    return draw
"""


def header(path: Path) -> dict[str, str]:
    """The parts of a script's header, and under "" what comes before them."""
    shebang, *lines = path.read_text().splitlines()
    assert shebang == "#!/usr/bin/env bash"
    text = "\n".join(line[2:] for line in lines[: lines.index("")])
    start, *found = re.split(rf"^({'|'.join(PARTS)}): +", text, flags=re.MULTILINE)
    return {"": start, **dict(zip(found[::2], found[1::2], strict=True))}


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_the_header_says_what_the_script_is_and_how_it_is_run(path):
    parts = header(path)
    assert list(parts) == ["", *PARTS]
    assert all(len(text) > 20 for text in parts.values())
    for command in ("neft sft --config recipes/", "axolotl train recipes/"):
        assert command in parts["Command"]
    for file in re.findall(r"recipes/[\w./-]+", "\n".join(parts.values())):
        assert (REPO / file).is_file(), file
    for variable in set(re.findall(r"\$\{?([A-Z_]+)", path.read_text())):
        assert variable in parts["Settings"] or variable.startswith("SLURM"), variable
    assert path.stat().st_mode & stat.S_IXUSR
    assert max(map(len, path.read_text().splitlines())) <= 100


def test_every_script_is_run_here_and_is_in_the_readme():
    assert {"slurm.sh", *(f"{launcher}.sh" for launcher, _, _ in CASES)} == set(NAMES)
    table = (REPO / "recipes" / "README.md").read_text()
    assert [name for name in NAMES if f"(multi_node/{name})" not in table] == []


ALL = {"NODES": "2", "HEAD": "localhost", "GPUS": "1", "NODE_RANK": "0"}


@pytest.mark.parametrize(
    ("script", "unset"),
    [("torchrun.sh", key) for key in ("NODES", "HEAD")]
    + [("accelerate.sh", key) for key in ALL]
    + [("slurm.sh", "SLURM_JOB_ID")],
)
def test_a_variable_that_is_not_set_is_named_with_what_it_means(script, unset):
    variables = {key: value for key, value in ALL.items() if key != unset}
    variables |= {"PATH": os.environ["PATH"]}
    command = ["bash", f"recipes/multi_node/{script}", "neft", "sft"]
    done = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(rf"{unset}: is not set: .{{10,}}", done.stderr), done.stderr


@pytest.mark.parametrize("script", ["torchrun.sh", "accelerate.sh"])
def test_no_command_is_told(script):
    variables = {**ALL, "PATH": os.environ["PATH"]}
    command = ["bash", f"recipes/multi_node/{script}"]
    done = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True)
    assert done.returncode != 0
    assert "what to run? neft sft ..., axolotl train ..." in done.stderr


CASES = [
    ("torchrun", "neft sft", "by hand"),
    ("accelerate", "neft sft", "slurm"),
    ("torchrun", "axolotl train", "slurm"),
]  # test_axolotl_launchers.py has accelerate with `axolotl train`, by hand


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "program", "how"), CASES)
def test_two_nodes_train_together_with_noise_of_their_own(launcher, program, how, data, tmp_path):
    if (program == "axolotl train") != (find_spec("axolotl") is not None):
        pytest.skip(f"`{program}` is run in the other of CI's environments")
    command = [*program.split(), *arguments(launcher, program, data, tmp_path)]
    variables = {"PYTHONPATH": add_distribution(tmp_path), "DRAWS": tmp_path / "draws", "GPUS": 1}
    start = {"slurm": nodes.on_slurm, "by hand": nodes.by_hand}[how]
    started = start(launcher, command, variables, tmp_path)
    commands.wait(started)

    length = tokens_of_each(data / "texts" / "train.jsonl")
    width = json.loads((Path(MODEL) / "config.json").read_text())["hidden_size"]
    states = (tmp_path / "out").glob("checkpoint-*/trainer_state.json")
    (history,) = (json.loads(path.read_text())["log_history"] for path in states)
    steps = [log for log in history if "loss" in log]
    assert len(steps) == STEPS
    for step in steps:
        size = ALPHA / math.sqrt(3 * length * width)
        assert step["neft/noise_rms"] == pytest.approx(size, rel=1e-3)
    draws = [torch.load(path) for path in sorted((tmp_path / "draws").iterdir())]
    draws = [draw for draw in draws if draw.shape != TRIAL]
    assert len(draws) == 2 * STEPS  # two ranks, which know of each other
    signs = torch.stack([draw[:, :length].flatten() for draw in draws]).sign()
    alike = torch.corrcoef(signs) - torch.eye(len(draws))
    assert alike.abs().max() < 5 / math.sqrt(signs.shape[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Texts of one length, and room for what Axolotl makes of them."""
    folder = tmp_path_factory.mktemp("data")
    words = AutoTokenizer.from_pretrained(MODEL).get_vocab()
    words = sorted(word[1:] for word in words if word[0] == "Ġ" and word[1:].isalpha())
    texts = [" ".join(["Once", *words[row : row + 20]]) for row in range(4 * ROWS)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "texts").mkdir()
    (folder / "texts" / "train.jsonl").write_text("\n".join(lines))
    return folder


def tokens_of_each(path: Path) -> int:
    """Tokens of each text, with the one that ends it."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    (length,) = {len(tokenizer(text)["input_ids"]) for text in texts}
    return length + 1


def arguments(launcher: str, program: str, data: Path, folder: Path) -> list[str]:
    """A recipe for a small run."""
    common = {
        "output_dir": str(folder / "out"),
        "max_steps": STEPS,
        "logging_steps": 1,
        "bf16": False,
    }
    common |= {"neftune_noise_alpha": ALPHA, "neft_distribution": "written"}
    if program == "axolotl train":
        source = {"path": str(data / "texts" / "train.jsonl"), "ds_type": "json"}
        keys: dict[str, Any] = {
            "base_model": MODEL,
            "plugins": ["neft_plugins.NEFTPlugin"],
            "datasets": [source | {"type": "completion"}],
            "dataset_prepared_path": str(data / "prepared"),
            "sequence_len": 128,
            "micro_batch_size": ROWS,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3,
            "optimizer": "adamw_torch",
            "lr_scheduler": "constant",
        }
    else:
        keys = {
            "model_name_or_path": MODEL,
            "dtype": "float32",
            "dataset_name": str(data / "texts"),
            "per_device_train_batch_size": ROWS,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(common | keys))
    if program == "axolotl train":
        return [str(path)]
    engine = ["--accelerate_config", "recipes/accelerate/ddp.yaml"]
    return ["--config", str(path), *(engine if launcher == "accelerate" else [])]


def add_distribution(folder: Path) -> Path:
    """A folder with a package that adds the distribution ``written``."""
    packages = folder / "packages"
    info = packages / "written-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "draws").mkdir()
    (packages / "written.py").write_text(WRITTEN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: written\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[neft_plugins.distributions]\nwritten = written:written"
    )
    return packages
