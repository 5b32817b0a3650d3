"""attach_neft: the noise on a model, and the handle through which training drives it."""

import math
import warnings
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from neft_plugins import _compat, registry
from neft_plugins.config import NEFTConfig, NEFTWarning
from neft_plugins.keys import ALPHA_KEY
from neft_plugins.model import embeddings as finder
from neft_plugins.model import tokenizer as tokenizers
from neft_plugins.model.batch import NOTED
from neft_plugins.model.doubts import doubts
from neft_plugins.model.hooks import EmbeddingHook, hook
from neft_plugins.model.passes import ForwardPasses, MicroBatch
from neft_plugins.model.shards import SequenceShards
from neft_plugins.model.site import NoiseSite
from neft_plugins.noise import meter, seeds


def attach_neft(
    model: nn.Module,
    config: NEFTConfig,
    total_steps: int | None = None,
    *,
    embedding: str | nn.Module | None = None,
    decoder: bool = False,
    data_rank: int | None = None,
    data_world_size: int | None = None,
    seed: int | None = None,
    pad_token_id: int | None = None,
    tokenizer: Any = None,
    shards: SequenceShards | None = None,
    run: object = None,
) -> "NEFTHandle":
    """Add noise to a model's input embeddings in every training forward pass, until removed.

    Args:
        model: A ``PreTrainedModel``, a PEFT model, or any module when ``embedding`` is given;
            compiled or wrapped for data parallelism, or not.
        config: What noise.
        total_steps: Optimizer steps of the run; needed by schedules that decay.
        embedding: The embedding module, or its dotted name, where the model cannot be asked.
        decoder: For an encoder-decoder, also the decoder's embedding.
        data_rank: This process's data-parallel rank; unset, that of ``torch.distributed``, if any.
        data_world_size: Number of data-parallel ranks; likewise.
        seed: Seed where the config has none; unset, ``torch.initial_seed()``.
        pad_token_id: The tokenizer's padding token, by which packed rows without an
            ``attention_mask`` show their padding; unset, the tokenizer's, or that of the model's
            config.
        tokenizer: The tokenizer, or a processor that has one; ``tokens: no_special`` needs it.
        shards: The ranks among which each row of a batch is cut (context parallelism), if any.
            They share a ``data_rank``.
        run: What the noise is attached for, noted on the handle.

    Returns:
        The handle: a context manager, on which ``set_step`` is called for every micro-batch.

    Raises:
        ValueError: If the embedding cannot be found, or only one of rank and world size is given.
        RuntimeError: If noise is attached already, ours or the built-in.
    """
    if not isinstance(config, NEFTConfig):
        raise TypeError(f"`config` must be a NEFTConfig; got {config!r}.")
    if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
        raise ValueError(f"`total_steps` must be an int >= 1 or None; got {total_steps!r}.")
    model = finder.unwrap(model)
    found = finder.find_embeddings(model, embedding, decoder)
    _refuse_second_noise(model)
    if shards is not None and data_rank is None:
        raise ValueError(
            "With `shards`, give `data_rank` and `data_world_size` too: the ranks that hold parts "
            "of the same rows have one data rank."
        )
    rank, world_size = _place_among_ranks(data_rank, data_world_size)
    seed = next(s for s in (config.seed, seed, torch.initial_seed()) if s is not None)
    if shards is not None and config.pairs is not None:
        raise ValueError(
            f"`pairs: {config.pairs}` does not go with rows that are cut over ranks (context or "
            "sequence parallelism), where a row and its other one lie on different ranks. Leave "
            "`pairs` unset."
        )
    alone = len(found) == 1
    pad = tokenizers.pad_token_id(tokenizer) if pad_token_id is None else pad_token_id
    special = tokenizers.special_tokens(tokenizer)
    sites = [NoiseSite(model, where, config, alone, pad, shards, special) for where in found]
    return NEFTHandle(model, config, sites, total_steps, seed, rank, world_size, shards, run)


class NEFTHandle:
    """The noise on a model: where training says which step it is, and where the noise is taken off.

    Made by ``attach_neft``. ``with handle:`` or ``remove()`` leaves the model as it was.

    Attributes:
        config: What noise.
        total_steps: Optimizer steps of the run, or None.
        seed: The seed of the noise, as resolved.
        alpha: alpha(t) at the step last set.
        run: What the noise was attached for, compared by identity; None in a plain loop.
    """

    def __init__(
        self,
        model: nn.Module,
        config: NEFTConfig,
        sites: list[NoiseSite],
        total_steps: int | None,
        seed: int,
        data_rank: int,
        data_world_size: int,
        shards: SequenceShards | None = None,
        run: object = None,
    ) -> None:
        self.config = config
        self.total_steps = total_steps
        self.run = run
        self._schedule = config.build_schedule(total_steps)
        self.seed, self._rank, self._world_size = seed, data_rank, data_world_size
        self._shards = shards
        self._sites = sites
        self._warned_of: set[str] = set()
        self._passes = ForwardPasses(type(model).__name__, sites, owner=self)
        # Before the hooks: what is wrong with a schedule is said without any.
        self._passes.begin(self._micro_batch(0, 0), by_user=False)
        self._hooks = [] if config.alpha == 0 else hook(model, self._passes)
        self._passes.start(model)

    @property
    def has_fired(self) -> bool:
        """Whether the noise was on in any forward pass yet, alpha 0 or not."""
        return self._passes.has_fired

    def set_step(self, step: int, micro_step: int = 0) -> None:
        """Say which micro-batch comes next. Call before every micro-batch of training.

        The noise of its forward passes is a pure function of ``(seed, step, micro_step, rank)`` and
        of how many noisy passes came before since this call: a loss that makes several has
        different noise in each.

        Args:
            step: t, the optimizer steps done so far.
            micro_step: Gradient-accumulation step within t, from 0.
        """
        if not all(type(count) is int and count >= 0 for count in (step, micro_step)):
            raise ValueError(
                f"`step` and `micro_step` count from 0; got step={step!r}, "
                f"micro_step={micro_step!r}."
            )
        self._passes.refuse_later_adapters()
        self._passes.begin(self._micro_batch(step, micro_step))

    def _micro_batch(self, step: int, micro_step: int) -> MicroBatch:
        try:
            alpha = self._schedule(step)
        except Exception as error:
            raise registry.failure("schedule", self.config.schedule, error) from error
        if not isinstance(alpha, Real) or not 0 <= alpha < math.inf:
            raise ValueError(
                f"The schedule {self.config.schedule!r} gave alpha {alpha!r} at step {step}; it "
                "must be a number >= 0."
            )
        self.alpha = float(alpha)
        micro_batch = seeds.micro_batch_index(micro_step, self._rank, self._world_size)
        shard = 0 if self._shards is None else self._shards.rank
        site_seeds = [
            seeds.micro_batch_seed(self.seed, step, micro_batch, site, shard)
            for site in range(len(self._sites))
        ]
        return MicroBatch(
            step,
            micro_step,
            torch.full((), self.alpha, dtype=torch.float32, device=self._sites[0].device),
            [
                torch.full((), seed, dtype=torch.int64, device=site.seed_device)
                for site, seed in zip(self._sites, site_seeds, strict=True)
            ],
            silent=self.alpha == 0,
        )

    def set_batch(self, **batch: Tensor | None) -> None:
        """Say what the model will not be given, such as the labels of a loss computed outside it.

        Args:
            **batch: ``labels``, ``attention_mask``, ``position_ids``, ...; what the model is given
                itself comes first. Holds until the next call; without arguments, forget.
        """
        unknown = batch.keys() - NOTED
        if unknown:
            raise ValueError(
                f"`set_batch` takes {', '.join(sorted(NOTED))}; got {', '.join(sorted(unknown))}."
            )
        self._passes.extra = batch

    def metrics(self) -> dict[str, float]:
        """What the noise was since the last call; waits for the device.

        Returns:
            ``neft/alpha`` at the step last set; and over this process's forward passes
            ``neft/noise_rms``, ``neft/noise_to_signal`` (noise RMS over embedding RMS of noised
            tokens), ``neft/noised_tokens`` (fraction of real tokens), where there was any.
        """
        self._passes.warn_if_step_was_never_set()
        logs = {"neft/alpha": self.alpha}
        sums = self._passes.take_sums()
        if sums is not None:
            stats = meter.summarise(sums)
            self._warn_of(stats)
            logs |= {f"neft/{name}": value for name, value in stats._asdict().items()}
        return logs

    def remove(self) -> None:
        """Take the noise off: no hook is left on the model. A second call does nothing."""
        if not self._hooks:
            return
        for each in self._hooks:
            each.remove()
        self._hooks = []
        self._passes.stop()
        self.metrics()
        if self._passes.ran_in_eval_mode and not self.has_fired:
            warnings.warn(
                f"The noise never fired: {self._passes.model_name} was called with gradients, but "
                "in eval mode, as it is after `from_pretrained`. Call `model.train()` before "
                "training.",
                NEFTWarning,
                stacklevel=2,
            )

    def __enter__(self) -> "NEFTHandle":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _warn_of(self, stats: meter.NoiseStats) -> None:
        """Once of each kind."""
        whole = self._shards is None
        for kind, text in doubts(stats, self.config, self.alpha, self._passes.dtype, whole):
            if kind not in self._warned_of:
                self._warned_of.add(kind)
                warnings.warn(text, NEFTWarning, stacklevel=3)


def attached_handle(model: nn.Module) -> NEFTHandle | None:
    """The handle of the noise that is on a model, if any."""
    for module in finder.unwrap(model).modules():
        for each in _compat.forward_hooks(module):
            owner = getattr(each, "__self__", None)
            if isinstance(owner, EmbeddingHook):
                return owner.passes.owner
    return None


def _place_among_ranks(data_rank: int | None, data_world_size: int | None) -> tuple[int, int]:
    if data_rank is not None and data_world_size is not None:
        if not 0 <= data_rank < data_world_size:
            raise ValueError(
                f"`data_rank` must be in [0, `data_world_size`); got {data_rank!r} of "
                f"{data_world_size!r}."
            )
        return data_rank, data_world_size
    if data_rank is not None or data_world_size is not None:
        raise ValueError(
            f"Give both `data_rank` and `data_world_size`, or neither; got {data_rank!r} and "
            f"{data_world_size!r}."
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _refuse_second_noise(model: nn.Module) -> None:
    if attached_handle(model) is not None:
        raise RuntimeError(
            f"NEFT noise is already attached to {type(model).__name__}, and would be added twice. "
            "Call `remove()` on the first handle or callback before attaching again."
        )
    for name, module in model.named_modules():
        for each in _compat.forward_hooks(module):
            if _compat.is_builtin_noise(each) and getattr(module, ALPHA_KEY, None) != 0:
                raise RuntimeError(
                    f"The built-in NEFTune hook is on '{name}' of {type(model).__name__}, so "
                    "noise would be added twice. Drop `neftune_noise_alpha` from the training "
                    "arguments and give alpha to NEFTConfig alone, or use NEFTSFTTrainer, which "
                    "takes the key over. If an interrupted run left the hook there, load the model "
                    "anew."
                )
