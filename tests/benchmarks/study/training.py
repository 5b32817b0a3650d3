"""One run of the study: from its settings to its line."""

import hashlib
import json
import math
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from packing_noise import machine
from peft import LoraConfig, get_peft_model
from tasks import digest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from neft_plugins import NEFTCallback, NEFTConfig, SparsityCallback, SparsityConfig
from neft_plugins.report import example_metrics
from neft_plugins.report.generations import generate, stop_ids
from neft_plugins.report.losses import row_losses
from neft_plugins.rows import Rows
from neft_plugins.rows.files import file_rows

PACKAGES = ("neft-plugins", "torch", "transformers", "trl", "peft", "accelerate")
EVALUATIONS = 5
ROWS = {"train": 200, "validation": 200, "test": 300, "typos": 300, "stories": 64}
AS_IT_TRAINS = ("validation", "test")
OF_A_MODEL = ("train", "test", "typos", "stories")
ANSWERED = {"train": 100, "test": 100}
METRICS = ("rouge_l", "verbatim", "words", "repetition", "stopped")
BATCH = 50  # of an evaluation, unless the task says otherwise
DIGITS = 5
OUTPUT: Any = {"capture_output": True, "text": True, "check": True}

Settings = dict[str, Any]
Line = dict[str, Any]


def train(settings: Settings, model: str, work: Path, keep: bool = False) -> Line:
    """Train one arm with one seed, and measure it without noise.

    Args:
        settings: Of the run: those of arms.yaml, with its `name`, `seed` and `threads`.
        model: Folder of the model.
        work: Folder of the rows, and for what is kept of the run.
        keep: Whether the model is saved at each evaluation, for `neft report`.

    Returns:
        The line of the run: its settings, where it ran, and what was measured.
    """
    begun = time.perf_counter()
    torch.set_num_threads(settings["threads"])
    folder = work / "rows" / f"{settings['data']}-{settings['rows']}"
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = read_rows(folder, tokenizer)
    steps = settings["arguments"]["max_steps"]
    evaluation = Evaluation(settings, rows, references(folder), tokenizer, steps // EVALUATIONS)
    collator = Collator(tokenizer.pad_token_id, "packed_to" in settings)
    set_seed(settings["seed"])
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, **settings.get("model", {})
    )
    if "lora" in settings:
        network = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **settings["lora"]))
    saving = {"save_strategy": "steps", "save_steps": steps // EVALUATIONS, "save_only_model": True}
    output = work / "runs" / settings["name"]
    trainer = Trainer(
        model=network,
        args=TrainingArguments(
            output_dir=str(output),
            seed=settings["seed"],
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            logging_steps=steps // EVALUATIONS,
            report_to=[],
            disable_tqdm=True,
            **(saving if keep else {"save_strategy": "no"}),
            **settings["arguments"],
        ),
        train_dataset=training_rows(rows["train"], settings.get("packed_to")),
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[*plugins(settings), evaluation],
    )
    trainer.train()
    training_seconds = time.perf_counter() - begun
    if keep:
        trainer.save_model(str(output))
    weights = weights_digest(network)
    measured = evaluation.finish(network)
    return {
        "name": settings["name"],
        "settings": settings,
        "commit": commit(),
        "machine": machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "model_digest": digest(Path(model).glob("*.safetensors")),
        "rows_digest": digest(folder.glob("*.jsonl")),
        "order_digest": collator.order.hexdigest()[:16],
        "weights_digest": weights,
        "training_seconds": round(training_seconds, 1),
        "seconds": round(time.perf_counter() - begun, 1),
        "log": [
            {key: value for key, value in one.items() if isinstance(value, int | float)}
            for one in trainer.state.log_history
            if "loss" in one  # the last has times alone
        ],
        **measured,
    }


def plugins(settings: Settings) -> list[TrainerCallback]:
    """What an arm adds to a Trainer."""
    found: list[TrainerCallback] = []
    if "noise" in settings:
        found.append(NEFTCallback(NEFTConfig(**settings["noise"])))
    if "sparsity" in settings:
        found.append(SparsityCallback(SparsityConfig(**settings["sparsity"])))
    return found


def read_rows(folder: Path, tokenizer: Any) -> dict[str, Rows]:
    """The rows of each split, tokenised as TRL does."""
    rows = {
        split: file_rows(folder / f"{split}.jsonl", tokenizer, 10_000)
        for split in ROWS
        if split != "stories"
    }
    ids = [json.loads(line)["input_ids"] for line in (folder / "stories.jsonl").open()]
    return rows | {"stories": Rows(ids, ids, [None] * len(ids), len(ids))}


def references(folder: Path) -> dict[str, list[list[str]]]:
    """Every reference of each prompt that is answered; of training rows the one trained on."""
    found = {}
    for split in ANSWERED:
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").open()]
        found[split] = [r["references"][: 1 if split == "train" else None] for r in rows]
    return found


def training_rows(rows: Rows, packed_to: int | None) -> Dataset:
    """The rows that are trained on, each by itself or packed by TRL."""
    found = Dataset.from_dict({"input_ids": rows.input_ids, "labels": rows.labels})
    return found if packed_to is None else pack_dataset(found, packed_to)


class Collator:
    """TRL's collator, which also notes the rows and their order.

    Attributes:
        order: Of all batches so far: two runs of one digest had the same rows in the same order.
    """

    def __init__(self, pad_token_id: int, is_packed: bool) -> None:
        self.order = hashlib.sha256()
        self._collator = DataCollatorForLanguageModeling(pad_token_id, padding_free=is_packed)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        self.order.update(json.dumps([one["input_ids"] for one in examples]).encode())
        return self._collator(examples)


class Evaluation(TrainerCallback):
    """What is measured of a run, always without noise: its losses as it trains, and two models.

    The best model is that of the lowest validation loss; its test rows have no part in the choice.
    """

    def __init__(
        self,
        settings: Settings,
        rows: dict[str, Rows],
        references: dict[str, list[list[str]]],
        tokenizer: Any,
        every: int,
    ) -> None:
        self.settings, self.rows, self.references = settings, rows, references
        self.tokenizer, self.every = tokenizer, every
        self.evaluations: list[dict[str, float]] = []
        self.batch_size = settings.get("evaluation_batch_size", BATCH)
        self.lowest = math.inf

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every:
            return
        model.eval()
        losses = {f"{split}_loss": mean(self._losses(model, split)) for split in AS_IT_TRAINS}
        model.train()
        here = {"step": state.global_step, "epoch": round(state.epoch, 3)}
        self.evaluations.append(here | losses)
        if losses["validation_loss"] < self.lowest:
            self.lowest, self.best_step = losses["validation_loss"], state.global_step
            self.best = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def finish(self, model: Any) -> dict[str, Any]:
        """What was measured, of the model as it is and then of the best, which it is left as."""
        last = self.evaluations[-1]["step"]
        end = best = self._measure(model, last)
        if self.best_step != last:
            model.load_state_dict(self.best)
            best = self._measure(model, self.best_step)
        return {"evaluations": self.evaluations, "end": end, "best": best}

    def _measure(self, model: Any, step: float) -> dict[str, Any]:
        model.eval()
        losses = {f"{split}_losses": self._losses(model, split) for split in OF_A_MODEL}
        outputs = {f"{split}_outputs": self._answers(model, split) for split in ANSWERED}
        return {"step": step, **losses, **outputs}

    def _losses(self, model: Any, split: str) -> list[float | None]:
        count, rows = ROWS[split], self.rows[split]
        first = Rows(rows.input_ids[:count], rows.labels[:count], rows.prompts[:count], count)
        return rounded(row_losses(model, first, self.batch_size))

    def _answers(self, model: Any, split: str) -> dict[str, list[float | None]]:
        """Metric -> its value for each output. The texts are not kept: they may be the data's."""
        rows, prefix = self.rows[split], self.settings["prefix"]
        answers = generate(
            model,
            self.tokenizer,
            [rows.prompt_ids(row) for row in range(min(ANSWERED[split], len(rows)))],
            stop_ids(model, self.tokenizer, rows),
            max_new_tokens=self.settings["max_new_tokens"],
            repetition_penalty=1.0,  # the prompts of CommonGen hold the words of the answer
            batch_size=self.batch_size,
        )
        scores = [
            example_metrics(one.output, known, one.tokens, one.stopped, prefix=prefix)
            for one, known in zip(answers, self.references[split], strict=False)
        ]
        return {metric: rounded([score[metric] for score in scores]) for metric in METRICS}


def commit() -> str | None:
    """The commit of this checkout, with a + where files differ from it; None outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **OUTPUT).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **OUTPUT).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def weights_digest(model: Any) -> str:
    """All weights in one text: two models of one digest are equal, bit for bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), DIGITS)


def rounded(values: list[float | None]) -> list[float | None]:
    return [None if value is None else round(value, DIGITS) for value in values]
