"""The benchmark runs, and what it measures is what the equation says."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("axolotl")


@pytest.mark.slow
def test_the_built_in_gives_sqrt_n_over_the_row_and_the_plugin_all_of_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from packing_noise import main  # run here, its runs share this process's server of forks

    out = tmp_path / "results.json"
    options = ["--rows", "padded", "--rows", "packed", "--documents", "16"]
    options += ["--sequence-len", "256", "--json", str(out)]
    ran = CliRunner(env={"COLUMNS": "140"}).invoke(main, options, catch_exceptions=False)
    results = json.loads(out.read_text())["results"]
    assert [(one["rows"], one["noise"]) for one in results] == [
        ("padded", "built-in"),
        ("padded", "plugin"),
        ("packed", "built-in"),
        ("packed", "plugin"),
    ]
    for one in results:
        assert one["documents"] == 16
        assert one["largest_gap"] < 0.03  # of one document; five standard errors of 6000 draws
        assert one["ratio_mean"] == pytest.approx(one["closed_form_mean"], rel=0.01)
        assert f"{one['ratio_mean']:.3f}" in ran.output
        if one["noise"] == "plugin":
            assert one["closed_form_mean"] == 1
        else:
            share = (one["tokens_per_document"] / one["row_width"][0]) ** 0.5
            assert one["ratio_mean"] == pytest.approx(share, rel=0.03)
            assert (one["ratio_mean"] < 0.6) == (one["rows"] == "packed")
