"""The numbers of a report, on real runs, against slow obvious references."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MODEL
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neft_plugins.report import evaluation, generations, losses, make
from neft_plugins.report.evaluation import Evaluation, Settings, Sources
from neft_plugins.report.generations import generate, stop_ids
from neft_plugins.report.kept import Kept
from neft_plugins.report.losses import pad, row_losses
from neft_plugins.report.make import make_report
from neft_plugins.report.metrics import METRICS, rouge_l
from neft_plugins.report.models import Models, load_tokenizer
from neft_plugins.report.runs import read_run, read_runs
from neft_plugins.rows import Rows
from neft_plugins.rows.files import file_rows

SETTINGS = Settings(rows=6, generations=3, max_new_tokens=12, batch_size=2, resamples=50)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rows(files, tokenizer) -> Rows:
    return file_rows(files["test"], tokenizer, 6)


@pytest.fixture(scope="module")
def report(lora_run, full_run, files, tmp_path_factory) -> dict[str, Any]:
    runs = read_runs([str(full_run), str(lora_run)])
    folder = tmp_path_factory.mktemp("report")
    return make_report(runs, SETTINGS, Sources(files), folder)


@torch.no_grad()
def slow_loss(model: Any, ids: list[int], labels: list[int]) -> float:
    """Token by token, each row by itself."""
    total, count = 0.0, 0
    for place in range(1, len(ids)):
        if labels[place] != -100:
            logits = model(torch.tensor([ids[:place]])).logits[0, -1]
            total -= logits.log_softmax(0)[labels[place]].item()
            count += 1
    return total / count


# The parts


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_rows_loss_is_that_of_the_row_by_itself(model, rows, batch_size):
    found = row_losses(model, rows, batch_size)
    wanted = [slow_loss(model, *row) for row in zip(rows.input_ids, rows.labels, strict=True)]
    assert found == pytest.approx(wanted, rel=1e-4)
    assert max(wanted) - min(wanted) > 0.01


def test_a_row_of_which_nothing_is_trained_on_has_no_loss(model):
    rows = Rows([[1, 2, 3], [4, 5, 6, 7]], [[-100] * 3, [-100, -100, 6, 7]], [None] * 2, 2)
    first, second = row_losses(model, rows)
    assert first is None
    assert second == pytest.approx(slow_loss(model, rows.input_ids[1], rows.labels[1]), rel=1e-4)


@pytest.mark.parametrize("left", [True, False])
def test_padding(left):
    tokens, mask = pad([[1, 2], [3]], torch.device("cpu"), 9, left)
    assert tokens.tolist() == [[1, 2], [9, 3] if left else [3, 9]]
    assert mask.tolist() == [[1, 1], [0, 1] if left else [1, 0]]


@torch.no_grad()
def slow_answer(model: Any, prompt: list[int], stops: list[int], limit: int, penalty: float) -> Any:
    ids = [*prompt]
    for _ in range(limit):
        logits = model(torch.tensor([ids])).logits[0, -1]
        for token in {*ids}:
            logits[token] = (
                logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            )
        token = int(logits.argmax())
        if token in stops:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_an_answer_is_the_greedy_one_of_its_prompt_alone(model, tokenizer, rows, penalty):
    """Whatever prompts, of whatever lengths, are answered with it."""
    prompts = [rows.prompt_ids(row) for row in range(3)]
    prompts[1] = prompts[1][-4:]
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(".")]
    stops = [token for token in stops if token is not None]
    told: dict[int, Any] = {}
    found = generate(
        model,
        tokenizer,
        prompts,
        stops,
        max_new_tokens=20,
        repetition_penalty=penalty,
        batch_size=2,
        done=told.__setitem__,
    )
    assert [told[place] for place in range(3)] == found
    for prompt, answer in zip(prompts, found, strict=True):
        tokens, stopped = slow_answer(model, prompt, stops, 20, penalty)
        assert answer.output == tokenizer.decode(tokens, skip_special_tokens=True)
        assert (answer.tokens, answer.stopped) == (len(tokens), stopped)


def test_an_answer_stops_at_the_special_token_that_ends_the_references(model, tokenizer):
    special = next(t for t in tokenizer.all_special_ids if t != tokenizer.eos_token_id)
    rows = Rows([[5, 6, special]], [[-100, 6, special]], [None], 1)
    assert special in stop_ids(model, tokenizer, rows)
    assert tokenizer.eos_token_id in stop_ids(model, tokenizer, rows)
    assert 6 not in stop_ids(model, tokenizer, rows)


# The report


@pytest.mark.slow
def test_the_losses_of_each_checkpoint_are_those_of_its_adapter(report, lora_run, files, tokenizer):
    rows = file_rows(files["test"], tokenizer, 6)
    reported = report["runs"][1]["checkpoints"]
    assert [each["step"] for each in reported] == [2, 4]
    for each in reported:
        base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        alone = PeftModel.from_pretrained(base, str(lora_run / f"checkpoint-{each['step']}")).eval()
        wanted = [slow_loss(alone, *row) for row in zip(rows.input_ids, rows.labels, strict=True)]
        assert each["test_loss"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    assert reported[0]["test_loss"] != pytest.approx(reported[1]["test_loss"], rel=1e-3)


def test_a_run_has_all_that_the_page_shows(report):
    full, lora = report["runs"]
    assert (full["name"], full["method"], lora["method"]) == ("full", "full", "LoRA")
    assert full["noise"].startswith("alpha 5 -> 0 linear over 4 steps")
    assert lora["noise"] is None
    assert [row["step"] for row in full["log"]] == [2, 4]
    assert full["log"][0]["alpha"] == 3.75
    for run in report["runs"]:
        assert run["problems"] == []
        for split in ("train", "test"):
            part = run["splits"][split]
            assert part["rows"] == len(part["loss"]) == 6
            assert len(part["examples"]) == 3
            assert part["metrics"].keys() == METRICS.keys()
            assert part["metrics"]["loss"]["mean"] == pytest.approx(sum(part["loss"]) / 6)
            assert run["checkpoints"][-1][f"{split}_loss"] == part["metrics"]["loss"]["mean"]
            example = part["examples"][0]
            assert example["metrics"]["rouge_l"] == rouge_l(
                example["output"], example["references"]
            )
            assert example["metrics"]["tokens"] == example["tokens"] <= 12
    json.dumps(report, allow_nan=False)


def test_a_prompt_is_answered_once_and_has_all_its_references(report, files):
    for split, path in files.items():
        references: dict[str, list[str]] = {}
        for row in map(json.loads, path.read_text().splitlines()):
            references.setdefault(row["prompt"], []).append(row["completion"].strip())
        assert max(map(len, references.values())) > 1
        examples = report["runs"][0]["splits"][split]["examples"]
        assert [each["prompt"] for each in examples] == [*references][:3]
        for each in examples:
            assert [text.strip() for text in each["references"]] == references[each["prompt"]]


def test_runs_are_compared_with_the_first_example_by_example(report):
    full, lora = (run["splits"]["test"] for run in report["runs"])
    by_metric = {each["metric"]: each for each in report["comparisons"] if each["split"] == "test"}
    found = by_metric["loss"]
    assert (found["a"], found["b"], found["count"]) == ("full", "lora", 6)
    differences = [b - a for a, b in zip(full["loss"], lora["loss"], strict=True)]
    assert found["difference"] == pytest.approx(sum(differences) / 6)
    assert found["mean_b"] == lora["metrics"]["loss"]["mean"]
    low, high = found["interval"]
    assert found["better"] == (None if low <= 0 <= high else "lora" if high < 0 else "full")
    assert by_metric["tokens"]["better"] is None
    assert by_metric["rouge_l"]["count"] == 3


def test_rows_that_differ_are_not_compared(report, lora_run, full_run, files, tmp_path):
    """Of two runs on data of their own, the rows in common are."""
    quick = Settings(rows=3, generations=0, resamples=10)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "What else? ", "completion": "Nothing."}))
    runs = read_runs([str(full_run), str(lora_run)])
    whole = make_report(runs[:1], quick, Sources({}), tmp_path / "a")
    assert whole["runs"][0]["splits"]["train"]["examples"] == []
    assert whole["comparisons"] == []
    assert whole["runs"][0]["splits"].keys() == {"train", "test"}  # of its own config
    mixed = [
        Evaluation(run, quick, Sources({"test": path}), stores(tmp_path), quiet)
        for run, path in zip(runs, (files["test"], other), strict=True)
    ]
    for each in mixed:
        each.load_rows()
        each.result()
    problems: list[str] = []
    assert [c["split"] for c in make._compare(*mixed, quick, problems)] == []
    assert problems == [
        "full and lora have no test rows in common, so they are not compared on them. Give both "
        "the same by `--test FILE`."
    ]


def stores(folder: Path) -> tuple[Kept, Kept]:
    return Kept(folder / "l.jsonl"), Kept(folder / "g.jsonl")


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_a_stopped_report_goes_on(report, lora_run, files, tmp_path, monkeypatch):
    """Nothing that was done is done again, whenever it was stopped; the numbers are the same."""
    run = [read_run(lora_run)]
    progressed: list[str] = []

    def stop_late(what: str, done: int, total: int) -> None:
        progressed.append(what)
        if what == "lora: train answers" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_report(run, SETTINGS, Sources(files), tmp_path, stop_late)
    assert "lora: test loss at checkpoint-2" in progressed
    with (tmp_path / "generations.jsonl").open("a") as stream:
        stream.write('{"key": "cut o')  # as a kill leaves it
    asked: list[int] = []

    def count(
        model: Any, tokenizer: Any, prompts: list[list[int]], *args: Any, **kwargs: Any
    ) -> Any:
        asked.append(len(prompts))
        return generate(model, tokenizer, prompts, *args, **kwargs)

    monkeypatch.setattr(evaluation, "generate", count)
    monkeypatch.setattr(evaluation, "row_losses", None)  # all are kept
    again = make_report(run, SETTINGS, Sources(files), tmp_path)
    assert asked == [1, 3]  # 2 of the 3 answers to training prompts are kept
    assert again["runs"] == [report["runs"][1]]
    assert again["problems"] == [
        "generations.jsonl had lines that are not whole (3), as a stop leaves them. What they held "
        "is computed again."
    ]
    asked.clear()
    once_more = make_report(run, SETTINGS, Sources(files), tmp_path)
    assert asked == []
    assert once_more["runs"] == again["runs"]


def test_weights_trained_anew_are_evaluated_anew(lora_run, files, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(lora_run, folder)
    quick = Settings(rows=2, generations=0, resamples=10)
    before = make_report([read_run(folder)], quick, Sources(files), tmp_path / "r")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(folder / "checkpoint-2" / name, folder / "checkpoint-4" / name)
    after = make_report([read_run(folder)], quick, Sources(files), tmp_path / "r")
    first, last = (checkpoint["test_loss"] for checkpoint in after["runs"][0]["checkpoints"])
    assert first == last != before["runs"][0]["checkpoints"][1]["test_loss"]


def test_checkpoints_are_spread_evenly_and_the_last_is_one(lora_run, files, tmp_path):
    folder = tmp_path / "run"
    for step in range(1, 8):
        shutil.copytree(lora_run / "checkpoint-4", folder / f"checkpoint-{step}")
    quick = Settings(rows=1, generations=0, resamples=10, checkpoints=3)
    run = make_report([read_run(folder)], quick, Sources(files), tmp_path / "r")["runs"][0]
    assert [each["step"] for each in run["checkpoints"]] == [3, 6, 7]
    assert run["problems"] == [
        "run has 7 checkpoints, of which the page shows 3. `--checkpoints N` shows more."
    ]
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 7, "log_history": [], "best_global_step": 1})
    )
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(lora_run / "checkpoint-2" / name, folder / "checkpoint-1" / name)
        shutil.copy(folder / "checkpoint-1" / name, folder / name)
    one = Settings(rows=1, generations=0, resamples=10, checkpoints=1)
    run = make_report([read_run(folder)], one, Sources(files), tmp_path / "r")["runs"][0]
    assert [(each["name"], each["step"]) for each in run["checkpoints"]] == [("end", 1)]
    assert run["splits"]["test"]["metrics"]["loss"]["mean"] == run["checkpoints"][0]["test_loss"]
    run = make_report([read_run(folder)], quick, Sources(files), tmp_path / "r")["runs"][0]
    end, *_, last = run["checkpoints"]
    assert (end["name"], last["step"]) == ("end", 7)
    assert run["splits"]["test"]["metrics"]["loss"]["mean"] == end["test_loss"]
    assert end["test_loss"] != last["test_loss"]


def test_a_4_bit_base_is_loaded_in_4_bits(lora_run, files, tmp_path):
    quick = Settings(rows=6, generations=0, resamples=10)
    run = read_run(lora_run)
    found = [
        make_report([run], quick, Sources(files, bits=bits), tmp_path)["runs"][0]["splits"]["test"]
        for bits in (None, 4)
    ]
    of_16, of_4 = (part["metrics"]["loss"]["mean"] for part in found)
    assert of_16 != of_4
    assert of_16 == pytest.approx(of_4, rel=0.2)


def test_one_model_is_in_memory_at_a_time(lora_run, tokenizer):
    run = read_run(lora_run)
    models = Models(run, None, None, len(tokenizer))
    first, last = run.checkpoints
    loaded = models.load(first)
    assert not loaded.training
    assert list(models.load(last).peft_config) == [f"{last.name}-{lora_run.name}"]
    assert models.load(last) is loaded  # the same base, with the other adapter


# What is not there


def problems_of(run: Any, tmp_path: Path, sources: Sources) -> list[str]:
    quick = Settings(rows=2, generations=1, max_new_tokens=2, resamples=10)
    return make_report([run], quick, sources, tmp_path)["runs"][0]["problems"]


def test_a_run_that_does_not_name_its_data(lora_run, tmp_path):
    problems = problems_of(read_run(lora_run), tmp_path, Sources({}))
    assert problems == [
        f"{lora_run} does not say which data it was trained on, as runs of `neft sft` and Axolotl "
        f"do. Give `--{split} FILE`."
        for split in ("train", "test")
    ]


def test_rows_without_references_have_losses_alone(lora_run, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "Once upon a time there was a fox."}))
    quick = Settings(rows=2, generations=1, resamples=10)
    sources = Sources({"train": path, "test": path})
    run = make_report([read_run(lora_run)], quick, sources, tmp_path)["runs"][0]
    assert run["splits"]["test"]["metrics"]["loss"]["mean"] > 0
    assert run["splits"]["test"]["examples"] == []
    assert "The test rows of lora have no references (no prompt comes" in run["problems"][1]


def test_an_adapter_whose_base_is_not_at_hand(lora_run, files, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(lora_run, folder)
    for path in folder.rglob("adapter_config.json"):
        path.write_text(path.read_text().replace(MODEL, "someone/gone"))
    problems = problems_of(read_run(folder), tmp_path / "r", Sources(files))
    assert any(
        "its base model someone/gone is not at hand" in each and "Give `--base_model`" in each
        for each in problems
    )
    given = problems_of(read_run(folder), tmp_path / "r", Sources(files, base_model=MODEL))
    assert given == []


def test_a_checkpoint_that_cannot_be_read_is_said_and_the_others_are_shown(
    lora_run, files, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(lora_run, folder)
    (folder / "checkpoint-2" / "adapter_model.safetensors").unlink()
    quick = Settings(rows=2, generations=0, resamples=10)
    run = make_report([read_run(folder)], quick, Sources(files), tmp_path / "r")["runs"][0]
    broken, whole = run["checkpoints"]
    assert "lacks its weights, adapter_model.safetensors" in broken["problem"]
    assert broken["test_loss"] is None
    assert whole["test_loss"] > 0
    (folder / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"no tensors")
    run = make_report([read_run(folder)], quick, Sources(files), tmp_path / "r")["runs"][0]
    assert "checkpoint-2 cannot be loaded: " in run["checkpoints"][0]["problem"]
    assert run["checkpoints"][1]["test_loss"] == whole["test_loss"]


def test_no_tokenizer_at_hand(lora_run, tmp_path):
    folder = tmp_path / "bare"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        folder.mkdir(exist_ok=True)
        shutil.copy(lora_run / "checkpoint-4" / name, folder / name)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(MODEL, "someone/gone"))
    with pytest.raises(ValueError, match=r"No tokenizer of bare is at hand, .*`--base_model`"):
        load_tokenizer(read_run(folder))
    assert load_tokenizer(read_run(folder), MODEL).eos_token_id is not None


@pytest.mark.parametrize("module", [losses, generations])
def test_evaluation_holds_no_gradients(module, model, tokenizer, rows):
    seen: list[bool] = []
    hook = model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    try:
        if module is losses:
            row_losses(model, rows)
        else:
            generate(model, tokenizer, [[5, 6]], [], max_new_tokens=2)
    finally:
        hook.remove()
    assert seen
    assert not any(seen)


def test_a_diverged_checkpoint_costs_itself_alone(lora_run, files, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(lora_run, folder)
    path = folder / "checkpoint-4" / "adapter_model.safetensors"
    save_file({key: value * torch.nan for key, value in load_file(path).items()}, path)
    quick = Settings(rows=2, generations=1, max_new_tokens=2, resamples=10)
    run = make_report([read_run(folder)], quick, Sources(files), tmp_path / "r")["runs"][0]
    first, last = run["checkpoints"]
    assert last["test_loss"] is None
    assert last["problem"].endswith(
        "checkpoint-4 has no finite loss on 2 of 2 test rows: its training diverged, or its dtype "
        "overflows."
    )
    assert run["splits"]["test"]["metrics"]["loss"]["mean"] == first["test_loss"]
    assert run["splits"]["test"]["examples"]
    assert "The answers of run are those of checkpoint-2." in run["problems"]


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_adapters_with_biases_are_loaded_one_by_one(lora_run, tokenizer, tmp_path, bias):
    """PEFT holds one of them at a time."""
    run = tmp_path / "run"
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL), LoraConfig(r=2, bias=bias)
    )
    for step in (1, 2):
        adapted.save_pretrained(str(run / f"checkpoint-{step}"))
    found = read_run(run)
    models = Models(found, None, None, len(tokenizer))
    for checkpoint in found.checkpoints:
        assert list(models.load(checkpoint).peft_config) == [f"{checkpoint.name}-run"]


def test_an_embedding_that_was_resized_has_the_saved_size(tokenizer, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    rows = base.get_input_embeddings().num_embeddings + 7
    base.resize_token_embeddings(rows)
    config = LoraConfig(r=2, modules_to_save=["embed_tokens", "lm_head"])
    get_peft_model(base, config).save_pretrained(str(tmp_path / "checkpoint-1"))
    run = read_run(tmp_path)
    (saved,) = run.checkpoints
    model = Models(run, MODEL, None, len(tokenizer)).load(saved)
    assert model.get_input_embeddings().weight.shape[0] == rows


def test_a_base_of_another_shape_is_said(lora_run, files, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=600,
        )
    ).save_pretrained(str(tmp_path / "other"))
    sources = Sources(files, base_model=str(tmp_path / "other"))
    problems = problems_of(read_run(lora_run), tmp_path / "r", sources)
    assert any("cannot be loaded: " in each and "size" in each for each in problems)


def test_an_answer_ends_with_the_models_positions(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=1, vocab_size=600)
    small = GPT2LMHeadModel(config).eval()
    (answer,) = generate(small, tokenizer, [list(range(5, 17))], [], max_new_tokens=100)
    assert (answer.tokens, answer.stopped) == (4, False)


def test_texts_of_two_tokenizers_are_compared_and_their_losses_are_not(
    lora_run, full_run, files, tmp_path
):
    quick = Settings(rows=3, generations=1, max_new_tokens=2, resamples=10)
    runs = read_runs([str(full_run), str(lora_run)])
    two = [Evaluation(run, quick, Sources(files), stores(tmp_path), quiet) for run in runs]
    for each in two:
        each.load_rows()
    for split, rows in two[1].rows.items():  # as another tokenizer would have it
        ids = [[*row, row[-1]] for row in rows.input_ids]
        labels = [[*row, -100] for row in rows.labels]
        two[1].rows[split] = Rows(ids, labels, rows.prompts, rows.count)
    for each in two:
        each.result()
    problems: list[str] = []
    compared = {each["metric"] for each in make._compare(*two, quick, problems)}
    assert "loss" not in compared
    assert "rouge_l" in compared
    assert problems[0] == (
        "The tokens of full and lora differ on the same train rows, so their losses for each token "
        "are not compared."
    )


def test_what_is_kept_survives_any_text_and_a_cut(tmp_path):
    path = tmp_path / "kept.jsonl"
    texts = {"a": "one\u2028two\u2029\x85\r\n", "b": "é\ud800"}
    for key, text in texts.items():
        Kept(path).put(key, text)
    with path.open("a") as stream:
        stream.write('{"key": "c", "val')
    kept = Kept(path)
    assert {key: kept.get(key) for key in texts} == texts
    assert kept.damaged == [3]
    assert Kept(path).damaged == []  # it is said once
    kept.put("c", 1)
    assert Kept(path).get("c") == 1


def test_a_path_that_is_seen_from_elsewhere(full_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(full_run, run)
    path = run / "neft_sft.yaml"
    keys = path.read_text()
    path.write_text(re.sub(r"dataset_name: .*", "dataset_name: not/here", keys))
    problems = problems_of(read_run(run), tmp_path / "r", Sources({}))
    assert len(problems) == 2
    for split, problem in zip(("train", "test"), problems, strict=True):
        assert problem.startswith(f"The {split} rows of run are not at hand: ")
        assert problem.endswith(
            "A path is as seen from the folder that the run was started in. Start there, or give "
            f"`--{split} FILE`."
        )
