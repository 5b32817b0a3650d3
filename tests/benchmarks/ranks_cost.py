"""What the noise costs on several ranks: step time and memory, beside no noise and the built-in.

Each engine trains three times a round, in turns: without noise, with the built-in's, and with the
plugin's (`tokens: response`, cosine schedule). The ratio is the median step of a run over that of
the run without noise of the same round; "off" again is a second run without noise, which says what
such a ratio is worth. Memory is the largest resident set of a rank.

    python tests/benchmarks/ranks_cost.py --model PATH --tokens 128
"""

import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import engines
import torch
from datasets import Dataset
from helpers import MODEL
from packing_noise import machine
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from neft_plugins import NEFTSFTConfig, NEFTSFTTrainer

ALPHA = {"neftune_noise_alpha": 5.0}
NOISES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "off": (SFTTrainer, SFTConfig, {}),
    "off again": (SFTTrainer, SFTConfig, {}),
    "built-in": (SFTTrainer, SFTConfig, ALPHA),
    "plugin": (
        NEFTSFTTrainer,
        NEFTSFTConfig,
        ALPHA | {"neft_tokens": "response", "neft_schedule": "cosine"},
    ),
}
ENGINES: dict[str, Any] = {
    "one process": None,
    **{name: engines.ENGINES[name] for name in ("DDP", "FSDP2", "ZeRO-3")},
}
PACKAGES = ("neft-plugins", "transformers", "trl", "accelerate", "deepspeed", "torch")


class Clock(TrainerCallback):
    """The seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun)


def train(folder: str, keys: dict[str, Any], how: dict[str, Any]) -> dict[str, float]:
    """One run on this rank: its median step in seconds, and its memory in MiB."""
    trainer_type, config_type, noise = NOISES[how["noise"]]
    draw = torch.Generator().manual_seed(0)
    size = (8 * how["steps"], how["tokens"])
    mask = [0] * (how["tokens"] // 4) + [1] * (how["tokens"] - how["tokens"] // 4)
    rows = torch.randint(5, 1000, size, generator=draw).tolist()
    clock = Clock()
    trainer = trainer_type(
        model=how["model"],
        args=config_type(
            output_dir=folder,
            max_steps=how["steps"],
            per_device_train_batch_size=4,
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            logging_steps=how["steps"],
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            model_init_kwargs={"device_map": None, "dtype": "float32"},
            **keys,
            **noise,
        ),
        train_dataset=Dataset.from_list([{"input_ids": r, "completion_mask": mask} for r in rows]),
        callbacks=[clock],
    )
    trainer.train()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(clock.seconds[1:]), "MiB": memory}


def measure(engine: str, rounds: int, **how: Any) -> list[dict[str, Any]]:
    """The runs of one engine, as rows of the table."""
    runs: dict[str, list[dict[str, float]]] = {noise: [] for noise in NOISES}
    for turn in range(rounds):
        for noise in NOISES if turn % 2 == 0 else reversed(NOISES):
            with tempfile.TemporaryDirectory() as folder:
                ranks = engines.train(
                    Path(folder), ENGINES[engine], function=train, noise=noise, **how
                )
            runs[noise].append(ranks[0])
    return [
        {
            "engine": engine,
            "noise": noise,
            "step_ms": round(1000 * statistics.median(run["seconds"] for run in found), 1),
            "ratio": [
                round(run["seconds"] / off["seconds"], 3)
                for run, off in zip(found, runs["off"], strict=True)
            ],
            "MiB": round(statistics.median(run["MiB"] for run in found), 1),
        }
        for noise, found in runs.items()
    ]


def show(results: list[dict[str, Any]]) -> Table:
    """The table that is printed."""
    table = Table("engine", "noise", "step, ms", "over off: median", "least to most", "MiB")
    for one in results:
        ratios = one["ratio"]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        middle = f"{statistics.median(ratios):.3f}"
        numbers = (f"{one['step_ms']:.1f}", middle, spread, f"{one['MiB']:.0f}")
        table.add_row(one["engine"], one["noise"], *numbers)
    return table


@click.command(help=__doc__.partition("\n")[0])
@click.option("--model", default=MODEL, help="Path of a model in transformers' format.")
@click.option("--tokens", default=64, show_default=True, help="Of each of the 4 rows of a batch.")
@click.option("--steps", default=12, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option(
    "--engines",
    "names",
    type=click.Choice(list(ENGINES)),
    multiple=True,
    default=list(ENGINES),
)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the results there too.")
def main(
    model: str, tokens: int, steps: int, rounds: int, names: tuple[str, ...], out: Path | None
) -> None:
    """Run, measure, print."""
    results = [
        row
        for name in names
        for row in measure(name, rounds, model=model, tokens=tokens, steps=steps)
    ]
    Console().print(show(results))
    if out is not None:
        record = {
            "what": "median step time and peak memory of a rank, beside a run without noise",
            "command": f"python tests/benchmarks/ranks_cost.py --model {Path(model).name} "
            f"--tokens {tokens} --steps {steps} --rounds {rounds}"
            + "".join(f" --engines {name!r}" for name in names),
            "batch": "4 rows a rank; two gloo ranks but for 'one process'; one thread each",
            "machine": machine(),
            "seed": 0,
            "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            "results": results,
        }
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
