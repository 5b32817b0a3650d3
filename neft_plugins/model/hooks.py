"""ForwardPasses: the hooks that note a model's batch, add the noise, and check that it fired.

A pre-hook on every module around the embedding notes the batch (the outermost one called does); the
embedding's hook reads from it which tokens get how much noise, draws and adds; nothing goes back.
The hooks are traced by ``torch.compile`` into the model's graph: what changes from step to step is
held in tensors, and the Python attributes that do change are only written there, not read.
"""

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from neft_plugins.config import NEFTWarning
from neft_plugins.model import embeddings as finder
from neft_plugins.model.site import NoiseSite

TOKENS = {"input_ids", "inputs_embeds"}
NOTED = {
    *TOKENS,
    "attention_mask",
    "position_ids",
    "seq_idx",
    "cu_seq_lens_q",
    "labels",
    "shift_labels",
    "decoder_input_ids",
    "decoder_attention_mask",
}
"""The model's arguments that say which tokens are real, of which document, and trained on."""


class NoNoiseError(RuntimeError):
    """A training forward pass in which the noise did not reach the model."""


class ForwardPasses:
    """The forward passes of one model, between ``attach`` and ``remove``.

    A copy of a hooked model (``deepcopy``, ``pickle``) has hooks that do nothing.

    Args:
        model_name: What messages call the model.
        sites: Where its noise is added.

    Attributes:
        extra: Arguments noted beside those that the model is given.
        owner: Whoever drives the passes.
        has_fired: Whether any pass had noise.
        ran_in_eval_mode: Whether the model was called with gradients but in eval mode.
    """

    def __init__(self, model_name: str, sites: list[NoiseSite]) -> None:
        self.model_name = model_name
        self.sites = sites
        self.extra: dict[str, Any] = {}
        self.owner: Any = None
        self.has_fired = self.ran_in_eval_mode = False
        self.batch: dict[str, Any] | None = None
        self.scope: _Scope | None = None
        self.last_batch: dict[str, Any] | None = None
        self._hooks: list[Any] = []
        self._attached = False
        self._switches: list[tuple[nn.Module, str]] = []
        self._told = False
        self.begin(0, 0, silent=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ForwardPasses, (self.model_name, [])

    def attach(self, model: nn.Module) -> None:
        """Hook the model, unwrapped."""
        self._attached = True
        self._switches = finder.adapter_switches(model)
        around = (m for s in self.sites for m in finder.ancestors(model, s.embedding.module))
        for module in {id(m): m for m in around}.values():
            scope = _Scope(self, module, model)
            self._hooks += [
                module.register_forward_pre_hook(scope.open, with_kwargs=True),
                module.register_forward_hook(scope.close, always_call=True),
            ]
        for site in self.sites:
            hook = EmbeddingHook(self, site).add
            self._hooks.append(site.embedding.module.register_forward_hook(hook, with_kwargs=True))

    def begin(self, step: int, micro_step: int, silent: bool) -> None:
        """Say that the next pass is another micro-batch's, and whether alpha is 0 there.

        ``silent`` is read outside of compiled graphs only; inside, the operator looks at alpha.
        """
        self.silent = silent
        # A Ctrl-C inside the last pass may have left them: torch calls no hook for that.
        self.batch = self.scope = None
        self._place, self._drawn = (step, micro_step), False

    def remove(self) -> bool:
        """Take every hook off; whether there was any."""
        hooks, self._hooks, self._attached = self._hooks, [], False
        for hook in hooks:
            hook.remove()
        self.extra, self.batch, self.last_batch, self.scope = {}, None, None, None
        return bool(hooks)

    def is_on(self, module: nn.Module) -> bool:
        """Off in eval mode, without gradients, and while PEFT's adapters are off."""
        if not self._attached or not module.training or not torch.is_grad_enabled():
            return False
        return not any(getattr(owner, attribute) for owner, attribute in self._switches)

    def note_drawn(self, site: NoiseSite) -> None:
        """Eager only: the same (step, micro_step) in two passes means the same noise in both."""
        if site is not self.sites[0] or _recomputing():
            return
        if self._drawn and not self._told:
            self._told = True
            step, micro_step = self._place
            warnings.warn(
                f"A second training forward pass at step {step}, micro_step {micro_step} draws "
                "the same noise again. Call `neft.set_step(step, micro_step)` before every "
                "forward pass.",
                NEFTWarning,
                stacklevel=2,
            )
        self._drawn = True


class _Scope:
    """The hooks of one module around the embedding: note the batch, check that noise fired."""

    def __init__(self, passes: ForwardPasses, module: nn.Module, model: nn.Module) -> None:
        self.passes = passes
        self.outer: tuple[dict[str, Any] | None, _Scope | None] = None, None
        parameters = inspect.signature(module.forward).parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in parameters) and hasattr(model, "get_base_model"):
            inner = model.get_base_model()  # pyright: ignore[reportCallIssue]
            parameters = inspect.signature(inner.forward).parameters.values()
        self.names = [p.name for p in parameters]

    def open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the batch, if no module around this one has."""
        passes = self.passes
        if passes.batch is not None and TOKENS & passes.batch.keys():
            return
        # The outermost module, or one inside a wrapper whose own arguments do not name the tokens.
        self.outer = passes.batch, passes.scope
        if _recomputing() and passes.last_batch is not None:
            passes.batch, passes.scope = passes.last_batch, self
            return
        given = dict(zip(self.names, args, strict=False)) | kwargs
        noted = {key: value for key, value in given.items() if key in NOTED and value is not None}
        passes.batch, passes.scope = passes.extra | (passes.batch or {}) | noted, self
        if torch.is_grad_enabled() and not module.training:
            passes.ran_in_eval_mode = True
        for site in passes.sites:
            site.fired = False

    def close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget the batch this scope noted; an error if it got no noise."""
        passes = self.passes
        if passes.scope is not self:
            return
        batch, (passes.batch, passes.scope) = passes.batch or {}, self.outer
        passes.last_batch = batch
        if output is None:  # the pass failed, and its own error is on the way
            return
        for site in passes.sites:
            if not site.fired and passes.is_on(site.embedding.module):
                raise NoNoiseError(_no_noise(passes.model_name, site, batch))


class EmbeddingHook:
    """The hook of one embedding module: add the noise."""

    def __init__(self, passes: ForwardPasses, site: NoiseSite) -> None:
        self.passes, self.site = passes, site

    def add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """The noisy output, or None, which leaves the module's own."""
        passes, batch = self.passes, self.passes.batch
        if batch is None and _recomputing():
            batch, self.site.fired = passes.last_batch, False
        if batch is None or not passes.is_on(module):
            return None
        again, self.site.fired = self.site.fired, True
        passes.has_fired = True
        if not torch.compiler.is_compiling() and passes.silent:
            return None
        ids = args[0] if args else next(iter(kwargs.values()))
        noisy = self.site(batch, ids, output, again)
        if not again and not torch.compiler.is_compiling():
            passes.note_drawn(self.site)
        return noisy


def _recomputing() -> bool:
    """Whether activation checkpointing repeats a part of the last pass, in the backward pass.

    Only what is inside the checkpoint is called again, so the batch is the one noted then. A
    compiled graph has its own recomputation, of which no hook hears.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _no_noise(model_name: str, site: NoiseSite, batch: dict[str, Any]) -> str:
    name, kind = site.embedding.name, type(site.embedding.module).__name__
    given = ", ".join(f"`{key}`" for key in sorted(batch))
    way_out = (
        "Pass `input_ids` instead"
        if "inputs_embeds" in batch
        else "Name the module that is called: `embedding='...'` of `attach_neft` or "
        "`NEFTCallback`. If the model was compiled and ran in training mode before the noise was "
        "attached, call `torch.compiler.reset()` first"
    )
    return (
        f"The noise did not reach {model_name}: its embedding '{name}' ({kind}) was not called in "
        f"a training forward pass that was given {given or 'nothing the noise knows'}. {way_out}."
    )
