"""Every recipe of recipes/trl and recipes/accelerate, run by the command in its header.

Only the model, the dataset and what belongs to the hardware are replaced. The noise that the run
logged is compared with the schedule's closed form and with alpha / sqrt(3 L D), where all
documents of the tiny data have one known length L.
"""

import ast
import functools
import importlib.util
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import engines
import pytest
import trl
import yaml
from click.testing import CliRunner
from commands import run_script
from helpers import MODEL, REPO
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from neft_plugins.cli.commands import neft

RECIPES = REPO / "recipes"
FOLDERS = ("trl", "accelerate")
STEPS = 4
ROWS = 90

# What a test may replace. Nothing of the noise or the method.
REPLACEABLE = {
    *("model_name_or_path", "dataset_name", "max_steps"),
    # The hardware
    *("use_cpu", "device", "attn_implementation", "num_processes"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "pad_to_multiple_of"),
    *("batch_size", "accumulation"),
    "model_init_kwargs",  # to ON_CPU_RANKS only
    # What to see and keep
    *("output_dir", "report_to", "logging_steps", "disable_tqdm", "save_strategy"),
}
CPU = {"use_cpu": "true"}
SMALL_BATCHES = {"per_device_train_batch_size": "8", "gradient_accumulation_steps": "2"}
# Rows wider than their documents, so that L = the row would be seen to be wrong.
WIDE_ROWS = {"pad_to_multiple_of": "64"}
# trl 1.9.0 leaves out device_map="auto" on several GPUs only, and ZeRO-3 refuses it.
ON_CPU_RANKS = '{"device_map": null}'
TWO_RANKS = {"num_processes": "2"}

# Var(eps^2) / E[eps^2]^2 of one coordinate: what the measured RMS may stray by.
SPREAD = {"uniform": 4 / 5, "gaussian": 2.0}


# The schedules' closed forms over STEPS steps, written down apart from the package's.


def constant(step: int) -> float:
    return 5.0


def cosine(step: int) -> float:
    return 5 * (1 + math.cos(math.pi * step / STEPS)) / 2


def linear(step: int) -> float:
    return 5 * (1 - step / STEPS)


def linear_after_one_step_of_warmup(step: int) -> float:
    return 0.0 if step == 0 else 5 * (1 - (step - 1) / (STEPS - 1))


# The tiny data, in the form of each recipe's dataset. Each word is one token.


@functools.cache
def vocabulary() -> list[str]:
    words = AutoTokenizer.from_pretrained(MODEL).get_vocab()
    return sorted(" " + w[1:] for w in words if w[0] == "Ġ" and w[1:].isalpha() and len(w) > 4)


def sentence(row: int, words: int) -> str:
    return "A" + "".join(vocabulary()[(row + k) % 50] for k in range(words))


def texts() -> list[dict[str, Any]]:
    return [{"text": sentence(row, 22)} for row in range(ROWS)]


def conversations() -> list[dict[str, Any]]:
    return [
        {
            "source": "a column that is not used",
            "messages": [
                {"role": "user", "content": sentence(row, 9)},
                {"role": "assistant", "content": sentence(row + 3, 20)},
            ],
        }
        for row in range(ROWS)
    ]


def preferences() -> list[dict[str, Any]]:
    pairs = zip(conversations(), reversed(conversations()), strict=True)
    return [
        {
            "chosen": one["messages"],
            "rejected": [one["messages"][0], other["messages"][1]],
            "score_chosen": 7.0,
        }
        for one, other in pairs
    ]


def alpaca() -> list[dict[str, Any]]:
    """As tatsu-lab/alpaca: the prompt with an input or without, then the output, as text."""
    rows = []
    for row in range(ROWS):
        instruction, output = sentence(row, 8), sentence(row + 5, 12)
        text = f"Do as it says.\n\n### Instruction:\n{instruction}\n\n### Response:\n{output}"
        rows.append({"instruction": instruction, "input": "", "output": output, "text": text})
    return rows


# Tokens of each document, and of its response, from the tokenizer alone.


def text_lengths(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> tuple[int, int]:
    length = len(tokenizer(row["text"])["input_ids"]) + 1  # TRL and the loop add an EOS
    return length, length


def chat_lengths(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], column: str = "messages"
) -> tuple[int, int]:
    found = tokenizer.apply_chat_template(
        row[column], return_dict=True, return_assistant_tokens_mask=True
    )
    return len(found["input_ids"]), sum(found["assistant_masks"])


@dataclass
class Case:
    """A recipe, the header its command is in, and what its noise should be."""

    recipe: str
    data: Callable[[], list[dict[str, Any]]]
    alpha: Callable[[int], float]
    lengths: Callable[[PreTrainedTokenizerBase, dict[str, Any]], tuple[int, int]] = text_lengths
    header: str = ""  # unset: the recipe's own
    model: str = "llama"
    chat_template: Path | None = None  # that the recipe sets, or that TRL trains the model with
    distribution: str = "uniform"
    tokens: str = "all"
    ranks: int = 1
    documents: int = 16  # of one rank in one optimizer step
    replaced: dict[str, str] = field(default_factory=dict)
    needs: str = ""  # a package
    leaves: tuple[str, ...] = ()  # in the checkpoint

    def __str__(self) -> str:
        return self.recipe


TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SFT = {
    **CPU,
    "max_steps": str(STEPS),
    "logging_steps": "1",
    "disable_tqdm": "true",
    "report_to": "none",
    "save_strategy": "steps",  # the last one is always saved, with the logs
}
CASES = [
    Case(
        recipe="trl/llama-3.2-1b-qlora-cosine.yaml",
        data=texts,
        documents=ROWS,  # in two packed rows
        alpha=cosine,
        replaced={
            **SFT,
            **SMALL_BATCHES,
            "per_device_train_batch_size": "1",
            "attn_implementation": "sdpa",
        },
        leaves=("adapter_model.safetensors",),
    ),
    Case(
        recipe="trl/qwen3-4b-qlora-gaussian-response.yaml",
        header="accelerate/ddp.yaml",
        data=conversations,
        lengths=chat_lengths,
        alpha=constant,
        model="qwen3",
        chat_template=TRL_TEMPLATES / "qwen3_training.jinja",
        distribution="gaussian",
        tokens="response",
        ranks=2,
        replaced={**SFT, **SMALL_BATCHES, **WIDE_ROWS, **TWO_RANKS},
        leaves=("adapter_model.safetensors", "rng_state_1.pth"),
    ),
    Case(
        recipe="trl/llama-2-7b-full-paper.yaml",
        header="accelerate/fsdp2.yaml",
        data=alpaca,
        alpha=constant,
        ranks=2,
        replaced={**SFT, **SMALL_BATCHES, **WIDE_ROWS, **TWO_RANKS},
        leaves=("model.safetensors", "pytorch_model_fsdp.bin", "rng_state_1.pth"),
    ),
    Case(
        recipe="trl/llama-3.1-8b-full-zero3.yaml",
        header="accelerate/zero3.yaml",
        data=conversations,
        lengths=chat_lengths,
        alpha=linear_after_one_step_of_warmup,
        chat_template=RECIPES / "trl" / "chat.jinja",
        ranks=2,
        replaced={
            **SFT,
            **SMALL_BATCHES,
            **WIDE_ROWS,
            **TWO_RANKS,
            "model_init_kwargs": ON_CPU_RANKS,
        },
        needs="deepspeed",
        leaves=(
            "model.safetensors",
            "global_step4/zero_pp_rank_1_mp_rank_00_model_states.pt",
            "global_step4/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        ),
    ),
    Case(
        recipe="trl/dpo_qlora.py",
        data=preferences,
        documents=32,
        lengths=functools.partial(chat_lengths, column="chosen"),
        alpha=linear,
        model="qwen3",
        chat_template=TRL_TEMPLATES / "qwen3_training.jinja",
        replaced={**SFT, **SMALL_BATCHES, **WIDE_ROWS},
        leaves=("adapter_model.safetensors",),
    ),
    Case(
        recipe="trl/plain_loop.py",
        data=texts,
        alpha=linear,
        replaced={
            "max_steps": str(STEPS),
            "batch_size": "8",
            "accumulation": "2",
            "device": "cpu",
        },
    ),
]
NOT_RUN_AS_A_CASE = {"trl/alpaca.py", "trl/chat.jinja"}  # the paper's data; a part of ZeRO-3's


def files() -> list[Path]:
    found = (path for folder in FOLDERS for path in (RECIPES / folder).rglob("*"))
    return [path for path in sorted(found) if path.is_file() and path.suffix != ".pyc"]


# The headers.

PARTS = ("For whom", "Hardware", "Command", "Settings")


def header(path: Path) -> dict[str, str]:
    """The parts of a header, and under "" what comes before them."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = list(iter_comment(text))
        text = "\n".join(lines)
    _, *found = re.split(rf"^({'|'.join(PARTS)}): +", "\n" + text, flags=re.MULTILINE)
    start = re.split(rf"^(?:{'|'.join(PARTS)}): +", text, flags=re.MULTILINE)[0]
    return {"": start.strip(), **dict(zip(found[::2], map(str.strip, found[1::2]), strict=True))}


def iter_comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").removeprefix(" ")


def commands(path: Path) -> list[list[str]]:
    """The commands of a header, as lists of words."""
    joined = re.sub(r"\\\n\s*", "", header(path)["Command"])
    return [shlex.split(line) for line in joined.splitlines()]


def training_command(case: Case) -> list[str]:
    """The one command of the header that runs this recipe."""
    path = RECIPES / (case.header or case.recipe)
    (found, *_) = [words for words in commands(path) if f"recipes/{case.recipe}" in words]
    return found


@pytest.mark.parametrize(
    "path", [path for path in files() if path.suffix in (".yaml", ".py")], ids=lambda p: p.name
)
def test_the_header_says_what_the_recipe_is_and_how_it_is_run(path):
    parts = header(path)
    assert list(parts) == ["", *PARTS]
    assert all(len(text) > 20 for text in parts.values()), parts
    assert path.relative_to(REPO).as_posix() in parts["Command"]
    for file in re.findall(r"recipes/[\w./-]+", "\n".join(parts.values())):
        assert (REPO / file).is_file(), file
    if path.parent.name == "trl" and path.name != "alpaca.py":
        assert "an estimate" in parts["Hardware"]  # nothing here was measured
        assert "2310.05914" in parts[""] + parts["Settings"]


def test_every_recipe_is_run_here_and_is_in_the_readme():
    run = {case.recipe for case in CASES} | {case.header for case in CASES if case.header}
    here = {path.relative_to(RECIPES).as_posix() for path in files()}
    assert here == run | NOT_RUN_AS_A_CASE
    table = (RECIPES / "README.md").read_text()
    assert [name for name in sorted(here) if f"({name})" not in table] == []


def test_only_model_data_and_hardware_are_replaced():
    for case in CASES:
        assert set(case.replaced) <= REPLACEABLE, case
        assert case.replaced.get("model_init_kwargs", ON_CPU_RANKS) == ON_CPU_RANKS
    assert not any(key.startswith(("neft", "lora", "learning", "lr")) for key in REPLACEABLE)


def test_a_recipe_and_its_accelerate_config_name_the_same_command():
    for case in CASES:
        own = commands(RECIPES / case.recipe)
        if "--accelerate_config" in {word for words in own for word in words}:
            assert training_command(case) in own


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_the_accelerate_configs_are_of_8_gpus(name):
    config = yaml.safe_load((RECIPES / "accelerate" / f"{name}.yaml").read_text())
    assert config["num_processes"] == 8
    assert config["num_machines"] == 1
    assert config["mixed_precision"] == "bf16"


def test_the_papers_settings():
    recipe = yaml.safe_load((RECIPES / "trl" / "llama-2-7b-full-paper.yaml").read_text())
    rows = recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"]
    assert rows * 8 == 128
    expected = {
        "model_name_or_path": "meta-llama/Llama-2-7b-hf",
        "num_train_epochs": 3,
        "max_length": 512,
        "learning_rate": 5e-5,
        "neftune_noise_alpha": 5,
    }
    assert recipe | expected == recipe
    assert [key for key in recipe if key.startswith("neft")] == ["neftune_noise_alpha"]
    assert "use_peft" not in recipe


# The runs.


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """The quickstart's Llama, and a Qwen3 with Qwen3's chat template and its two tokens."""
    folder = tmp_path_factory.mktemp("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    marks = [AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_tokens(marks, special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = (TRL_TEMPLATES / "qwen3.jinja").read_text()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 2, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=1600, **sizes, **heads, **ids)).save_pretrained(folder)
    return {"llama": Path(MODEL), "qwen3": folder}


def write(rows: list[dict[str, Any]], folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(command: list[str], folder: Path) -> tuple[int, str]:
    """Run one of a header's commands from the top of the repository; its code and its output.

    What it launches runs in processes that are forked; tests/cli has the launches themselves.
    """
    if command[0] == "python":
        return run_script(folder, command[1:])
    assert command[0] == "neft"
    with mock.patch("accelerate.commands.launch.launch_command") as launch:
        parsed = CliRunner().invoke(neft, command[1:])
    assert launch.called, parsed.output
    (args,) = launch.call_args.args
    words = ["-m", args.training_script, *args.training_script_args]
    if args.config_file is None:
        return run_script(folder, words)
    variables = engines.launch_variables(args)
    return run_script(folder, words, world_size=args.num_processes, environment=variables)


def options(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def alpaca_as_pairs(raw: Path, tmp_path: Path) -> Path:
    """The dataset of the paper's recipe, by the first command of its header."""
    (command, *_) = commands(RECIPES / "trl" / "llama-2-7b-full-paper.yaml")
    assert command[:2] == ["python", "recipes/trl/alpaca.py"]
    replaced = {"dataset_name": raw, "output": tmp_path / "alpaca"}
    code, out = run([*command, *options(replaced)], tmp_path / "alpaca_run")
    assert code == 0, out[-5000:]
    assert f"{ROWS} rows" in out
    return tmp_path / "alpaca"


def logs_of(case: Case, out: str, output: Path) -> list[dict[str, Any]]:
    """What each step logged."""
    if case.recipe == "trl/plain_loop.py":
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    state = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [log for log in state["log_history"] if "loss" in log]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recipe_runs_and_its_noise_is_what_it_says(case, models, tmp_path, monkeypatch):
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    if case.ranks > 1 and importlib.util.find_spec("axolotl"):
        pytest.skip("run on the newest versions; engines are run on these, in distributed/")
    rows = case.data()
    data = write(rows, tmp_path / "data")
    if case.data is alpaca:
        data = alpaca_as_pairs(data, tmp_path)
    output = tmp_path / "out"
    replaced = {
        **case.replaced,
        "model_name_or_path": models[case.model],
        "dataset_name": data,
        "output_dir": output,
    }
    assert set(replaced) <= REPLACEABLE
    monkeypatch.chdir(REPO)
    code, out = run([*training_command(case), *options(replaced)], tmp_path / "run")
    assert code == 0, out[-7000:]

    tokenizer = AutoTokenizer.from_pretrained(models[case.model])
    if case.chat_template:
        tokenizer.chat_template = case.chat_template.read_text()
    ((length, response),) = {case.lengths(tokenizer, row) for row in rows}
    fraction = response / length if case.tokens == "response" else 1.0
    hidden = json.loads((models[case.model] / "config.json").read_text())["hidden_size"]
    tokens = case.documents * length  # of this rank

    logs = logs_of(case, out, output)
    assert len(logs) == STEPS
    for step, log in enumerate(logs):
        if "num_tokens" in log:  # TRL's own count
            assert log["num_tokens"] == (step + 1) * case.ranks * tokens
        alpha = case.alpha(step)
        assert log["neft/alpha"] == pytest.approx(alpha, abs=1e-6), step
        if alpha == 0:
            assert "neft/noise_rms" not in log
            continue
        assert log["neft/noised_tokens"] == pytest.approx(fraction), step
        error = math.sqrt(SPREAD[case.distribution] / (tokens * fraction * hidden)) / 2
        expected = alpha / math.sqrt(3 * length * hidden)
        assert log["neft/noise_rms"] == pytest.approx(expected, rel=5 * error), step
    if "logging_steps" in case.replaced:  # by a Trainer
        record = json.loads((output / "neft_config.json").read_text())
        assert (record["distribution"], record["tokens"]) == (case.distribution, case.tokens)
    for name in case.leaves:
        assert (output / f"checkpoint-{STEPS}" / name).is_file(), name
    assert any(output.glob("*.safetensors"))
    if case.chat_template and case.chat_template.parent == RECIPES / "trl":
        assert (output / "chat_template.jinja").read_text() == case.chat_template.read_text()
