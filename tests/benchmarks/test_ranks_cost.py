"""The benchmark runs; what it measured is in results/, and no test asserts a time."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner


@pytest.mark.slow
@pytest.mark.skipif(find_spec("axolotl") is not None, reason="run on the newest versions")
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_every_noise_is_measured_in_every_round(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from ranks_cost import main  # run here, its runs share this process's server of forks

    out = tmp_path / "results.json"
    options = ["--engines", "one process", "--engines", "DDP", "--steps", "3", "--rounds", "1"]
    options += ["--tokens", "16", "--json", str(out)]
    ran = CliRunner(env={"COLUMNS": "140"}).invoke(main, options, catch_exceptions=False)
    results = json.loads(out.read_text())["results"]
    noises = ["off", "off again", "built-in", "plugin"]
    assert [one["noise"] for one in results] == noises * 2
    for one in results:
        assert len(one["ratio"]) == 1
        assert one["step_ms"] > 0
        assert (one["ratio"] == [1.0]) or one["noise"] != "off"
        assert f"{one['step_ms']:.1f}" in ran.output
