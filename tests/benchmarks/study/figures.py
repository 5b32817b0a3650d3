"""The figures of docs/results.md."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparisons import Line, Study
from matplotlib import pyplot as plt
from svg import STYLE, save

BLACK, GREY = "#222222", "#767676"
# Okabe and Ito's colours; arms of one colour differ in their marks.
ARMS = {
    "none": (BLACK, "o"),
    "constant-1": ("#56b4e9", "v"),
    "constant-2": ("#56b4e9", "o"),
    "constant-5": ("#56b4e9", "^"),
    "relative-0.3": ("#0072b2", "o"),
    "linear-5-0": ("#e69f00", "v"),
    "linear-0-5": ("#e69f00", "^"),
    "linear-5-0-response": ("#009e73", "o"),
    "dropout": ("#cc79a7", "s"),
    "weight-decay": (GREY, "s"),
}
CURVES = ("none", "constant-2", "relative-0.3", "dropout", "linear-5-0-response")
TASKS = {
    "learning rate 5e-5, the best without noise": "commongen-600",
    "learning rate 2e-4": "commongen-600-2e-4",
}


def draw(lines: list[Line], folder: Path) -> None:
    """Write every figure."""
    studies = {title: Study(lines, task, [*ARMS]) for title, task in TASKS.items()}
    first = next(iter(studies.values()))
    with plt.rc_context(STYLE):
        save(changes(first), folder / "study_changes.svg")
        save(curves(first), folder / "study_losses.svg")
        save(pareto(studies), folder / "study_pareto.svg")


def changes(study: Study) -> Any:
    """What each arm changes in the held-out loss, against none at its end and at its best epoch."""
    arms = [arm for arm in reversed(study.arms) if arm != "none"]
    figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    axis.axvline(0, color=GREY, linewidth=1, linestyle=":")
    for model, mark, above in (("end", "o", 0.14), ("best", "s", -0.14)):
        found = [study.difference(arm, "test_losses", "end", "none", model) for arm in arms]
        for place, one in enumerate(found):
            if one is None:
                continue
            color = GREY
            if one.counts:
                color = "#009e73" if one.mean < 0 else "#d55e00"
            axis.plot(one.interval, [place + above] * 2, color=color, linewidth=1.5)
            filling = color if model == "best" else "white"
            axis.plot(one.mean, place + above, mark, color=color, markerfacecolor=filling)
        epoch = "after as many steps" if model == "end" else "at its best epoch"
        filling = BLACK if model == "best" else "white"
        label = f"against none {epoch}"
        axis.plot([], [], mark, color=BLACK, markerfacecolor=filling, label=label)
    axis.set_yticks(range(len(arms)), arms)
    axis.set_xlabel("change of the held-out loss at the end, nats per token")
    axis.legend(frameon=False, loc="lower right", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def curves(study: Study) -> Any:
    """Held-out loss after each epoch: the mean of the seeds, and their range."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for arm in CURVES:
        color, mark = ARMS[arm]
        by_seed = study.by_epoch(arm, "test_loss")
        means, lows, highs = (over(by_seed, what) for what in (statistics.fmean, min, max))
        places = range(1, len(means) + 1)
        axis.plot(places, means, color=color, marker=mark, markersize=4, label=arm)
        axis.fill_between(places, lows, highs, color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("epoch")
    axis.set_ylabel("held-out loss, nats per token")
    axis.set_xticks(range(1, 6))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def pareto(studies: dict[str, Study]) -> Any:
    """Held-out loss at the end against recitation, and none at its best epoch beside it."""
    figure, axes = plt.subplots(1, len(studies), figsize=(9, 3.6), layout="constrained")
    for axis, (title, study) in zip(axes, studies.items(), strict=True):
        for arm in study.arms:
            point(axis, study, arm, "end", *ARMS[arm])
            if arm == "none":
                point(axis, study, arm, "best", ARMS[arm][0], "*")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("held-out loss, nats per token")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("training answers recited, %")
    names, labels = axes[0].get_legend_handles_labels()
    figure.legend(names, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


def point(axis: Any, study: Study, arm: str, model: str, color: str, mark: str) -> None:
    """The mean of an arm's seeds, and each seed as a dot."""
    losses = study.by_seed(arm, "test_losses", model)
    recited = [100 * x for x in study.by_seed(arm, "train_outputs verbatim", model)]
    axis.scatter(losses, recited, s=5, color=color, alpha=0.4, linewidths=0)
    center = statistics.fmean(losses), statistics.fmean(recited)
    name = arm if model == "end" else f"{arm}, best epoch"
    axis.scatter(*center, s=90 if mark == "*" else 36, color=color, marker=mark, label=name)


def over(by_seed: list[list[float]], what: Any) -> Sequence[float]:
    """Of each epoch, the mean, least or largest of the seeds."""
    return [what(each) for each in zip(*by_seed, strict=True)]
