"""The hooks of a forward pass, and the record of it that they follow from the batch to the noise.

A pre-hook on every module around the embedding opens the record and notes the batch (the outermost
module called that names its tokens does); the embedding's hook numbers the call, and has its site
draw and add; the record is closed, and it is an error if no noise was added, when that module
returns. The hooks are traced by ``torch.compile`` into the model's graph: what changes from pass to
pass is held in tensors, which are replaced and never written to, so that a graph whose backward
pass is still to come keeps its own.
"""

import inspect
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neft_plugins import _compat
from neft_plugins.config import NEFTWarning
from neft_plugins.model import embeddings as finder
from neft_plugins.model import recomputation
from neft_plugins.model.batch import TOKENS, Batch, note
from neft_plugins.model.recomputation import NotedCall
from neft_plugins.model.site import NoiseSite
from neft_plugins.noise import meter
from neft_plugins.noise.inject import Draw


class NoNoiseError(RuntimeError):
    """A training forward pass in which the noise did not reach the model."""


class UnknownPassError(RuntimeError):
    """A forward pass within a backward pass that repeats none which had noise."""


class MicroBatch(NamedTuple):
    """What all forward passes of a micro-batch share.

    Attributes:
        step: t.
        micro_step: Accumulation step within t.
        alpha: 0-dim float32 on the CPU, alpha(t).
        seeds: A 0-dim int64 on the CPU for each site.
        silent: Whether alpha is 0; not read in compiled graphs, where the operator looks at alpha.
    """

    step: int
    micro_step: int
    alpha: Tensor
    seeds: list[Tensor]
    silent: bool


@dataclass(eq=False)
class ForwardPass:
    """One forward pass: all that its noise depends on.

    Attributes:
        scope: The hooks of the module that was called.
        batch: What the model was given, and what it was not told.
        micro_batch: Whose pass it is.
        outer: The pass of a wrapper around that module, whose arguments name no tokens.
        index: Number of the pass among the micro-batch's noisy ones; None before its first noise.
        calls: The calls of each site's embedding that the noise was on in.
        noted: Of each site, its calls as they may be repeated. Eager only.
    """

    scope: "_Scope"
    batch: Batch
    micro_batch: MicroBatch
    outer: "ForwardPass | None"
    index: Tensor | None = None
    calls: list[int] = field(default_factory=list)
    noted: list[list[NotedCall]] = field(default_factory=list)


class ForwardPasses:
    """The forward passes of one model, between ``attach`` and ``remove``.

    A copy of a hooked model (``deepcopy``, ``pickle``) has hooks that do nothing.

    Args:
        model_name: What messages call the model.
        sites: Where its noise is added.
        owner: Whoever drives the passes.

    Attributes:
        extra: Arguments noted beside those that the model is given.
        has_fired: Whether any pass had noise.
        ran_in_eval_mode: Whether the model was called with gradients but in eval mode.
        sums: Those of ``meter.measure`` over all passes since they were last taken.
        dtype: That of the embeddings.
    """

    def __init__(self, model_name: str, sites: list[NoiseSite], owner: Any = None) -> None:
        self.model_name = model_name
        self.sites = sites
        self.owner = owner
        self.extra: dict[str, Any] = {}
        self.has_fired = self.ran_in_eval_mode = False
        self.dtype = torch.float32
        self.sums = meter.no_sums(_device_of(sites))
        self.current: ForwardPass | None = None
        self._kept: weakref.WeakSet[ForwardPass] = weakref.WeakSet()
        self._latest: ForwardPass | None = None
        self._hooks: list[Any] = []
        self.attached = False
        self._switches: list[tuple[nn.Module, str]] = []
        self._trained: list[nn.Parameter] = []
        self._told = False
        self.begin(MicroBatch(0, 0, torch.zeros(()), [], silent=False), by_user=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ForwardPasses, (self.model_name, [])

    def attach(self, model: nn.Module) -> None:
        """Hook the model, unwrapped."""
        self.attached = True
        self._switches = _compat.adapter_switches(model)
        self._trained = [p for p in model.parameters() if p.requires_grad][:8]
        around = (m for s in self.sites for m in finder.ancestors(model, s.embedding.module))
        for module in {id(m): m for m in around}.values():
            scope = _Scope(self, module, model)
            self._hooks += [
                module.register_forward_pre_hook(scope.open, with_kwargs=True),
                module.register_forward_hook(scope.close, always_call=True),
            ]
        for number, site in enumerate(self.sites):
            hook = EmbeddingHook(self, site, number)
            module = site.embedding.module
            self._hooks += [
                module.register_forward_pre_hook(hook.begin),
                module.register_forward_hook(hook.add, with_kwargs=True),
            ]

    def begin(self, micro_batch: MicroBatch, by_user: bool = True) -> None:
        """Say that the passes to come are those of a micro-batch."""
        self.micro_batch = micro_batch
        self._count = torch.zeros((), dtype=torch.int64)
        self._is_begun = by_user
        # A Ctrl-C inside the last pass may have left it: torch calls no hook for that.
        self.current = None

    def remove(self) -> bool:
        """Take every hook off; whether there was any."""
        hooks, self._hooks, self.attached = self._hooks, [], False
        for hook in hooks:
            hook.remove()
        self.extra, self.current, self._latest = {}, None, None
        return bool(hooks)

    def is_on(self, module: nn.Module) -> bool:
        """Off in eval mode, without gradients, and while PEFT's adapters are off."""
        if not self.attached or not module.training or not torch.is_grad_enabled():
            return False
        return not any(getattr(owner, attribute) for owner, attribute in self._switches)

    def take_sums(self) -> Tensor:
        """The sums since the last call."""
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        return sums

    def number(self) -> Tensor:
        """The number of the next noisy pass of this micro-batch."""
        index, self._count = self._count, self._count + 1
        if not torch.compiler.is_compiling():
            self._tell_if_step_was_forgotten(first=int(index) == 0)
        return index

    def keep(self, forward_pass: ForwardPass, output: Any) -> None:
        """Keep a pass as long as it may be repeated: while autograd's graph of it lives.

        The latest is kept in any case: its output may hide its tensors.
        """
        self._latest = forward_pass
        self._kept.add(forward_pass)
        for node in _nodes(output):
            node.metadata.setdefault("neft_plugins", []).append(forward_pass)

    def repeated(self, site: int, ids: Tensor) -> tuple[Batch, Draw | None] | None:
        """The batch and the draw of the call that one in a backward pass repeats, if it does."""
        kept = [*self._kept, *([] if self._latest is None else [self._latest])]
        calls = {call: each for each in kept for call in each.noted[site]}
        call = recomputation.repeated_call(calls, ids)
        return None if call is None else (calls[call].batch, call.draw)

    def tell_if_step_was_never_set(self) -> None:
        """For compiled graphs, in which the passes are counted and no more."""
        if not self._is_begun and int(self._count) > 1:
            self._tell_that_step_was_forgotten()

    def _tell_if_step_was_forgotten(self, first: bool) -> None:
        """A further pass is of the same micro-batch, unless the weights have changed since."""
        if self._told:
            return
        versions = [parameter._version for parameter in self._trained]
        if first:
            self._versions = versions
        elif not self._is_begun or versions != self._versions:
            self._tell_that_step_was_forgotten()

    def _tell_that_step_was_forgotten(self) -> None:
        if self._told:
            return
        self._told = True
        now = self.micro_batch
        since = (
            f"since `set_step({now.step}, {now.micro_step})`, and the weights have changed"
            if self._is_begun
            else "where `set_step` was never called"
        )
        warnings.warn(
            f"A second training forward pass {since}: alpha stays {float(now.alpha):g}, and all "
            "passes count as those of one micro-batch. Call `neft.set_step(step, micro_step)` "
            "before every micro-batch.",
            NEFTWarning,
            stacklevel=2,
        )


class _Scope:
    """The hooks of one module around the embedding: open the record of a pass, and close it."""

    def __init__(self, passes: ForwardPasses, module: nn.Module, model: nn.Module) -> None:
        self.passes = passes
        parameters = inspect.signature(module.forward).parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in parameters) and hasattr(model, "get_base_model"):
            inner = model.get_base_model()  # pyright: ignore[reportCallIssue]
            parameters = inspect.signature(inner.forward).parameters.values()
        self.names = [p.name for p in parameters]

    def open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the batch, if no module around this one has."""
        passes = self.passes
        outer = passes.current
        if not passes.attached or (outer is not None and TOKENS & outer.batch.keys()):
            return
        given = note(dict(zip(self.names, args, strict=False)) | kwargs)
        batch = passes.extra | (dict(outer.batch) if outer else {}) | given
        passes.current = ForwardPass(
            self,
            batch,
            passes.micro_batch,
            outer,
            calls=[0 for _ in passes.sites],
            noted=[[] for _ in passes.sites],
        )
        if torch.is_grad_enabled() and not module.training:
            passes.ran_in_eval_mode = True

    def close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget the batch this scope noted; an error if it got no noise."""
        passes, this = self.passes, self.passes.current
        if this is None or this.scope is not self:
            return
        passes.current = this.outer
        # A pass that failed has its own error on the way; one that is repeated had this check.
        if output is None or _repeating():
            return
        if not torch.compiler.is_compiling():
            passes.keep(this, output)
        for number, site in enumerate(passes.sites):
            if this.calls[number] == 0 and passes.is_on(site.embedding.module):
                raise NoNoiseError(_no_noise(passes.model_name, site, this.batch))
            if this.outer is not None:  # a wrapper's pass has the noise of those within
                this.outer.calls[number] += this.calls[number]


class EmbeddingHook:
    """The hooks of one embedding module: add the noise."""

    def __init__(self, passes: ForwardPasses, site: NoiseSite, number: int) -> None:
        self.passes, self.site, self.number = passes, site, number
        self.place = recomputation.new_place()
        self.time = 0

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note when the call begins."""
        if not torch.compiler.is_compiling():
            self.time = _compat.autograd_clock()

    def add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """The noisy output, or None, which leaves the module's own."""
        passes, this = self.passes, self.passes.current
        ids = args[0] if args else next(iter(kwargs.values()))
        if passes.attached and _repeating():
            repeated = passes.repeated(self.number, ids)
            if repeated is not None:  # the same noise again, and nothing is counted
                its_batch, draw = repeated
                return None if draw is None else self.site.add(its_batch, ids, output, draw)[0]
            if passes.is_on(module) and not recomputation.in_reentrant_checkpoint():
                raise UnknownPassError(_unknown_pass(passes.model_name))
        if this is None:
            return None
        draw = self._next_draw(this, module)
        noisy = None
        if draw is not None:
            noisy, sums = self.site.add(this.batch, ids, output, draw)
            passes.sums = passes.sums.to(sums.device) + sums
            passes.dtype = output.dtype
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            this.noted[self.number].append(NotedCall(self.time, ids, draw))
            # Here too: where this is not compiled, the hook that closes the pass may be.
            passes.keep(this, output if noisy is None else noisy)
        return noisy

    def _next_draw(self, this: ForwardPass, module: nn.Module) -> Draw | None:
        """Which draw a call gets; None where the noise is off."""
        passes = self.passes
        if not passes.is_on(module):
            return None
        call = this.calls[self.number]
        this.calls[self.number] += 1
        passes.has_fired = True
        compiling = torch.compiler.is_compiling()
        if not compiling and this.micro_batch.silent:
            return None
        if this.index is None:
            this.index = passes.number()
        seed = this.micro_batch.seeds[self.number]
        draw = Draw(this.micro_batch.alpha, seed, this.index, call)
        return recomputation.past_or_next(draw, self.place) if compiling else draw


def _repeating() -> bool:
    """Whether activation checkpointing repeats a part of an earlier pass, in the backward pass.

    A compiled graph has its own recomputation, of which no hook hears.
    """
    return not torch.compiler.is_compiling() and recomputation.in_backward_pass()


def _nodes(output: Any) -> Iterator[Any]:
    """The autograd nodes of the tensors in a model's output."""
    if isinstance(output, Tensor):
        if output.grad_fn is not None:
            yield output.grad_fn
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _nodes(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _nodes(value)
    elif is_dataclass(output):
        yield from _nodes(vars(output))


def _device_of(sites: list[NoiseSite]) -> torch.device | None:
    return next((p.device for site in sites for p in site.embedding.module.parameters()), None)


def _no_noise(model_name: str, site: NoiseSite, batch: Batch) -> str:
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


def _unknown_pass(model_name: str) -> str:
    return (
        f"{model_name} is called with gradients within a backward pass, and this repeats no "
        "forward pass that had gradients: what was computed before had no noise, and now would. "
        "A loss that caches embeddings does so (CachedMultipleNegativesRankingLoss and others of "
        "GradCache's kind): use it without its cache, as MultipleNegativesRankingLoss, or train "
        "without noise."
    )
