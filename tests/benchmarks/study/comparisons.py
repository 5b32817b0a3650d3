"""What the lines of the study say: arms against the arm without noise, seed by seed.

A difference is taken between runs of one seed, row by row, and averaged over seeds for each row;
its interval is of a bootstrap over rows, at a level that is corrected for the number of arms
(Bonferroni). It counts where the interval leaves 0 and all seeds have its sign.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neft_plugins.report import summary

RESULTS = Path(__file__).resolve().parents[1] / "results" / "study.jsonl"

Line = dict[str, Any]
Model = str  # 'end' or 'best'
Values = list[float | None]


@dataclass(frozen=True)
class Difference:
    """What an arm changes.

    Attributes:
        mean: Arm minus reference.
        interval: Of the mean, over rows.
        by_seed: Its parts.
    """

    mean: float
    interval: tuple[float, float]
    by_seed: list[float]

    @property
    def counts(self) -> bool:
        low, high = self.interval
        same_sign = len({value > 0 for value in self.by_seed}) == 1
        return same_sign and not low <= 0 <= high


class Study:
    """The lines of one task.

    Attributes:
        arms: Arm -> seed -> line, in the order of the arms.
        level: Of the intervals.
    """

    def __init__(self, lines: list[Line], task: str, order: list[str]) -> None:
        found: dict[str, dict[int, Line]] = {arm: {} for arm in order}
        for line in lines:
            settings = line["settings"]
            if settings["task"] == task and settings["arm"] in found:
                found[settings["arm"]][settings["seed"]] = line
        self.arms = {arm: dict(sorted(runs.items())) for arm, runs in found.items() if runs}
        self.level = 1 - 0.05 / max(len(self.arms) - 1, 1)

    def values(self, arm: str, metric: str, model: Model = "end") -> list[Values]:
        """Of each seed, the values of the rows."""
        return [of_rows(line[model], metric) for line in self.arms[arm].values()]

    def by_seed(self, arm: str, metric: str, model: Model = "end") -> list[float]:
        """Of each seed, the mean over the rows."""
        return [mean(values) for values in self.values(arm, metric, model)]

    def by_epoch(self, arm: str, loss: str) -> list[list[float]]:
        """Of each seed, a loss at each evaluation: 'test_loss' or 'validation_loss'."""
        return [[each[loss] for each in run["evaluations"]] for run in self.arms[arm].values()]

    def difference(
        self,
        arm: str,
        metric: str,
        model: Model = "end",
        reference: str = "none",
        reference_model: Model | None = None,
    ) -> Difference | None:
        """What the arm changes against a reference; None without a seed that both have."""
        ours, theirs = self.arms[arm], self.arms.get(reference, {})
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            return None
        changes = [
            changed(
                of_rows(theirs[seed][reference_model or model], metric),
                of_rows(ours[seed][model], metric),
            )
            for seed in seeds
        ]
        by_seed = [
            value for each in changes if (value := summary(each, resamples=1).mean) is not None
        ]
        found = summary(over_seeds(changes), level=self.level)
        if found.mean is None or found.interval is None or len(by_seed) < len(seeds):
            return None
        return Difference(found.mean, found.interval, by_seed)


def read(path: Path) -> list[Line]:
    """The lines of the study."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def of_rows(measured: dict[str, Any], metric: str) -> Values:
    """'test_losses', or 'test_outputs rouge_l', or 'typos_losses - test_losses', of each row."""
    if " - " in metric:
        high, low = (of_rows(measured, part) for part in metric.split(" - "))
        return changed(low, high)
    found: Any = measured
    for part in metric.split():
        found = found[part]
    return found


def changed(before: Values, after: Values) -> Values:
    """Of each row, after minus before; None where either has no value."""
    return [None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)]


def over_seeds(values: list[Values]) -> Values:
    """Of each row, the mean over the seeds that have a value."""
    columns = ([v for v in column if v is not None] for column in zip(*values, strict=True))
    return [statistics.fmean(known) if known else None for known in columns]


def mean(values: Values) -> float:
    return statistics.fmean(value for value in values if value is not None)
