"""What the noise costs: the operation, a training step, packed rows, compilation, the import.

The operation's time is what a noise adds to a lookup: transformers' hook, ours in place and fresh,
and a plain copy of the embeddings. All take turns in one run, and a ratio is of one round. By size,
dtype, distribution and token rule, as a Trainer would call it.

    python tests/benchmarks/noise_op.py --json tests/benchmarks/results/noise_op_cpu.json
    python tests/benchmarks/noise_op.py --quick

``noise_op_page.py`` then puts the results into docs/benchmarks.md.
"""

import json
import platform
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import noise_training
import torch
from markdown_table import Rows
from noise_cost import ALPHA, VOCABULARY, Case, measure
from noise_op_tables import make_tables, setup
from noise_op_targets import check_targets
from packing_noise import machine

from neft_plugins.config import NEFTWarning

DTYPES = ("float32", "bfloat16", "float16")
DISTRIBUTIONS = ("uniform", "gaussian", "rademacher")
PACKAGES = ("neft-plugins", "transformers", "torch", "triton")
PARTS = ("operation", "packed", "step", "compiled", "import")
QUICK = [
    Case("quick", (2, 32), 64),
    Case("quick", (2, 32), 64, "bfloat16", "gaussian", "response"),
    Case("quick", (1, 64), 48, "float16", "rademacher"),
]
TINY_PACKED = [Case("packed", (1, 64), 48, documents=documents) for documents in (1, 8)]


def sweeps() -> Iterator[Case]:
    """The operation's cases: around two points, in one direction at a time."""
    small, large = (8, 64), (4, 2048)
    yield from (Case("small", small, 288, distribution=name) for name in DISTRIBUTIONS)
    yield from (Case("small", small, 288, dtype) for dtype in DTYPES[1:])
    yield Case("small", small, 288, tokens="response")
    for dtype in DTYPES:
        yield from (Case("kinds", large, 2048, dtype, name) for name in DISTRIBUTIONS)
        yield Case("kinds", large, 2048, dtype, tokens="response")
    for batch in ((1, 512), (1, 2048), (4, 2048), (16, 2048), (64, 2048), (512, 2048)):
        yield Case("tokens", batch, 2048, "bfloat16")
    for batch in ((8, 64), (16, 256), (16, 2048), (128, 2048), (512, 2048)):
        yield Case("tokens", batch, 288)
    yield from (Case("d", large, d) for d in (288, 1000, 2048, 4096, 8192))
    yield Case("d", (512, 2048), 8192, "bfloat16")


def packed() -> Iterator[Case]:
    """Rows without padding, as TRL makes them."""
    for documents in (1, 4, 16, 64, 256, 1024, 4096):
        yield Case("packed", (1, 8192), 2048, "bfloat16", documents=documents)


def measure_cases(
    cases: list[Case], memory: float, measured: Callable[[Case], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that fit the memory, and of the others why not."""
    results, skipped = [], []
    for number, case in enumerate(cases, start=1):
        # The hook's three copies.
        needed = round(3 * case.bytes / 2**30, 1)
        if needed > memory:
            skipped.append(case.record | {"needs_GiB": needed})
            continue
        click.echo(f"{number} of {len(cases)}: {case}", err=True)
        results.append(measured(case))
    return results, skipped


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # triton, beside a torch for CPUs
            continue
    return found


def show(title: str, rows: Rows) -> Table:
    """A table that is printed."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    return table


@click.command(help=__doc__.partition("\n")[0])
@click.option("--device", help="Such as cpu or cuda; unset, cuda where there is one.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS)
@click.option("--seconds", default=2.5, show_default=True, help="For a case, five rounds or more.")
@click.option(
    "--memory", type=float, help="GiB that a case may take; unset, 4, or most of a GPU's."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Tiny shapes, to see that it runs.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the results there too.")
def main(
    device: str | None,
    parts: tuple[str, ...],
    seconds: float,
    memory: float | None,
    seed: int,
    quick: bool,
    out: Path | None,
) -> None:
    """Run, measure, print."""
    warnings.simplefilter("ignore", NEFTWarning)  # random embeddings are weaker than the noise
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = where.type == "cuda"
    if memory is None:
        memory = 0.8 * torch.cuda.mem_get_info(where)[0] / 2**30 if on_gpu else 4.0
    if quick:
        seconds = 0.1
    record: dict[str, Any] = {
        "what": "time and memory that noise adds to a lookup of embeddings, and to a training step",
        "command": shlex.join(["python", "tests/benchmarks/noise_op.py", *arguments()]),
        "device": where.type,
        "machine": machine(),
        "gpu": torch.cuda.get_device_name(where) if on_gpu else None,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "alpha": ALPHA,
        "vocabulary": VOCABULARY,
        "memory_GiB": round(memory, 1),
        "versions": versions(),
    }
    for part, cases in (("operation", sweeps()), ("packed", packed())):
        if part in parts:
            chosen = list(cases) if not quick else QUICK if part == "operation" else TINY_PACKED
            record[part], skipped = measure_cases(
                chosen, memory, lambda case: measure(case, where, seed, seconds)
            )
            record.setdefault("skipped", []).extend(skipped)
    if "step" in parts:
        rounds = 2 if quick else 11
        record["step"] = noise_training.measure_step(where, seed, rounds, quick)
    if "compiled" in parts:
        record["compiled"] = noise_training.count_compilations(where, seed) | {
            "synchronizations": noise_training.count_synchronizations(
                where, seed, QUICK + TINY_PACKED
            )
        }
    if "import" in parts:
        record["import"] = noise_training.measure_import(2 if quick else 9)
    record["targets"] = check_targets(record)
    Console().print(setup(record))
    for name, rows in make_tables(record).items():
        Console().print(show(name, rows))
    if out is not None:
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def arguments() -> list[str]:
    """Those of the command, but for where the results are written."""
    given = [word for word in sys.argv[1:] if not word.startswith("--json=")]
    if "--json" in given:
        place = given.index("--json")
        del given[place : place + 2]
    return given


if __name__ == "__main__":
    main()
