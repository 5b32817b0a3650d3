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

from neft_plugins.report import paired_difference

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
        a = [of_rows(theirs[seed][reference_model or model], metric) for seed in seeds]
        b = [of_rows(ours[seed][model], metric) for seed in seeds]
        by_seed = [
            paired_difference(x, y, resamples=1).difference for x, y in zip(a, b, strict=True)
        ]
        rows = [
            [None if p is None or q is None else q - p for p, q in zip(x, y, strict=True)]
            for x, y in zip(a, b, strict=True)
        ]
        changes = over_seeds(rows)
        found = paired_difference([0.0] * len(changes), changes, level=self.level)
        if found.difference is None or found.interval is None or None in by_seed:
            return None
        return Difference(found.difference, found.interval, [x for x in by_seed if x is not None])


def read(path: Path) -> list[Line]:
    """The lines of the study."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def of_rows(measured: dict[str, Any], metric: str) -> Values:
    """'test_losses', or 'test_outputs rouge_l', or 'typos_losses - test_losses', of each row."""
    if " - " in metric:
        a, b = (of_rows(measured, part) for part in metric.split(" - "))
        return [None if x is None or y is None else x - y for x, y in zip(a, b, strict=True)]
    found: Any = measured
    for part in metric.split():
        found = found[part]
    return found


def over_seeds(values: list[Values]) -> Values:
    """Of each row, the mean over the seeds that have a value."""
    columns = ([v for v in column if v is not None] for column in zip(*values, strict=True))
    return [statistics.fmean(known) if known else None for known in columns]


def mean(values: Values) -> float:
    return statistics.fmean(value for value in values if value is not None)
