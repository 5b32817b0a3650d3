"""The benchmark runs, and the page quotes its results; no test asserts a time."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import run_script
from helpers import run_python

HERE = Path(__file__).parent
RESULTS = sorted((HERE / "results").glob("noise_op_*.json"))


def run(script: str, *arguments: str) -> str:
    return run_python(str(HERE / script), *arguments, timeout=300, COLUMNS="160")


def run_forked(folder: Path, *arguments: str) -> str:
    """The benchmark, in a process that has imported the hosts."""
    code, shown = run_script(folder, [str(HERE / "noise_op.py"), *arguments])
    assert code == 0, shown
    return shown


@pytest.mark.slow
def test_everything_is_measured(tmp_path):
    out = tmp_path / "results.json"
    shown = run_forked(tmp_path, "--quick", "--device", "cpu", "--json", str(out))
    record = json.loads(out.read_text())
    assert record["command"] == "python tests/benchmarks/noise_op.py --quick --device cpu"
    assert record["versions"].keys() >= {"python", "neft-plugins", "transformers", "torch"}
    assert record["skipped"] == []
    kinds = [(one["dtype"], one["distribution"], one["tokens"]) for one in record["operation"]]
    assert len(kinds) == len(set(kinds)) == 3
    assert [one["documents"] for one in record["packed"]] == [1, 8]
    for one in record["operation"] + record["packed"]:
        assert list(one["noises"]) == ["hook", "in place", "fresh", "copy"]
        assert one["lookup_ms"] > 0
        assert one["rounds"] >= 5
        for noise in ("hook", "in place", "fresh"):
            ratio = one["noises"][noise]["over_hook"]
            low, high = ratio["25_to_75_percent"]
            assert 0 < low <= ratio["median"] <= high < math.inf
        extra = {noise: found["extra_memory"] for noise, found in one["noises"].items()}
        # Rounded up to what an allocator gives; the hook's length and bound are tensors too.
        assert extra["hook"] == pytest.approx(2, abs=0.02)
        assert extra["copy"] == pytest.approx(1, abs=0.02)
        assert extra["fresh"] == pytest.approx(extra["in place"] + 1, abs=0.02)
    steps = record["step"]["noises"]
    assert list(steps) == ["off", "off again", "built-in", "ours"]
    assert all(one["ms"] > 0 and one["over_off"]["median"] > 0 for one in steps.values())
    compiled = record["compiled"]
    assert compiled["alphas"] == compiled["steps"] == 20
    assert compiled["graphs"] == 1
    assert compiled["recompilations"] == compiled["graph_breaks"] == 0
    assert compiled["synchronizations"] is None
    assert 0 < record["import"]["package_ms"] < record["import"]["package_and_names_ms"]
    targets = {one["target"]: one for one in record["targets"]}
    assert targets["recompilations"]["reached"] is True
    assert targets["time / hook, fresh"]["reached"] is None  # of large shapes
    assert "reached" in shown


@pytest.mark.slow
def test_what_takes_too_much_memory_is_left_out_and_said(tmp_path):
    out = tmp_path / "results.json"
    options = ("--quick", "--part", "operation", "--memory", "-1", "--device", "cpu")
    shown = run_forked(tmp_path, *options, "--json", str(out))
    record = json.loads(out.read_text())
    assert record["operation"] == []
    assert [one["d"] for one in record["skipped"]] == [64, 64, 48]
    assert "packed" not in record
    assert "Left out" in shown


def test_the_page_is_what_the_results_say():
    run("noise_op_page.py", "--check")


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.stem)
def test_the_results_are_of_the_whole_benchmark(results):
    record = json.loads(results.read_text())
    options = record["command"].partition("noise_op.py")[2]
    assert "--quick" not in options
    assert "--part" not in options
    assert record["machine"]
    assert all(one["figure"] is not None for one in record["targets"][:-1])
    assert all(
        one["reached"] == (one["figure"] <= one["limit"])
        for one in record["targets"]
        if one["figure"] is not None
    )


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.stem)
def test_the_plot_is_drawn(results, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "plot.svg"
    run("plot_noise_op.py", str(results), str(out))
    assert ElementTree.parse(out).getroot().tag.endswith("svg")
    text = out.read_text()
    assert all(f">{word}</text>" in text for word in ("fresh", "in place", "copy", "tokens", "d"))
