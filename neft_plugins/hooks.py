"""attach_neft: the noise on a model, by forward hooks on its modules.

A pre-hook on every module around the embedding notes the batch (the outermost one called does); the
embedding's hook reads from it which tokens get how much noise, draws and adds; nothing goes back.
The hooks are traced by ``torch.compile`` into the model's graph: what changes from step to step is
held in tensors, and the Python attributes that do change are only written there, not read.
"""

import inspect
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from neft_plugins import embeddings as finder
from neft_plugins.config import NEFTConfig, NEFTWarning
from neft_plugins.noise import meter, seeds
from neft_plugins.sites import NoiseSite

NOTED = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "seq_idx",
    "cu_seq_lens_q",
    "labels",
    "shift_labels",
    "decoder_input_ids",
    "decoder_attention_mask",
    "inputs_embeds",
)
"""The model's arguments that say which tokens are real, of which document, and trained on."""
TOKENS = {"input_ids", "inputs_embeds"}


class NoNoiseError(RuntimeError):
    """A training forward pass in which the noise did not reach the model."""


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

    Returns:
        The handle: a context manager, on which ``set_step`` is called for every micro-batch.

    Raises:
        ValueError: If the embedding cannot be found.
        RuntimeError: If noise is attached already, ours or the built-in.
    """
    model = finder.unwrap(model)
    found = finder.find_embeddings(model, embedding, decoder)
    _refuse_second_noise(model)
    if data_rank is None or data_world_size is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        data_rank = torch.distributed.get_rank() if distributed else 0
        data_world_size = torch.distributed.get_world_size() if distributed else 1
    seed = next(s for s in (config.seed, seed, torch.initial_seed()) if s is not None)
    sites = [NoiseSite(model, where, config, alone=len(found) == 1) for where in found]
    return NEFTHandle(model, config, sites, total_steps, seed, data_rank, data_world_size)


class NEFTHandle:
    """The noise on a model: where training says which step it is, and where the noise is taken off.

    Made by ``attach_neft``. ``with handle:`` or ``remove()`` leaves the model as it was.

    Attributes:
        config: What noise.
        total_steps: Optimizer steps of the run, or None.
        alpha: alpha(t) at the step last set.
        has_fired: Whether any forward pass got its noise yet.
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
    ) -> None:
        self.config = config
        self.total_steps = total_steps
        self.alpha = 0.0
        self.has_fired = False
        self.run: object = None
        self._model_name = type(model).__name__
        self._sites = sites
        self._schedule = config.build_schedule(total_steps)
        self._seed, self._rank, self._world_size = seed, data_rank, data_world_size
        self._switches = finder.adapter_switches(model)
        self._place = (0, 0)
        self._drawn = False
        self._told_drawn_again = self._told_rounded_away = False
        self._extra: dict[str, Any] = {}
        self._batch: dict[str, Any] | None = None
        self._owner: nn.Module | None = None
        self._sums: Tensor | None = None
        self.set_step(0)
        self._hooks = [
            hook
            for module in _around(model, sites)
            for hook in _BatchScope(self, module, model).register()
        ]
        self._hooks += [
            site.embedding.module.register_forward_hook(
                _EmbeddingHook(self, site).add, with_kwargs=True
            )
            for site in sites
        ]

    def set_step(self, step: int, micro_step: int = 0) -> None:
        """Say which micro-batch comes next. Call before every forward pass of training.

        The noise is a pure function of ``(seed, step, micro_step, rank)``: the same numbers give
        the same noise.

        Args:
            step: t, the optimizer steps done so far.
            micro_step: Gradient-accumulation step within t, from 0.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0 or micro_step < 0:
            raise ValueError(
                f"`step` and `micro_step` count from 0; got step={step!r}, "
                f"micro_step={micro_step!r}."
            )
        self._collect()
        self._place, self._drawn = (step, micro_step), False
        self.alpha = float(self._schedule(step))
        if not self.alpha >= 0:
            raise ValueError(
                f"The schedule {self.config.schedule!r} gave alpha {self.alpha!r} at step {step}; "
                "it must be a number >= 0."
            )
        micro_batch = seeds.micro_batch_index(micro_step, self._rank, self._world_size)
        for index, site in enumerate(self._sites):
            site.alpha.fill_(self.alpha)
            site.seed.fill_(seeds.noise_seed(self._seed, step, micro_batch, index))

    def set_batch(self, **batch: Tensor | None) -> None:
        """Say what the model will not be told, such as the labels of a loss computed outside it.

        Args:
            **batch: ``labels``, ``attention_mask``, ``position_ids``, ...; what the model is given
                itself comes first. Without arguments, forget.
        """
        self._extra = {key: value for key, value in batch.items() if key in NOTED}

    def metrics(self) -> dict[str, float]:
        """What the noise was since the last call; waits for the device.

        Returns:
            ``neft/alpha`` at the step last set; and over this process's forward passes
            ``neft/noise_rms``, ``neft/noise_to_signal`` (noise RMS over embedding RMS of noised
            tokens), ``neft/noised_tokens`` (share of real tokens), where there was any.
        """
        self._collect()
        logs = {"neft/alpha": self.alpha}
        if self._sums is not None:
            stats = meter.summarise(self._sums, self._sites[0].hidden_size)
            self._sums = None
            self._tell_if_rounded_away(stats)
            logs |= {f"neft/{name}": value for name, value in stats._asdict().items()}
        return logs

    def remove(self) -> None:
        """Take the noise off: no hook is left on the model. A second call does nothing."""
        if self._hooks:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
            self._extra, self._batch, self._owner = {}, None, None
            for site in self._sites:
                site.alpha.zero_()
            self.metrics()

    def __enter__(self) -> "NEFTHandle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def _is_on(self, module: nn.Module) -> bool:
        """Off in eval mode, without gradients, and while PEFT's adapters are off."""
        if not module.training or not torch.is_grad_enabled():
            return False
        return not any(getattr(owner, attribute) for owner, attribute in self._switches)

    def _collect(self) -> None:
        for site in self._sites:
            if site.sums is not None:
                self._sums = site.sums if self._sums is None else self._sums + site.sums
                site.sums = None

    def _tell_if_rounded_away(self, stats: meter.NoiseStats) -> None:
        resolution = torch.finfo(self._sites[0].dtype).eps
        strong = self.alpha >= 0.5 * self.config.alpha
        if self._told_rounded_away or not strong:
            return
        if not 0 < stats.noise_to_signal < resolution / 2:
            return
        self._told_rounded_away = True
        warnings.warn(
            f"The noise is {stats.noise_to_signal:.2g} of the embeddings, under half of what "
            f"{self._sites[0].dtype} resolves ({resolution:.2g}), so most of it is rounded away. "
            f"Raise alpha (now {self.alpha:g}), or use `scale: relative` with 0.02 or more.",
            NEFTWarning,
            stacklevel=3,
        )

    def _tell_if_drawn_again(self, site: NoiseSite) -> None:
        """Eager only: the same (step, micro_step) in two passes means the same noise in both."""
        recomputing = torch._C._current_graph_task_id() != -1
        if site is not self._sites[0] or recomputing:
            return
        if self._drawn and not self._told_drawn_again:
            self._told_drawn_again = True
            step, micro_step = self._place
            warnings.warn(
                f"A second training forward pass at step {step}, micro_step {micro_step} draws "
                "the same noise again. Call `neft.set_step(step, micro_step)` before every "
                "forward pass.",
                NEFTWarning,
                stacklevel=2,
            )
        self._drawn = True


class _BatchScope:
    """The hooks of one module around the embedding: note the batch, and check that noise fired."""

    def __init__(self, handle: NEFTHandle, module: nn.Module, model: nn.Module) -> None:
        self.handle, self.module = handle, module
        parameters = inspect.signature(module.forward).parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in parameters) and hasattr(model, "get_base_model"):
            inner = model.get_base_model()  # pyright: ignore[reportCallIssue]
            parameters = inspect.signature(inner.forward).parameters.values()
        self.names = [p.name for p in parameters]
        self.outer: tuple[dict[str, Any] | None, nn.Module | None] = None, None

    def register(self) -> list[Any]:
        return [
            self.module.register_forward_pre_hook(self.open, with_kwargs=True),
            self.module.register_forward_hook(self.close, always_call=True),
        ]

    def open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        handle = self.handle
        if handle._batch is not None and TOKENS & handle._batch.keys():
            return
        # The outermost module, or one inside a wrapper whose own arguments do not name the tokens.
        self.outer = handle._batch, handle._owner
        batch = handle._extra | (handle._batch or {})
        given = dict(zip(self.names, args, strict=False)) | kwargs
        for key in NOTED:
            if given.get(key) is not None:
                batch[key] = given[key]
        handle._batch, handle._owner = batch, self.module
        for site in handle._sites:
            site.fired = False

    def close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        handle = self.handle
        if handle._owner is not self.module:
            return
        batch, (handle._batch, handle._owner) = handle._batch, self.outer
        failed = output is None
        for site in handle._sites:
            if not failed and not site.fired and handle._is_on(site.embedding.module):
                raise NoNoiseError(_no_noise(handle, site, batch or {}))


class _EmbeddingHook:
    """The hook of one embedding module."""

    def __init__(self, handle: NEFTHandle, site: NoiseSite) -> None:
        self.handle, self.site = handle, site

    def add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        handle, batch = self.handle, self.handle._batch
        if batch is None or not handle._is_on(module):
            return None
        again, self.site.fired = self.site.fired, True
        handle.has_fired = True
        if not torch.compiler.is_compiling():
            if handle.alpha == 0:
                return None
            handle._collect()
        ids = args[0] if args else next(iter(kwargs.values()))
        noisy = self.site(batch, ids, output, again)
        if not again and not torch.compiler.is_compiling():
            handle._tell_if_drawn_again(self.site)
        return noisy


def attached_handle(model: nn.Module) -> NEFTHandle | None:
    """The handle of the noise that is on a model, if any."""
    for module in finder.unwrap(model).modules():
        for hook in module._forward_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, _EmbeddingHook):
                return owner.handle
    return None


def _around(model: nn.Module, sites: list[NoiseSite]) -> list[nn.Module]:
    modules = (m for site in sites for m in finder.ancestors(model, site.embedding.module))
    return list({id(module): module for module in modules}.values())


def _refuse_second_noise(model: nn.Module) -> None:
    if attached_handle(model) is not None:
        raise RuntimeError(
            f"NEFT noise is already attached to {type(model).__name__}, and would be added twice. "
            "Call `remove()` on the first handle or callback before attaching again."
        )
    for name, module in model.named_modules():
        for hook in module._forward_hooks.values():
            if getattr(hook, "__name__", "") == "neftune_post_forward_hook":
                raise RuntimeError(
                    f"The built-in NEFTune hook is on '{name}' of {type(model).__name__}, so "
                    "noise would be added twice. Drop `neftune_noise_alpha` from the training "
                    "arguments and give alpha to NEFTConfig alone, or use NEFTSFTTrainer, which "
                    "takes the key over."
                )


def _no_noise(handle: NEFTHandle, site: NoiseSite, batch: Mapping[str, Any]) -> str:
    given = "`inputs_embeds`" if "inputs_embeds" in batch else ", ".join(f"`{k}`" for k in batch)
    name, module = site.embedding.name, site.embedding.module
    way_out = (
        "Pass `input_ids` instead"
        if "inputs_embeds" in batch
        else "Name the module that is called: `embedding='...'` of `attach_neft` or "
        "`NEFTCallback`. If the model was compiled and ran in training mode before the noise was "
        "attached, call `torch.compiler.reset()` first"
    )
    return (
        f"The noise did not reach {handle._model_name}: its embedding '{name}' "
        f"({type(module).__name__}) was not called in a training forward pass that was given "
        f"{given or 'nothing the noise knows'}. {way_out}."
    )
