"""The figures of the pages are of what the package computes today."""

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from helpers import REPO

pytest.importorskip("matplotlib")

FIGURES = REPO / "docs" / "figures"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", FIGURES / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(script: ModuleType, folder: Path) -> str:
    result = CliRunner().invoke(script.main, ["--check", "--to", str(folder)])
    assert (result.exit_code == 0) == (result.output == "")
    return result.output


def test_the_figures_are_of_todays_values(script):
    assert check(script, FIGURES) == ""


def test_a_figure_of_other_values_is_noticed(script, tmp_path):
    for name in script.FIGURES:
        text = (FIGURES / f"{name}.svg").read_text()
        (tmp_path / f"{name}.svg").write_text(text)
    assert check(script, tmp_path) == ""
    (tmp_path / "packed_row.svg").write_text(text.replace('"m: prompt": [1,', '"m: prompt": [0,'))
    assert "packed_row.svg is of other values" in check(script, tmp_path)


def test_drawing_again_gives_the_same_bytes(script, tmp_path):
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        result = CliRunner().invoke(script.main, ["--to", str(tmp_path / run)])
        assert result.exit_code == 0, result.output
        assert check(script, tmp_path / run) == ""
    for name in script.FIGURES:
        one, other = ((tmp_path / run / f"{name}.svg").read_bytes() for run in ("one", "other"))
        assert one == other


def test_every_schedule_is_drawn_over_the_whole_run(script):
    drawn = script.schedules()
    assert {"constant", "cosine", "exponential", "linear", "polynomial", "step"} <= drawn.keys()
    assert drawn["linear"] == [round(5 * (1 - step / 100), 4) for step in range(100)]
    for title, alphas in drawn.items():
        assert len(alphas) == script.TOTAL_STEPS
        assert max(alphas) == 5, title


def test_the_packed_row_has_the_l_of_each_document(script):
    row = script.packed_row()
    assert row["L: sequence"] == [6] * 6 + [4] * 4 + [5] * 5 + [0] * 2
    assert row["L: noised *"] == [0, 0, 0, 3, 3, 3, 0, 0, 2, 2, 0, 0, 0, 2, 2, 0, 0]
    assert row["L: row"] == [17] * 17
    chosen = zip(row["m: all"], row["m: response"], row["m: prompt"], strict=True)
    assert all(every == response + prompt for every, response, prompt in chosen)


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.svg")), ids=lambda path: path.stem)
def test_a_figure_is_small_and_stands_alone(path):
    assert path.stat().st_size < 60_000
    root = ElementTree.parse(path).getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(texts) > 10
    links = [value for node in root.iter() for name, value in node.items() if "href" in name]
    assert all(link.startswith("#") for link in links)
