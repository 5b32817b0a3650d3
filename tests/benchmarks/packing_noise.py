"""The noise that each document gets in Axolotl's rows: the built-in's alone, and the plugin's.

Every number is from ``axolotl train`` on a text that it tokenizes, pads or packs itself, at its
embeddings. A document of n tokens, with embeddings of size d, should get noise of RMS
alpha / sqrt(3 n d); the ratio is what it got over that. In a row of T places the built-in gives
sqrt(n / T) of it, and the plugin 1.

    python tests/benchmarks/packing_noise.py
    python tests/benchmarks/packing_noise.py --data alpaca.json --documents 128 --sequence-len 2048

Documents are told apart in the token ids (each begins with BOS), not by what the model is told.
"""

import json
import math
import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from axolotl_runs import PLUGIN, RECORDER, run_axolotl
from helpers import DATA, MODEL, REPO

ALPHA = 5.0
ROWS = {
    "padded": {},
    "padded to sequence_len": {"pad_to_sequence_len": True},
    "packed": {"sample_packing": True},
}
NOISES = {"built-in": [RECORDER], "plugin": [PLUGIN, RECORDER]}
PROMPTED = {"field_instruction": "prompt", "field_output": "completion", "format": "{instruction}"}
PACKAGES = ("neft-plugins", "axolotl", "transformers", "trl", "torch")


def read_texts(path: Path, count: int) -> list[dict[str, str]]:
    """The first rows of a JSON list or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines())
    return list(rows)[:count]


def write_dataset(texts: list[dict[str, str]], path: Path) -> dict[str, Any]:
    """Axolotl's entry for Alpaca's columns, or for prompts and completions."""
    path.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    prompts = "alpaca" if "instruction" in texts[0] else PROMPTED
    return {"path": str(path), "ds_type": "json", "type": prompts}


def measure(passes: list[Any], bos: int, pad: int) -> list[dict[str, float]]:
    """Each document's tokens, row width and ratio, over all the passes of a run."""
    documents = []
    for step in passes:
        starts, real = step.ids == bos, step.ids != pad
        assert starts[:, 0].all(), "a row does not begin with a document"
        numbers = starts.flatten().cumsum(0).view(starts.shape)
        squares = step.noise.float().square().mean(-1)
        for number in numbers.unique():
            inside = (numbers == number) & real
            tokens = int(inside.sum())
            expected = ALPHA / math.sqrt(3 * tokens * step.noise.shape[-1])
            rms = squares[inside].mean().sqrt().item()
            width = step.ids.shape[1]
            documents.append({"tokens": tokens, "width": width, "ratio": rms / expected})
    return documents


def summarize(documents: list[dict[str, float]], noise: str) -> dict[str, Any]:
    """Mean and spread over documents, beside the mean of the closed form."""
    ratios = [document["ratio"] for document in documents]
    widths = [document["width"] for document in documents]
    closed = [math.sqrt(d["tokens"] / d["width"]) if noise == "built-in" else 1 for d in documents]
    twentieths = statistics.quantiles(ratios, n=20)
    return {
        "noise": noise,
        "documents": len(documents),
        "tokens_per_document": round(statistics.mean(d["tokens"] for d in documents), 1),
        "row_width": [min(widths), max(widths)],
        "ratio_mean": round(statistics.mean(ratios), 4),
        "ratio_sd": round(statistics.stdev(ratios), 4),
        "ratio_5_to_95_percent": [round(twentieths[0], 4), round(twentieths[-1], 4)],
        "closed_form_mean": round(statistics.mean(closed), 4),
        "largest_gap": round(max(abs(a / b - 1) for a, b in zip(ratios, closed, strict=True)), 4),
    }


def machine() -> str:
    """The processor, and how many cores of it."""
    from os import cpu_count

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{cpu_count()} cores of {(names or [platform.machine()])[0]}"


def show(results: list[dict[str, Any]]) -> Table:
    """The table that is printed."""
    table = Table("rows", "noise", "documents", "tokens each", "row width", "ratio: mean", "sd")
    for heading in ("5 % to 95 %", "closed form", "largest gap"):
        table.add_column(heading)
    for one in results:
        low, high = one["ratio_5_to_95_percent"]
        widths = " to ".join(str(width) for width in sorted(set(one["row_width"])))
        counts = (str(one["documents"]), str(one["tokens_per_document"]), widths)
        spread = (f"{one['ratio_sd']:.3f}", f"{low:.3f} to {high:.3f}")
        ends = (f"{one['closed_form_mean']:.3f}", f"{one['largest_gap']:.1%}")
        table.add_row(
            one["rows"], one["noise"], *counts, f"{one['ratio_mean']:.3f}", *spread, *ends
        )
    return table


@click.command(help=__doc__.partition("\n")[0])
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path(DATA) / "train.jsonl",
    help="JSON or JSON lines: instruction, input, output, or prompt, completion.",
)
@click.option("--documents", default=256, show_default=True, help="How many of its first rows.")
@click.option("--sequence-len", default=512, show_default=True)
@click.option("--micro-batch-size", default=2, show_default=True)
@click.option("--rows", type=click.Choice(list(ROWS)), multiple=True, default=list(ROWS))
@click.option("--seed", default=7, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the results there too.")
def main(
    data: Path,
    documents: int,
    sequence_len: int,
    micro_batch_size: int,
    rows: tuple[str, ...],
    seed: int,
    out: Path | None,
) -> None:
    """Run, measure, print."""
    tokens = json.loads((Path(MODEL) / "config.json").read_text())
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        dataset = write_dataset(read_texts(data, documents), Path(temporary) / "texts.jsonl")
        for row in rows:
            for noise, plugins in NOISES.items():
                folder = Path(temporary) / f"{row} {noise}"
                folder.mkdir()
                run = run_axolotl(
                    folder,
                    **ROWS[row],
                    plugins=plugins,
                    neftune_noise_alpha=ALPHA,
                    datasets=[dataset],
                    sequence_len=sequence_len,
                    micro_batch_size=micro_batch_size,
                    seed=seed,
                    max_steps=None,
                    num_epochs=1,
                    learning_rate=1e-5,
                )
                measured = measure(run.passes, tokens["bos_token_id"], tokens["pad_token_id"])
                results.append({"rows": row, **summarize(measured, noise)})
    Console().print(show(results))
    if out is not None:
        command = f"python tests/benchmarks/packing_noise.py --data {data.name} --seed {seed}"
        record = {
            "what": "noise RMS of each document over alpha / sqrt(3 n d), in Axolotl's rows",
            "command": f"{command} --documents {documents} --sequence-len {sequence_len} "
            f"--micro-batch-size {micro_batch_size}",
            "alpha": ALPHA,
            "model": str(Path(MODEL).relative_to(REPO)),
            "machine": machine(),
            "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            "results": results,
        }
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
