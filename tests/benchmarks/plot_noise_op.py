"""Draw the time of the noise over that of transformers' hook, by tokens and by d.

python tests/benchmarks/plot_noise_op.py
python tests/benchmarks/plot_noise_op.py RESULTS.json PLOT.svg
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from matplotlib import pyplot as plt
from svg import STYLE, save

RESULTS = Path(__file__).parent / "results" / "noise_op_cpu.json"
PLOT = Path(__file__).resolve().parents[2] / "docs" / "noise_op_cpu.svg"
# Told apart on white and on black, and without colours by their marks.
LINES = {"fresh": ("#2f8fe0", "o"), "in place": ("#e0712f", "s"), "copy": ("#8a8a8a", "^")}
GREY = "#8a8a8a"
GREYS = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), GREY),
    **dict.fromkeys(("xtick.color", "ytick.color"), GREY),
}


def panels(record: dict[str, Any]) -> list[tuple[str, str, list[tuple[int, dict[str, Any]]]]]:
    """Title, name of the axis, and (place on it, noises) of each panel."""
    made = []
    by_tokens = [case for case in record["operation"] if case["sweep"] == "tokens"]
    for (d, dtype), cases in groupby(by_tokens, lambda case: (case["d"], case["dtype"])):
        points = [(case["batch"][0] * case["batch"][1], case["noises"]) for case in cases]
        made.append((f"d = {d}, {dtype}", "tokens", points))
    by_d = [case for case in record["operation"] if case["sweep"] == "d"]
    batches = groupby(by_d, lambda case: (case["batch"][0] * case["batch"][1], case["dtype"]))
    for (tokens, dtype), cases in batches:
        points = [(case["d"], case["noises"]) for case in cases]
        if len(points) > 1:
            made.append((f"{tokens} tokens, {dtype}", "d", points))
    return made


def draw(results: Path, out: Path) -> None:
    """Write the plot of some results as SVG."""
    record = json.loads(results.read_text(encoding="utf-8"))
    found = panels(record)
    with plt.rc_context(STYLE | GREYS):
        figure, axes = plt.subplots(
            1, len(found), figsize=(9, 2.8), sharey=True, layout="constrained", squeeze=False
        )
        for axis, (title, name, points) in zip(axes[0], found, strict=True):
            axis.axhline(1, color=GREY, linewidth=1, linestyle=":")
            for noise, (color, mark) in LINES.items():
                draw_line(axis, noise, color, mark, points)
            axis.set_xscale("log", base=2)
            places = [place for place, _ in points]
            axis.set_xticks(places, map(short, places))
            axis.minorticks_off()
            axis.set_xlabel(name)
            axis.set_title(f"uniform, {title}", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][0].set_ylim(bottom=0)
        axes[0][0].set_ylabel("time / hook")
        axes[0][-1].legend(frameon=False, fontsize=8)
        save(figure, out, transparent=True)


def short(count: int) -> str:
    """1048576 -> 1M."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if count % unit == 0:
            return f"{count // unit}{name}"
    return str(count)


def draw_line(
    axis: Any, noise: str, color: str, mark: str, points: list[tuple[int, dict[str, Any]]]
) -> None:
    """The medians, and the middle half of the rounds."""
    known = [(place, noises[noise]["over_hook"]) for place, noises in points]
    known = [(place, ratio) for place, ratio in known if ratio is not None]
    places = [place for place, _ in known]
    axis.plot(
        places, [r["median"] for _, r in known], color=color, marker=mark, markersize=4, label=noise
    )
    low, high = zip(*(ratio["25_to_75_percent"] for _, ratio in known), strict=True)
    axis.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


@click.command(help=__doc__.partition("\n")[0])
@click.argument("results", default=RESULTS, type=click.Path(exists=True, path_type=Path))
@click.argument("out", default=PLOT, type=click.Path(path_type=Path))
def main(results: Path, out: Path) -> None:
    """Draw."""
    draw(results, out)


if __name__ == "__main__":
    main()
