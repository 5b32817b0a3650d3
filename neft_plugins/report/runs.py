"""What the folder of a run holds: its log, its noise, its models, and where its data is from."""

import filecmp
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from neft_plugins.config import OPTIONS, NEFTConfig, NEFTConfigError
from neft_plugins.keys import ALPHA_KEY, AXOLOTL_KEYS_FILE, read_yaml
from neft_plugins.trainer.record import CONFIG_FILE, read_record
from neft_plugins.trl.checkpoints import STATE_FILE
from neft_plugins.trl.run_keys import KEYS_FILE

ADAPTER_CONFIG = "adapter_config.json"
_MODEL_CONFIG = "config.json"
_WEIGHTS = {
    ADAPTER_CONFIG: ("adapter_model.safetensors", "adapter_model.bin"),
    _MODEL_CONFIG: ("model.safetensors", "pytorch_model.bin"),
}
"""A config -> the files in which its weights may be."""
_WEIGHT_FILES = tuple(
    f"{name}*.{kind}"
    for name in ("adapter_model", "model", "pytorch_model")
    for kind in ("safetensors", "bin")
)
_STEP = re.compile(r"checkpoint-(\d+)")


class NoRunError(ValueError):
    """A folder is no run's; the message says what one holds."""


@dataclass(frozen=True)
class SavedModel:
    """A model, or an adapter, as it was saved at a step.

    Attributes:
        name: ``checkpoint-N``, or ``end`` for the model beside the checkpoints.
        path: The folder.
        step: Optimizer steps trained; None where that is not known.
        problem: What is missing of it, as a sentence; None where it is whole.
    """

    name: str
    path: Path
    step: int | None
    problem: str | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether it is a PEFT adapter, which needs its base."""
        return (self.path / ADAPTER_CONFIG).is_file()

    @property
    def weights(self) -> list[Path]:
        """Its files of weights, by name."""
        return [each for kind in _WEIGHT_FILES for each in sorted(self.path.glob(kind))]

    @property
    def fingerprint(self) -> str:
        """Changes when the weights are written anew."""
        stats = [(file.name, file.stat()) for file in self.weights]
        return ",".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


@dataclass(frozen=True)
class Run:
    """A run, by its folder.

    Attributes:
        name: Its name in a report.
        path: The folder.
        log: A row for each step that was logged: step, epoch, loss, eval_loss, alpha,
            noise_to_signal, noised_tokens; None where not logged.
        checkpoints: The models it saved, by step.
        end: The model beside the checkpoints, or else the last whole checkpoint; None where there
            is none.
        noise: What noise it had, as a line; None where that is not known.
        trl_keys: The keys that ``neft sft`` kept; None for other runs.
        axolotl_keys: The keys of Axolotl's YAML, from its model card; None for other runs.
        problems: What could not be read, as sentences.
    """

    name: str
    path: Path
    log: list[dict[str, Any]]
    checkpoints: list[SavedModel]
    end: SavedModel | None
    noise: str | None
    trl_keys: dict[str, Any] | None
    axolotl_keys: dict[str, Any] | None
    problems: list[str] = field(default_factory=list)

    @property
    def keys(self) -> dict[str, Any]:
        """What is known of its config."""
        return self.trl_keys or self.axolotl_keys or {}

    @property
    def base_model(self) -> str | None:
        """The model it began with: a Hub id or a folder, where that is known."""
        given = self.keys.get("model_name_or_path") or self.keys.get("base_model")
        named = (
            _read_json(model.path / ADAPTER_CONFIG).get("base_model_name_or_path")
            for model in (self.end, *self.checkpoints)
            if model is not None and model.is_adapter
        )
        return given or next(filter(None, named), None)

    @property
    def bits(self) -> int | None:
        """4 or 8 where its base was quantised by bitsandbytes, as far as its config says."""
        return next((bits for bits in (4, 8) if self.keys.get(f"load_in_{bits}bit")), None)

    @property
    def nested_bits(self) -> bool:
        """Whether the constants of a 4-bit base are quantised too.

        A key of TRL's asks for it; in Axolotl one may forbid it.
        """
        if self.axolotl_keys is not None:
            given = self.axolotl_keys.get("bnb_config_kwargs") or {}
            return bool(given.get("bnb_4bit_use_double_quant", True))
        return bool(self.keys.get("use_bnb_nested_quant"))

    def method(self, bits: int | None = None) -> str:
        """What was trained.

        Args:
            bits: Of the base, where they are known better than by the config.
        """
        bits = bits or self.bits
        if self.end is None or not self.end.is_adapter:
            return "full"
        kind = str(_read_json(self.end.path / ADAPTER_CONFIG).get("peft_type", "adapter"))
        kind = {"LORA": "LoRA"}.get(kind, kind)
        return f"{kind} on a {bits}-bit base" if bits else kind


def read_run(path: str | Path, name: str | None = None) -> Run:
    """Read the folder of a run, finished or not: of ``neft sft``, Axolotl, or any ``Trainer``.

    Args:
        path: The output folder, or one checkpoint.
        name: Its name in a report; unset, the folder's.

    Returns:
        What it holds; ``problems`` says what it does not.

    Raises:
        NoRunError: If it is no folder, or has neither a log nor a model.
    """
    path = Path(path)
    name = name or path.resolve().name
    if not path.is_dir():
        raise NoRunError(f"{path} is no run: there is no such folder. Give an output folder.")
    problems: list[str] = []
    saved = list(_saved_models(path))
    state = _newest_state([path, *(model.path for model in saved)], problems)
    if state is None and not saved:
        raise NoRunError(
            f"{path} is no run: it has no {STATE_FILE}, no checkpoint-N and no model. Give the "
            "output folder of a training run."
        )
    if state is None:
        problems.append(
            f"{path} has no {STATE_FILE}, so the losses and alphas of its training are not known."
        )
    checkpoints, end = _in_order(saved, state, problems)
    if end is None:
        problems.append(f"{path} has no whole model, so nothing can be evaluated.")
    above = [path.resolve().parent] if _STEP.fullmatch(path.resolve().name) else []
    trl_keys, axolotl_keys = _keys([path, *above], problems)
    return Run(
        name=name,
        path=path,
        log=_log(state["log_history"]) if state else [],
        checkpoints=checkpoints,
        end=end,
        noise=_what_noise(path, trl_keys or axolotl_keys, problems),
        trl_keys=trl_keys,
        axolotl_keys=axolotl_keys,
        problems=problems,
    )


def read_runs(paths: list[str]) -> list[Run]:
    """Several runs, each with a name of its own: the folder's, or where two share it, the path.

    Args:
        paths: Their folders.

    Returns:
        The runs, in this order.

    Raises:
        NoRunError: As ``read_run``; if a folder is given twice.
    """
    places = [Path(path).resolve() for path in paths]
    if len({*places}) < len(places):
        raise NoRunError(f"A run is given twice: {', '.join(paths)}. Give each once.")
    names = [place.name for place in places]
    return [
        read_run(path, name if names.count(name) == 1 else path)
        for path, name in zip(paths, names, strict=True)
    ]


def _saved_models(path: Path) -> Iterator[SavedModel]:
    """The model of a folder itself, if it has one, and its checkpoints."""
    own_step = _STEP.fullmatch(path.resolve().name)
    names = (*_WEIGHTS, *(name for names in _WEIGHTS.values() for name in names))
    if any((path / name).is_file() for name in names):
        step = int(own_step[1]) if own_step else None
        yield SavedModel(own_step[0] if own_step else "end", path, step, _missing(path))
    for folder in path.iterdir():
        found = _STEP.fullmatch(folder.name)
        if found and folder.is_dir():
            yield SavedModel(folder.name, folder, int(found[1]), _missing(folder))


def _in_order(
    saved: list[SavedModel], state: dict[str, Any] | None, problems: list[str]
) -> tuple[list[SavedModel], SavedModel | None]:
    """The models by step, the one beside the checkpoints in its place; and the one to look at."""
    beside = next((model for model in saved if model.step is None), None)
    steps = {model.step: model for model in saved if model.step is not None}
    if beside is not None and beside.problem:
        problems.append(beside.problem)
    elif beside is not None:
        # Where a run loads its best checkpoint at the end, this is that one, and not the last.
        step = state["global_step"] if state else max(steps, default=0)
        best = steps.get((state or {}).get("best_global_step", -1))
        if best is not None and best.step != step and _has_same_weights(beside, best):
            step = best.step or 0
        beside = SavedModel(beside.name, beside.path, step)
        steps[step] = beside
        return [steps[step] for step in sorted(steps)], beside
    ordered = [steps[step] for step in sorted(steps)]
    return ordered, next((model for model in reversed(ordered) if not model.problem), None)


def _has_same_weights(a: SavedModel, b: SavedModel) -> bool:
    names = [file.name for file in a.weights]
    if names != [file.name for file in b.weights]:
        return False
    return not any(filecmp.cmpfiles(a.path, b.path, names, shallow=False)[1:])


def _missing(path: Path) -> str | None:
    """What a model's folder lacks."""
    config = next((name for name in _WEIGHTS if (path / name).is_file()), None)
    if config == ADAPTER_CONFIG and not _read_json(path / config):
        return f"{path / config} is damaged: it is no JSON with keys."
    if config is None:
        sharded = [*path.glob("global_step*"), *path.glob("pytorch_model_fsdp*")]
        why = " It is cut into the shards of its ranks; merge them." if sharded else ""
        return f"{path} has no {ADAPTER_CONFIG} and no {_MODEL_CONFIG}, so no model.{why}"
    for name in _WEIGHTS[config]:
        if (path / name).is_file():
            return None
        index = path / f"{name}.index.json"
        if index.is_file():
            parts = sorted({*_read_json(index).get("weight_map", {}).values()})
            gone = [part for part in parts if not (path / part).is_file()]
            return f"{path} lacks {', '.join(gone)}, which its index names." if gone else None
    return f"{path} has {config} and lacks its weights, {_WEIGHTS[config][0]}."


def _newest_state(folders: list[Path], problems: list[str]) -> dict[str, Any] | None:
    """The trainer's state after the most steps."""
    states = []
    for folder in folders:
        file = folder / STATE_FILE
        if not file.is_file():
            continue
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            history = [{**entry} for entry in state["log_history"]]
            step, best = int(state["global_step"]), state.get("best_global_step")
            states.append({"global_step": step, "log_history": history, "best_global_step": best})
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"{file} cannot be read ({error!r}). A run was killed while it saved.")
    return max(states, key=lambda state: state["global_step"], default=None)


def _log(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each step that logged a loss, of training or evaluation."""
    names = {
        "epoch": "epoch",
        "loss": "loss",
        "eval_loss": "eval_loss",
        "alpha": "neft/alpha",
        "noise_to_signal": "neft/noise_to_signal",
        "noised_tokens": "neft/noised_tokens",
    }
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        if "step" in entry and ("loss" in entry or "eval_loss" in entry):
            row = rows.setdefault(entry["step"], {"step": entry["step"], **dict.fromkeys(names)})
            row |= {name: entry[key] for name, key in names.items() if key in entry}
    return [rows[step] for step in sorted(rows)]


def _what_noise(path: Path, keys: dict[str, Any] | None, problems: list[str]) -> str | None:
    """The noise in a line, and the sparsity."""
    noise = _noise(path, keys, problems)
    if keys is None or keys.get("neft_sparsity") is None:
        return noise
    sparsity = keys["neft_sparsity"]
    given = keys.get("neft_sparsity_args")
    text = f"sparsity {sparsity}" + (f" {json.dumps(given)}" if given else "")
    return f"{'noise not known' if noise is None else noise}; {text}"


def _noise(path: Path, keys: dict[str, Any] | None, problems: list[str]) -> str | None:
    """The noise in a line, by the record beside the model, or by the run's keys."""
    if (path / CONFIG_FILE).is_file():
        try:
            record = read_record(path)
            options = {name: value for name, value in record.items() if name in OPTIONS}
            return NEFTConfig(**options, warn=False).describe(record.get("total_steps"))
        except (ValueError, TypeError) as error:
            problems.append(f"{path / CONFIG_FILE} cannot be read: {error}")
            return None
    if keys is None:
        return None
    try:
        config = NEFTConfig.from_keys(keys, warn=False)
    except NEFTConfigError:
        config = None
    if config is not None:
        return f"by its config: {config.describe(None)}"
    return None if keys.get(ALPHA_KEY) else "none"


def _keys(
    folders: list[Path], problems: list[str]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The keys of ``neft sft``, and those of Axolotl: of one folder, or of none."""
    for folder in folders:
        for name in (KEYS_FILE, AXOLOTL_KEYS_FILE):
            if not (folder / name).is_file():
                continue
            try:
                keys = read_yaml(folder / name)
            except (ValueError, yaml.YAMLError) as error:
                problems.append(f"{folder / name} cannot be read: {' '.join(str(error).split())}")
                continue
            return (keys, None) if name == KEYS_FILE else (None, keys)
        in_card = _keys_in_model_card(folder)
        if in_card is not None:
            return None, in_card
    return None, None


def _keys_in_model_card(path: Path) -> dict[str, Any] | None:
    """The YAML that Axolotl puts into the model card which it writes."""
    card = path / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"axolotl version: `[^`]*`\s*```yaml\n(.*?)\n```", text, flags=re.DOTALL)
    if found is None:
        return None
    try:
        keys = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return None
    return keys if isinstance(keys, dict) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
