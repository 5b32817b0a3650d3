"""``neft report``, as it is typed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from neft_plugins.cli.commands import neft
from neft_plugins.report import evaluation

SMALL = ["--rows", "4", "--generations", "2", "--max_new_tokens", "8", "--batch_size", "4"]


def run(*words: object) -> Result:
    return CliRunner().invoke(neft, ["report", *map(str, words)], catch_exceptions=False)


def given(files: dict[str, Path]) -> list[object]:
    return ["--train", files["train"], "--test", files["test"]]


@pytest.mark.slow
def test_one_run_of_neft_sft_needs_no_more_than_its_folder(full_run):
    result = run(full_run, *SMALL)
    assert result.exit_code == 0, result.output
    folder = full_run / "report"
    assert f"Written to {folder / 'report.html'}." in result.output
    report = json.loads((folder / "report.json").read_text())
    assert report["command"] == (
        f"neft report {full_run} --rows 4 --generations 2 --max_new_tokens 8 --batch_size 4"
    )
    assert report["settings"]["generations"] == 2
    assert report["runs"][0]["problems"] == []
    assert len(report["runs"][0]["splits"]["test"]["examples"]) == 1  # 4 rows have one prompt
    figures = {path.stem for path in folder.glob("*.png")}
    assert {"noise", "losses", "loss_histograms", "references", "lengths"} <= figures
    page = (folder / "report.html").read_text()
    assert "alpha 5 -&gt; 0 linear over 4 steps" in page
    assert "## " in (folder / "report.md").read_text()


@pytest.mark.slow
def test_two_runs_with_judgements_and_for_alpacaeval(full_run, lora_run, files, tmp_path):
    lines = files["test"].read_text().splitlines()
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))
    judgements = [
        {"prompt": prompt, "run_a": "lora", "run_b": "full", "preference": preference}
        for prompt, preference in ((prompts[0], "lora"), (prompts[1], 0.5), ("another", "b"))
    ]
    judged = tmp_path / "judged.json"
    judged.write_text(json.dumps(judgements))
    out = tmp_path / "report"
    words = [*given(files), "--output", out, "--alpaca-eval", "--judgements", judged]
    result = run(full_run, lora_run, *SMALL, *words)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert [each["name"] for each in report["runs"]] == ["full", "lora"]
    assert {each["split"] for each in report["comparisons"]} == {"train", "test"}
    found = report["judgements"]
    # The first run of the command is `a`: 'lora' was preferred once, 'full' once, and one tie.
    assert (found["a"], found["b"], found["count"], found["win_rate"]) == ("full", "lora", 3, 50)
    examples = {run["name"]: run["splits"]["test"]["examples"] for run in report["runs"]}
    lengths = [len(each["output"]) for each in examples["lora"]]
    assert found["mean_length_b"] == sum(lengths) / 2
    assert any(
        "1 of 3 judgements are not in the length-controlled" in p for p in report["problems"]
    )
    for name in ("full", "lora"):
        rows = json.loads((out / f"model_outputs_{name}.json").read_text())
        assert [row["instruction"] for row in rows] == [each["prompt"] for each in examples[name]]
        assert [row["output"] for row in rows] == [each["output"] for each in examples[name]]
        assert {row["generator"] for row in rows} == {name}


def test_several_runs_without_output_are_in_the_folder_report(
    full_run, lora_run, files, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["--rows", "1", "--generations", "0"]
    result = run(full_run, lora_run, *given(files), *words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report" / "report.html").is_file()
    assert not list((tmp_path / "report").glob("model_outputs*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{empty}"], "is no run: it has no trainer_state.json, no checkpoint-N and no model."),
        (["{empty}/nowhere"], "nowhere' does not exist"),
        ([], "Missing argument 'RUN [RUN ...]'"),
        (["{run}", "{run}"], "A run is given twice"),
        (["{run}", "--test", "{empty}/gone.jsonl"], "gone.jsonl' does not exist"),
        (["{run}", "--judgements", "{wrong}"], "`run_b` must be two runs"),
        (["{run}", "--rows", "0"], "0 is not in the range x>=1"),
        (["{run}", "--row", "3"], "No such option"),
    ],
)
def test_what_is_wrong_is_said(full_run, tmp_path, words, message):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps([{"prompt": "p", "run_a": "x", "run_b": "x", "preference": "a"}]))
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "run": full_run, "wrong": wrong}
    result = run(*(word.format(**places) for word in words))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"question": "?"}\n', "rows.jsonl must have the columns"),
        ("rows.txt", "a", "rows.txt must be a file of rows"),
        ("rows.csv", "prompt,completion\n", "rows.csv has no rows that can be read as csv"),
    ],
)
def test_wrong_rows_stop_the_report_before_the_work(full_run, tmp_path, name, text, message):
    rows = tmp_path / name
    rows.write_text(text)
    result = run(full_run, *SMALL, "--test", rows, "--output", tmp_path / "r")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "r" / "losses.jsonl").exists()


def test_what_is_not_shown_is_said_in_the_terminal_too(lora_run, tmp_path):
    result = run(lora_run, "--output", tmp_path / "r")
    assert result.exit_code == 0
    assert "Note: " in result.output
    assert "does not say which data it was trained on" in result.output


def test_a_folder_that_cannot_be_written_to(full_run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(full_run, *SMALL, "--output", tmp_path / "file" / "r")
    assert result.exit_code == 2
    assert "cannot be written to: Not a directory. Give another by `--output DIR`." in result.output


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (("x", "full"), "The judgements are of 'full', 'x'; this report has the runs 'full'. Name"),
        (("full", "lora", "more"), "The judgements are of 'full', 'lora', 'more'; this report"),
    ],
)
def test_judgements_of_other_runs_are_refused_before_the_work(full_run, tmp_path, runs, message):
    rows = [
        {"prompt": "p", "run_a": runs[0], "run_b": other, "preference": "a"} for other in runs[1:]
    ]
    path = tmp_path / "judged.json"
    path.write_text(json.dumps(rows))
    result = run(full_run, *SMALL, "--judgements", path, "--output", tmp_path / "r")
    assert result.exit_code == 2
    assert message in result.output


def test_a_missing_library_is_named(full_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "neft_plugins.report.page", raising=False)
    words = ["--rows", "1", "--generations", "0", "--output", tmp_path / "r"]
    result = run(full_run, *words)
    assert result.exit_code == 2
    assert "needs jinja2; install it with pip install 'neft-plugins[report]'" in result.output


def test_ctrl_c_says_that_it_can_go_on(full_run, tmp_path, monkeypatch):
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "row_losses", interrupt)
    result = run(full_run, *SMALL, "--output", tmp_path / "r")
    assert result.exit_code == 130
    assert "Stopped. The same command goes on from here." in result.output
