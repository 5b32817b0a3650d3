"""The figures of docs/results.md."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from comparisons import Line, Study
from matplotlib import pyplot as plt

STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "neft-plugins",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
}
# Okabe and Ito's colours.
COLORS = {
    "none": "#222222",
    "constant-5": "#0072b2",
    "linear-5-0": "#e69f00",
    "linear-0-5": "#009e73",
    "weight-decay": "#767676",
    "dropout": "#767676",
}
OTHER = "#56b4e9"
PARETO = ("none", "constant-1", "constant-2", "constant-5", "linear-5-0", "linear-0-5")
PARETO += ("linear-5-0-response", "relative-0.3", "weight-decay", "dropout")
TASKS = {
    "learning rate 5e-5, the best without noise": "commongen-600",
    "learning rate 2e-4": "commongen-600-2e-4",
}
CURVES = ("none", "constant-5", "linear-5-0", "linear-0-5")


def draw(lines: list[Line], folder: Path) -> None:
    """Write every figure."""
    studies = {title: Study(lines, task, [*PARETO]) for title, task in TASKS.items()}
    with plt.rc_context(STYLE):
        save(pareto(studies), folder / "study_pareto.svg")
        save(curves(next(iter(studies.values()))), folder / "study_losses.svg")


def pareto(studies: dict[str, Study]) -> Any:
    """Held-out loss at the end against recitation; the best epoch without noise beside it."""
    figure, axes = plt.subplots(1, len(studies), figsize=(9, 3.6), layout="constrained")
    for axis, (title, study) in zip(axes, studies.items(), strict=True):
        for arm in study.arms:
            color = COLORS.get(arm, OTHER)
            point(axis, study, arm, "end", color, "o")
            if arm == "none":
                point(axis, study, arm, "best", color, "*")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("held-out loss, nats per token")
        axis.set_ylim(bottom=-1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("training answers recited, %")
    return figure


def point(axis: Any, study: Study, arm: str, model: str, color: str, mark: str) -> None:
    """The mean of an arm's seeds, with its name, and each seed as a dot."""
    losses = study.by_seed(arm, "test_losses", model)
    recited = [100 * x for x in study.by_seed(arm, "train_outputs verbatim", model)]
    axis.scatter(losses, recited, s=6, color=color, alpha=0.4, linewidths=0)
    center = statistics.fmean(losses), statistics.fmean(recited)
    axis.scatter(*center, s=90 if mark == "*" else 36, color=color, marker=mark)
    name = arm if model == "end" else f"{arm}, best epoch"
    axis.annotate(name, center, xytext=(6, 4), textcoords="offset points", fontsize=8)


def curves(study: Study) -> Any:
    """Held-out loss of each epoch, and the range of the seeds."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for arm in CURVES:
        if arm not in study.arms:
            continue
        by_seed = [
            [e["test_loss"] for e in line["evaluations"]] for line in study.arms[arm].values()
        ]
        means = over(by_seed, statistics.fmean)
        places = range(1, len(means) + 1)
        axis.plot(places, means, color=COLORS[arm], marker="o", markersize=4, label=arm)
        axis.fill_between(
            places,
            over(by_seed, min),
            over(by_seed, max),
            color=COLORS[arm],
            alpha=0.15,
            linewidth=0,
        )
    axis.set_xlabel("epoch")
    axis.set_ylabel("held-out loss, nats per token")
    axis.set_xticks(range(1, 6))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def over(by_seed: list[list[float]], what: Any) -> Sequence[float]:
    """Of each epoch, the mean, least or largest of the seeds."""
    return [what(each) for each in zip(*by_seed, strict=True)]


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    # matplotlib ends lines with spaces
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")
