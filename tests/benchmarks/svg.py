"""Figures as SVG, in which text stays text and nothing depends on when they were drawn."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "neft-plugins",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
}


def save(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure and close it."""
    figure.savefig(path, format="svg", metadata={"Date": None}, **options)
    plt.close(figure)
    # matplotlib ends lines with spaces
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")
