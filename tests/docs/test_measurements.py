"""The numbers that docs/benchmarks.md quotes are those of the results beside the benchmarks."""

import json
import statistics
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from helpers import REPO
from pages import DOCS, table_rows


def results(name: str) -> list[dict[str, Any]]:
    path = REPO / "tests" / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text())["results"]


@pytest.mark.parametrize("name", ["alpaca", "quickstart"])
def test_the_noise_that_is_quoted_was_measured(name: str) -> None:
    quoted = table_rows(DOCS / "benchmarks.md")
    for one in results(f"packing_noise_{name}"):
        widths = " to ".join(map(str, sorted(set(one["row_width"]))))
        low, high = one["ratio_5_to_95_percent"]
        ratios = [f"{one['ratio_mean']:.3f}", f"{one['ratio_sd']:.3f}", f"{low:.3f} to {high:.3f}"]
        row = [one["rows"], widths, one["noise"], *ratios, f"{one['closed_form_mean']:.3f}"]
        assert row in quoted, row


@pytest.mark.parametrize("model", ["quickstart", "stories15M"])
def test_the_steps_that_are_quoted_were_measured(model: str) -> None:
    found, quoted = results(f"ranks_cost_{model}"), table_rows(DOCS / "benchmarks.md")
    for engine in {one["engine"] for one in found}:
        ratios = {one["noise"]: one["ratio"] for one in found if one["engine"] == engine}
        cells = [
            f"{rounded(statistics.median(each))} ({rounded(min(each))} to {rounded(max(each))})"
            for each in map(ratios.__getitem__, ("off again", "built-in", "plugin"))
        ]
        assert [model, engine, *cells] in quoted, cells


def rounded(ratio: float) -> Decimal:
    """To two places; a half of the last goes up, as by hand."""
    return Decimal(str(ratio)).quantize(Decimal("0.01"), ROUND_HALF_UP)
