"""The study: its rows, its runs, what is made of their lines, and that the page says the same."""

import json
import os
import random
import statistics
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers import MODEL, run_python

pytestmark = pytest.mark.skipif(find_spec("axolotl") is not None, reason="run on the newest")

FOLDER = Path(__file__).with_name("study")
STUDY = """
every_run: {arguments: {per_device_train_batch_size: 4, bf16: true}}
tasks:
  tiny:
    data: commongen
    rows: 12
    prefix: 4
    max_new_tokens: 4
    arguments: {learning_rate: 1.0e-3, max_steps: 5}
arms:
  none: {}
  packed: {packed_to: 64, noise: {alpha: 5, schedule: linear}}
groups: {all: [none, packed]}
"""


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def write_commongen(folder: Path) -> None:
    """Words and sentences in CommonGen's files: 30 sets to train on, and 215 others."""
    (folder / "commongen").mkdir()
    sets = [f"alpha{i} beta{i} gamma" for i in range(245)]
    for name, chosen in (("train", sets[:30]), ("dev", sets[25:])):
        twice = [words for words in chosen for _ in range(2)]
        sentences = [f"The {words} are {n} here." for n, words in enumerate(twice)]
        path = folder / "commongen" / f"commongen.{name}"
        path.with_suffix(f".{name}.src_alpha.txt").write_text("\n".join(twice) + "\n")
        path.with_suffix(f".{name}.tgt.txt").write_text("\n".join(sentences) + "\n")


@pytest.mark.usefixtures("study")
def test_no_set_of_words_is_in_two_splits_and_each_has_all_its_references(tmp_path: Path) -> None:
    from tasks import TEST, VALIDATION, commongen

    write_commongen(tmp_path)
    splits = commongen(tmp_path, 20)
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert sizes == {"train": 20, "validation": VALIDATION, "test": 215 - VALIDATION}
    assert sizes["test"] < TEST
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len({*prompts}) == len(prompts)
    for row in splits["test"]:
        first, second, _ = row["prompt"].removeprefix("Words: ").split("\n")[0].split(", ")
        assert len(row["references"]) == 2
        assert row["completion"] == f" {row['references'][0]}"
        assert all(f"{first} {second}" in reference for reference in row["references"])


@pytest.mark.usefixtures("study")
def test_a_typo_exchanges_two_neighbours_in_about_every_second_long_word() -> None:
    from tasks import typos

    words = ["table", "walking", "cat", "ooo", "eeee", "running"] * 50
    lines = typos(f"Words: {', '.join(words)}\nSentence:", random.Random(0)).split("\n")
    assert lines[1] == "Sentence:"
    changed = lines[0].removeprefix("Words: ").split(", ")
    for before, after in zip(words, changed, strict=True):
        places = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert sorted(before) == sorted(after)
        assert places == [] or [b - a for a, b in pairwise(places)] == [1]
    counts = {w: sum(a != w == b for a, b in zip(changed, words, strict=True)) for w in words}
    assert counts["cat"] == counts["ooo"] == counts["eeee"] == 0
    assert all(10 < counts[word] < 40 for word in ("table", "walking", "running"))


def line_of(arm: str, seed: int, losses: list[float | None]) -> dict[str, Any]:
    settings = {"task": "made-up", "arm": arm, "seed": seed}
    measured = {"test_losses": losses, "typos_losses": [2.0, 2.0, 2.0]}
    return {"settings": settings, "end": measured, "best": measured}


@pytest.mark.usefixtures("study")
def test_a_difference_is_paired_by_seed_and_row_and_counts_where_all_seeds_agree() -> None:
    from comparisons import Study

    none: dict[int, list[float | None]] = {0: [1.0, 2.0, 3.0], 1: [2.0, 3.0, 4.0], 7: [9.0] * 3}
    noise: dict[int, list[float | None]] = {1: [1.5, 2.0, None], 0: [0.0, 1.9, 2.5], 5: [0.0] * 3}
    lines = [line_of("none", seed, losses) for seed, losses in none.items()]
    lines += [line_of("noise", seed, losses) for seed, losses in noise.items()]
    study = Study(lines, "made-up", ["none", "noise", "not run"])
    assert [*study.arms] == ["none", "noise"]
    found = study.difference("noise", "test_losses")
    assert found is not None
    rows = [(-1 - 0.5) / 2, (-0.1 - 1) / 2, -0.5]  # of both seeds; the last of seed 0 alone
    assert found.mean == pytest.approx(statistics.fmean(rows))
    assert found.by_seed == pytest.approx([-1.6 / 3, -0.75])
    assert found.counts
    draws = np.random.default_rng(1).integers(3, size=(20_000, 3))
    edges = np.quantile(np.array(rows)[draws].mean(axis=1), [0.025, 0.975])
    assert found.interval == pytest.approx(tuple(edges), abs=0.02)
    gap = study.difference("noise", "typos_losses - test_losses")
    assert gap is not None
    assert gap.mean == pytest.approx(-statistics.fmean(rows))

    lines[4]["end"]["test_losses"] = [1.5, 2.6, 3.3]  # of seed 0: higher than without noise
    found = Study(lines, "made-up", ["none", "noise"]).difference("noise", "test_losses")
    assert found is not None
    assert not found.counts


@pytest.mark.usefixtures("study")
def test_a_difference_of_which_one_seed_has_the_other_sign_does_not_count() -> None:
    from comparisons import Study

    lines = [line_of("none", seed, [1.0] * 3) for seed in (0, 1)]
    lines += [line_of("noise", 0, [1.1] * 3), line_of("noise", 1, [0.0] * 3)]
    found = Study(lines, "made-up", ["none", "noise"]).difference("noise", "test_losses")
    assert found is not None
    assert found.interval[1] < 0
    assert not found.counts


@pytest.mark.usefixtures("study")
def test_the_table_of_losses_has_the_end_the_best_epoch_and_both_differences() -> None:
    from comparisons import Study
    from page import losses, markdown

    lines = [line_of("none", seed, [3.0 + seed] * 3) for seed in (0, 1)]
    lines += [line_of("noise", seed, [2.5 + seed] * 3) for seed in (0, 1)]
    for line, best in zip(lines, (2.0, 3.0, 1.75, 2.75), strict=True):
        line["best"] = line["best"] | {"test_losses": [best] * 3, "step": 3}
        line["settings"]["arguments"] = {"max_steps": 5}
    table = markdown(losses(Study(lines, "made-up", ["none", "noise"])))
    none, noise = table.splitlines()[2:]
    assert none == (
        "| none | 3.500 ± 0.707 |  | 2.500 ± 0.707 (epoch 3) |  | **+1.000** (+1.000 to +1.000) |"
    )
    assert noise == (
        "| noise | 3.000 ± 0.707 | **-0.500** (-0.500 to -0.500) | 2.250 ± 0.707 (epoch 3) "
        "| **-0.250** (-0.250 to -0.250) | **+0.500** (+0.500 to +0.500) |"
    )


@pytest.mark.usefixtures("study")
def test_the_table_of_answers_has_held_out_rouge_and_training_answers_recited() -> None:
    from comparisons import Study
    from page import answers

    def outputs(rouge: float, verbatim: float) -> dict[str, list[float]]:
        given = {"rouge_l": rouge, "verbatim": verbatim, "words": 9.0, "repetition": 0.5}
        return {metric: [value] * 3 for metric, value in given.items()}

    lines = [line_of("packed-none", 0, [1.0]), line_of("packed-noise", 0, [1.0])]
    for line, held_out, recited in zip(lines, (0.25, 0.5), (1.0, 0.0), strict=True):
        for model, gain in (("end", 0.0), ("best", 0.125)):
            line[model] = {
                "test_outputs": outputs(held_out * (1 + gain), 0.75),
                "train_outputs": outputs(0.875, recited),
            }
    none, noise = answers(Study(lines, "made-up", ["packed-none", "packed-noise"]))[1:]
    assert none == ["packed-none", "0.250", "", "", "100.0%", "", "9.0", "50.0%"]
    assert noise[1:4] == [
        "0.500",
        "**+0.250** (+0.250 to +0.250)",
        "**+0.281** (+0.281 to +0.281)",
    ]
    assert noise[4:] == ["0.0%", "**-100.0** (-100.0 to -100.0)", "9.0", "50.0%"]


@pytest.mark.usefixtures("study")
def test_an_interval_is_wider_the_more_arms_there_are() -> None:
    from comparisons import Study

    draw = np.random.default_rng(0)
    arms = ["none", *"abcdefgh"]
    lines = [line_of(arm, 0, draw.normal(size=50).tolist()) for arm in arms]
    few, many = Study(lines, "made-up", arms[:2]), Study(lines, "made-up", arms)
    assert (few.level, many.level) == (0.95, 1 - 0.05 / 8)
    intervals = [study.difference("a", "test_losses") for study in (few, many)]
    widths = [found.interval[1] - found.interval[0] for found in intervals if found is not None]
    assert widths[1] > 1.2 * widths[0]


@pytest.mark.usefixtures("study")
def test_the_example_report_has_no_text_of_the_data() -> None:
    from example_report import without_texts

    example = {"prompt": "PROMPT", "reference": "GIVEN", "references": ["GIVEN"], "output": "SAID"}
    run = {"name": "none", "path": "/home/me/none"}
    run["splits"] = {"train": {"examples": [{**example}]}, "test": {"examples": [{**example}]}}
    found = without_texts({"runs": [run], "problems": ["a problem"]})
    text = json.dumps(found)
    assert "PROMPT" not in text
    assert "GIVEN" not in text
    assert "/home" not in text
    assert text.count("SAID") == 1  # of the held-out prompt
    assert found["problems"][0] == "a problem"


@pytest.mark.slow
def test_the_page_is_what_the_lines_say() -> None:
    run_python(str(FOLDER / "page.py"), "--check", timeout=300)


@pytest.mark.usefixtures("study")
def test_the_arms_of_a_seed_had_the_same_rows_in_the_same_order() -> None:
    from comparisons import read

    orders: dict[tuple[Any, ...], set[str]] = {}
    for line in read(FOLDER.parent / "results" / "study.jsonl"):
        settings = line["settings"]
        how = settings["arguments"]
        batch = (settings.get("packed_to"), how["per_device_train_batch_size"], how["max_steps"])
        same = orders.setdefault((line["rows_digest"], settings["seed"], *batch), set())
        same.add(line["order_digest"])
    assert {len(found) for found in orders.values()} == {1}
    assert len({order for found in orders.values() for order in found}) == len(orders)


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "constant-3"], "arms.yaml has no constant-3."),
        (["--task", "commongen"], "arms.yaml has no commongen."),
        (["--again", "commongen-600/none/99"], "has no run of the name commongen-600/none/99."),
    ],
)
def test_what_is_not_there_is_said(options: list[str], message: str, tmp_path: Path) -> None:
    from run import main

    output = str(tmp_path / "lines.jsonl")
    given = ["--model", MODEL, "--data", str(tmp_path), "--output", output]
    result = CliRunner().invoke(main, [*given, *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.slow
@pytest.mark.usefixtures("study")
def test_runs_go_on_where_they_stopped_and_are_made_again_bit_for_bit(tmp_path: Path) -> None:
    from run import main

    write_commongen(tmp_path)
    study, output = tmp_path / "study.yaml", tmp_path / "lines.jsonl"
    study.write_text(STUDY)
    options = ["--model", MODEL, "--data", tmp_path, "--work", tmp_path / "work", "--study", study]
    given = [str(x) for x in (*options, "--output", output, "--task", "tiny")]

    def command(*more: str) -> Result:
        with mock.patch.dict(os.environ):  # it sets those of its processes
            return CliRunner().invoke(main, [*given, *more])

    command("--arms", "none", "--seeds", "1", "--first-seed", "3")
    shown = command("--arms", "all", "--seeds", "1", "--first-seed", "3", "--jobs", "2").output
    assert [line.split(":")[0] for line in shown.splitlines() if "test loss" in line] == [
        "tiny/packed/3"
    ]
    none, packed = (json.loads(line) for line in output.open())
    assert none["settings"]["arguments"]["per_device_train_batch_size"] == 4
    assert packed["settings"]["noise"] == {"alpha": 5, "schedule": "linear"}
    assert none["rows_digest"] == packed["rows_digest"]
    assert none["order_digest"] != packed["order_digest"]
    assert [e["step"] for e in none["evaluations"]] == [1, 2, 3, 4, 5]
    for line in (none, packed):
        assert line["end"]["step"] == 5
        best = min(line["evaluations"], key=lambda e: e["validation_loss"])
        assert line["best"]["step"] == best["step"]
        assert statistics.fmean(line["best"]["test_losses"]) == pytest.approx(
            best["test_loss"], abs=1e-4
        )
        assert len(line["end"]["train_losses"]) == 12
        assert len(line["end"]["train_outputs"]["verbatim"]) == 12
    assert "neft/alpha" in packed["log"][0]
    assert "neft/alpha" not in none["log"][0]
    packed["weights_digest"] = "another"
    output.write_text(f"{json.dumps(none)}\n{json.dumps(packed)}\n")
    again = command("--again", "tiny/packed/3", "--again", "tiny/none/3")
    said = [line for line in again.output.splitlines() if "loss" not in line and "/3: " in line]
    differs = "tiny/packed/3: differs in weights_digest"
    assert sorted(said) == ["tiny/none/3: the same", differs], again.output
    assert again.exit_code == 1
