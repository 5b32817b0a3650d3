"""A YAML -> all that can be said of its run's noise before it starts, as one dict for JSON."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neft_plugins.config import NEFTConfig, NEFTWarning
from neft_plugins.keys import ALPHA_KEY, number_in_text
from neft_plugins.model.doubts import doubts
from neft_plugins.model.embeddings import find_embeddings
from neft_plugins.noise.distributions import VARIANCE
from neft_plugins.noise.meter import NoiseStats
from neft_plugins.preview.batches import Sample, axolotl_sample, trl_sample
from neft_plugins.preview.embedding import Skeleton, build_skeleton, read_energies
from neft_plugins.preview.recipe import Recipe, read_recipe
from neft_plugins.preview.strength import Strength, read_tokens
from neft_plugins.rows.stand_in import offline, stand_in_model
from neft_plugins.version import __version__

LENGTHS = [2**power for power in range(6, 14)]
"""Of documents, where the data is not at hand."""
PERCENTILES = (5, 50, 95)
"""Of the lengths of the data's documents."""
RATIOS = (0.05, 0.1, 0.3, 1.0)
"""The noise-to-signal ratios that the advice is for."""
STUDY = (
    "By a study on a small model (docs/results.md), noise helps where the training loss ends far "
    "below the held-out loss: begin with 0.3, or with about 1 that falls to 0 on the response "
    "alone. A constant 1.15 did harm, and with LoRA, which did not overfit, no noise helped."
)
"""What is known of which ratio helps."""
FEW_ROWS, MANY_EPOCHS = 1000, 3
"""Data so small that is seen so often is learned by heart."""
_MOST_POINTS = 200
"""Of the curve of alpha."""
_NOMINAL_STEPS = 1000
"""Of training, where their number is not known."""


def preview(
    path: str | Path,
    *,
    rows: int = 1000,
    num_processes: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What noise a run will have: nothing is trained, downloaded or loaded whole.

    Each part is left out where what it needs is not at hand; ``unknown`` says why.

    Args:
        path: The YAML of ``neft sft`` (or ``trl sft``) or of Axolotl.
        rows: Rows of the dataset to look at, at most.
        num_processes: Data-parallel processes of the run; unset, the YAML's, or 1.
        changes: Keys that are to be other than in the YAML.

    Returns:
        What ``preview.json`` holds; numbers that are not known are None.

    Raises:
        ValueError: For what training would refuse of the noise.
        OSError: If the file cannot be read.
        yaml.YAMLError: If it is not YAML.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe = read_recipe(path, changes)
        with offline():
            made = _Preview(recipe, rows, num_processes).make()
    ours = [str(each.message) for each in caught if issubclass(each.category, NEFTWarning)]
    made["warnings"] = [*dict.fromkeys([*ours, *made["warnings"]])]
    return {"neft_plugins_version": __version__, "path": str(path), **made}


class Point(NamedTuple):
    """A step that is shown.

    Attributes:
        name: start, peak, middle or end.
        step: Which; None where the number of steps is not known.
        alpha: alpha(t) there.
    """

    name: str
    step: int | None
    alpha: float


class _Preview:
    """The parts, each of which may fail alone."""

    def __init__(self, recipe: Recipe, rows: int, num_processes: int | None) -> None:
        self.recipe, self.rows = recipe, rows
        self.num_processes = num_processes or recipe.num_processes or 1
        self.unknown: list[str] = []
        self.config = recipe.config or NEFTConfig(0)
        self.sample = self._attempt("Data", self._read_sample)
        self.skeleton = self._attempt("Model", self._read_skeleton)
        read = self._attempt("Embedding", self._read_energies) if self.skeleton else None
        self.energies, self.dtype = read or (None, self.recipe.dtype)
        self.steps = self.sample.total_steps if self.sample else self._max_steps()
        self.strength: Strength | None = None
        self.points: list[Point] = []
        self.curve: list[list[float]] = []

    def make(self) -> dict[str, Any]:
        sample, skeleton = self.sample, self.skeleton
        self.strength = self._attempt("Noise", self._measure) if sample is not None else None
        self.points = self._attempt("Alpha", self._find_points) or []
        return {
            "host": self.recipe.host,
            "model": self.recipe.model,
            "noise": None if self.recipe.config is None else self.config.to_dict(),
            "description": self._description(),
            "total_steps": self.steps,
            "total_steps_is_exact": self.steps is not None and (sample is None or sample.is_exact),
            "num_processes": self.num_processes,
            "epochs": sample and sample.epochs,
            "rows": sample and sample.rows,
            "rows_of_dataset": sample and sample.count,
            "embedding": skeleton
            and {
                "name": skeleton.embedding.name,
                "hidden_size": skeleton.hidden_size,
                "dtype": str(self.dtype or skeleton.dtype).removeprefix("torch."),
                "factor": skeleton.factor,
                "rms": _number(self._vocabulary_energy() / skeleton.hidden_size, math.sqrt),
            },
            "alpha": self.curve,
            "points": [self._logged(point) for point in self.points],
            "table": self._table(),
            "builtin": self._builtin(),
            "advice": self._advice(),
            "study": STUDY,
            "warnings": self._warnings(),
            "unknown": self.unknown,
        }

    def _attempt(self, what: str, part: Callable[[], Any]) -> Any:
        try:
            return part()
        except Exception as error:  # of hosts, models and data of any kind: the rest is shown
            reason = " ".join(str(error).split()) or type(error).__name__
            self.unknown.append(f"{what}: {reason}")
            return None

    def _read_sample(self) -> Sample:
        if self.recipe.host == "trl":
            return trl_sample(self.recipe.keys, self.rows, self.num_processes)
        return axolotl_sample(self.recipe.keys, self.rows, self.num_processes)

    def _read_skeleton(self) -> Skeleton:
        recipe = self.recipe
        return build_skeleton(recipe.model, recipe.dtype, recipe.revision, recipe.trust)

    def _read_energies(self) -> tuple[Tensor, torch.dtype]:
        return read_energies(self.skeleton, self.recipe.model, self.recipe.revision)

    def _measure(self) -> Strength:
        config = self.config
        model = self.skeleton.model if self.skeleton else stand_in_model()
        embedding = self.skeleton.embedding if self.skeleton else find_embeddings(model)[0]
        tokens = read_tokens(
            self.sample.batches, config, model, embedding, self.sample.tokenizer, self.energies
        )
        if self.energies is not None and bool(tokens.energy.isnan().any()):
            self.unknown.append(
                "Embedding: the checkpoint has none of some tokens, which are added before "
                "training; the signal is that of the others."
            )
        size, factor = (None, 1.0)
        if self.skeleton is not None:
            size, factor = self.skeleton.hidden_size, self.skeleton.factor
        return Strength(tokens, config, size, factor)

    def _find_points(self) -> list[Point]:
        """The steps that are shown, and the curve of alpha between them."""
        config, steps = self.config, self.steps
        if steps is None:
            self.unknown.append(
                "Steps: how many training has is not known, so alpha is shown over the fraction of "
                "training."
            )
            if config.warmup_steps >= 1:
                self.unknown.append("Warm-up: it counts steps, so it is not shown.")
                config = replace(config, warmup_steps=0)
        total = steps or _NOMINAL_STEPS
        schedule = config.build_schedule(total)
        places = {*range(0, total, max(total // _MOST_POINTS, 1)), total // 2, total - 1}
        alphas = {step: float(schedule(step)) for step in sorted(places)}
        self.curve = [[step if steps else step / total, alpha] for step, alpha in alphas.items()]
        named = {"start": 0, "middle": total // 2, "end": total - 1}
        peak = max(alphas, key=lambda step: alphas[step])
        if alphas[peak] > max(alphas[step] for step in named.values()):
            named["peak"] = peak
        return [
            Point(name, step if steps else None, alphas[step])
            for name, step in sorted(named.items(), key=lambda each: each[1])
        ]

    def _logged(self, point: Point) -> dict[str, Any]:
        """What training would log at a step, over this data."""
        stats = self.strength.stats(point.alpha) if self.strength else None
        numbers = {} if stats is None else stats._asdict()
        return {
            **point._asdict(),
            **{name: _number(numbers.get(name)) for name in NoiseStats._fields},
        }

    def _table(self) -> list[dict[str, Any]]:
        """The noise by the length of the document."""
        strength, table = self.strength, []
        if strength is None:
            lengths: dict[int, int | None] = dict.fromkeys(LENGTHS)
        else:
            found = strength.document_lengths([p / 100 for p in PERCENTILES])
            lengths = dict(zip(PERCENTILES, found, strict=True))
        for key, length in lengths.items():
            tokens = key if length is None else length
            row: dict[str, Any] = {"percentile": None if length is None else key, "tokens": tokens}
            for point in self.points:
                stats = self._of_length(tokens, point.alpha)
                row[point.name] = stats and {
                    "noise_rms": _number(stats.noise_rms),
                    "noise_to_signal": _number(stats.noise_to_signal),
                }
            table.append(row)
        return table

    def _of_length(self, tokens: int, alpha: float) -> NoiseStats | None:
        if self.strength is not None:
            return self.strength.stats(alpha, self.strength.tokens.document == tokens)
        if self.skeleton is None:
            return None
        energy = self._vocabulary_energy()
        relative = self.config.scale == "relative"
        noise = alpha**2 * (energy if relative else VARIANCE * self.skeleton.factor**2 / tokens)
        ratio = alpha if relative else math.sqrt(noise / energy)
        return NoiseStats(math.sqrt(noise / self.skeleton.hidden_size), ratio, math.nan)

    def _vocabulary_energy(self) -> float:
        return math.nan if self.energies is None else float(self.energies.mean())

    def _builtin(self) -> dict[str, float | None] | None:
        if self.strength is None:
            return None
        ratio = self.strength.builtin_ratio()
        return {"ratio": ratio, "on_padding": self.strength.builtin_on_padding()}

    def _advice(self) -> list[dict[str, Any]]:
        """The alpha that gives the median document a noise-to-signal ratio."""
        if self.strength is None or self.energies is None:
            return []
        (median,) = self.strength.document_lengths([0.5])
        return [
            {
                "noise_to_signal": ratio,
                "alpha": _number(self.strength.alpha_for(ratio, median)),
                "relative": ratio,
            }
            for ratio in RATIOS
        ]

    def _warnings(self) -> list[str]:
        """What training would warn of, and what it could not know."""
        found: dict[str, str] = {}
        config, dtype = self.config, self.dtype or torch.float32
        if config.alpha > 0 and self.curve and all(alpha == 0 for _, alpha in self.curve):
            found["never"] = (
                f"`neft_schedule: {config.schedule}` gives alpha 0 at every step, so there would "
                "be no noise. Check `neft_schedule_args` and `neft_warmup_steps`."
            )
        if self.strength is not None and config.alpha > 0:
            for point in self.points:
                stats: Any = self.strength.stats(point.alpha)
                if math.isnan(stats.noise_to_signal):
                    stats = stats._replace(noise_to_signal=0.0)
                for kind, text in doubts(stats, config, point.alpha, dtype, True):
                    found.setdefault(kind, text)
        sample = self.sample
        count, epochs = (sample.count, sample.epochs) if sample else (None, None)
        if count and epochs and count <= FEW_ROWS and epochs >= MANY_EPOCHS:
            found["few rows"] = (
                f"The data has {count} rows, and each is seen {epochs:.3g} times: enough for a "
                "model to learn answers by heart, of which the training loss says nothing. "
                "Evaluate on held-out rows at each epoch, and compare the best epoch with noise to "
                "the best one without."
            )
        return [*found.values()]

    def _description(self) -> str:
        if self.recipe.config is None:
            return (
                f"No noise: `{ALPHA_KEY}` is not set. Set it (5 to 15 is typical), for example to "
                "an alpha of the table of advice."
            )
        if self.config.alpha == 0:
            return f"No noise: `{ALPHA_KEY}` is 0, for a baseline."
        return self.config.describe(self.steps)

    def _max_steps(self) -> int | None:
        """Where the data is not at hand."""
        steps = number_in_text(self.recipe.keys.get("max_steps"))
        return steps if isinstance(steps, int) and steps > 0 else None


def _number(value: float | None, of: Callable[[float], float] = float) -> float | None:
    """A number for JSON, which knows neither NaN nor infinity."""
    return of(value) if value is not None and math.isfinite(value) else None
