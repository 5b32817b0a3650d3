"""The benchmark runs; what it measured is in results/, and no test asserts a time."""

import json
import statistics
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from commands import run_script
from pages import DOCS, table_rows

SCRIPT = Path(__file__).with_name("sparsity_memory.py")


@pytest.mark.slow
def test_every_kind_of_training_is_measured(tmp_path):
    out = tmp_path / "results.json"
    options = ["--hidden", "32", "--tokens", "8", "--rounds", "1", "--json", str(out)]
    code, shown = run_script(tmp_path, [str(SCRIPT), *options])
    assert code == 0, shown
    results = json.loads(out.read_text())["results"]
    kinds = {(one["trained"], one["dtype"]) for one in results}
    assert kinds == {
        (trained, dtype) for trained in ("LoRA, r 16", "full") for dtype in ("float32", "bfloat16")
    }
    for one in results:
        assert len(one["step_ratio"]) == len(one["update_ratio"]) == 1
        size = 4 if one["dtype"] == "float32" else 2
        # theta_0 (9 of 20 entries are in A, and B begins as 0); a bit; a float of each 31.
        share = 9 / 20 if "LoRA" in one["trained"] else 1
        assert one["bytes"] == pytest.approx(share * size + 1 / 8 + 4 / 31, abs=0.1)
        assert one["bytes_in_window"] == pytest.approx(one["bytes"] + 4, abs=0.05)
        assert str(one["bytes_in_window"]) in shown


def test_the_costs_that_are_quoted_were_measured():
    quoted = table_rows(DOCS / "sparsity.md")
    path = SCRIPT.parent / "results" / "sparsity_memory_cpu.json"
    for one in json.loads(path.read_text())["results"]:
        sizes = [f"{one[name]:.2f}" for name in ("bytes", "bytes_in_window", "bytes_saved")]
        times = [
            f"{rounded(statistics.median(each))} ({rounded(min(each))} to {rounded(max(each))})"
            for each in (one["step_ratio"], one["update_ratio"])
        ]
        assert [f"{one['trained']}, {one['dtype']}", *sizes, *times] in quoted


def rounded(ratio: float) -> Decimal:
    """To two places; a half of the last goes up, as by hand."""
    return Decimal(str(ratio)).quantize(Decimal("0.01"), ROUND_HALF_UP)
