"""The record of a forward pass, in which stands all that its noise depends on.

What the noise of a pass depends on is held in tensors, which are replaced and never written to, so
that a compiled graph whose backward pass is still to come keeps its own. They are on the device
where the noise is drawn, filled without waiting for it.
"""

import itertools
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neft_plugins import _compat
from neft_plugins.config import NEFTWarning
from neft_plugins.model import recomputation
from neft_plugins.model.batch import TOKENS, Batch
from neft_plugins.model.recomputation import NotedCall
from neft_plugins.model.site import NoiseSite
from neft_plugins.noise import meter
from neft_plugins.noise.drawing.operation import Draw

_keys = itertools.count()
# Of models that have noise now. Compiled graphs find their passes here: a mask that they find by a
# hook of torch's own `nn.Embedding`, torch takes to be of one shape, and compiles for each anew.
_attached: "dict[int, weakref.ref[ForwardPasses]]" = {}


def find_attached(key: int) -> "ForwardPasses | None":
    """The passes with this key, if they may have noise now."""
    return _attached[key]() if key in _attached else None


class MicroBatch(NamedTuple):
    """What all forward passes of a micro-batch share.

    Attributes:
        step: t.
        micro_step: Accumulation step within t.
        alpha: 0-dim float32, alpha(t).
        seeds: A 0-dim int64 for each site.
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
        scope: Who opened the record, and closes it.
        batch: What the model was given, and what was noted beside it.
        micro_batch: Whose pass it is.
        outer: The pass of a module around that one, which names no tokens, or others.
        of_features: Whether its tokens are within an argument, and not one themselves.
        calls: The calls of each site's embedding that the noise was on in.
        noted: Of each site, its calls as they may be repeated. Eager only.
        index: Number of the pass among the micro-batch's noisy ones; None before its first noise.
    """

    scope: object
    batch: Batch
    micro_batch: MicroBatch
    outer: "ForwardPass | None"
    of_features: bool
    calls: list[int]
    noted: list[list[NotedCall]]
    index: Tensor | None = None

    @property
    def names_tokens(self) -> bool:
        """Whether its arguments do, so that modules within have nothing to add."""
        return bool(TOKENS & self.batch.keys()) and not self.of_features


class ForwardPasses:
    """The forward passes of one model, between ``start`` and ``stop``.

    A copy of a hooked model (``deepcopy``, ``pickle``) has hooks that do nothing.

    Args:
        model_name: What messages call the model.
        sites: Where its noise is added.
        owner: Whoever drives the passes.

    Attributes:
        key: What they are found by while they may have noise.
        current: The pass that is under way, if any; the innermost.
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
        self.key = next(_keys)
        self.extra: dict[str, Any] = {}
        self.has_fired = self.ran_in_eval_mode = False
        self.dtype = torch.float32
        device = sites[0].device if sites else None
        self.sums = _compat.with_fixed_address(meter.no_sums(device))
        self._has_sums = False
        self.current: ForwardPass | None = None
        self._kept: weakref.WeakSet[ForwardPass] = weakref.WeakSet()
        self._latest: ForwardPass | None = None
        self._switches: list[tuple[nn.Module, str]] = []
        self._trained: list[weakref.ref[nn.Parameter]] = []
        self._versions: list[int] | None = None
        self._has_warned = False
        self.begin(MicroBatch(0, 0, torch.zeros(()), [], silent=False), by_user=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ForwardPasses, (self.model_name, [])

    @property
    def attached(self) -> bool:
        """Whether the passes may have noise."""
        return self.key in _attached

    def start(self, model: nn.Module) -> None:
        """The passes of this model, unwrapped, may have noise from now on."""
        _attached[self.key] = weakref.ref(self)
        self._model = weakref.ref(model)
        self._has_adapters = _compat.has_adapters(model)
        self._switches = _compat.adapter_switches(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._trained = [weakref.ref(parameter) for parameter in trained[:8]]

    def stop(self) -> None:
        """No pass has noise any more."""
        _attached.pop(self.key, None)
        self.extra, self.current, self._latest = {}, None, None

    def refuse_later_adapters(self) -> None:
        """Refuse a model to which PEFT was applied meanwhile: its switches were not seen.

        Raises:
            RuntimeError: With the way out.
        """
        model = self._model()
        if model is not None and not self._has_adapters and _compat.has_adapters(model):
            raise RuntimeError(
                f"PEFT was applied to {self.model_name} after the noise was attached, which "
                "cannot follow it: into copied embeddings, or off with the adapters. Call "
                "`get_peft_model` first, then `attach_neft`."
            )

    def begin(self, micro_batch: MicroBatch, by_user: bool = True) -> None:
        """Say that the passes to come are those of a micro-batch."""
        self.micro_batch = micro_batch
        seeds = self.micro_batch.seeds
        device = seeds[0].device if seeds else None
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._is_begun, self._versions = by_user, None
        # A Ctrl-C inside the last pass may have left it: torch calls no hook for that.
        self.current = None

    def is_on(self, module: nn.Module) -> bool:
        """Off in eval mode, without gradients, and while PEFT's adapters are off."""
        if not self.attached or not module.training or not torch.is_grad_enabled():
            return False
        return not any(getattr(owner, attribute) for owner, attribute in self._switches)

    def add_sums(self, sums: Tensor) -> None:
        """Add those of a call."""
        self.sums.add_(sums.to(self.sums.device))
        self._has_sums = True

    def take_sums(self) -> Tensor | None:
        """The sums since the last call of this; None where there were none."""
        taken = self.sums.clone() if self._has_sums else None
        self.sums.zero_()
        self._has_sums = False
        return taken

    def note_output(self, site: int, output: Tensor) -> None:
        """Note of what kind the embeddings are."""
        self.dtype = output.dtype
        if torch.compiler.is_compiling():
            return
        self.sites[site].device = output.device
        if site == 0 and self.sums.device != output.device:
            self.sums = _compat.with_fixed_address(self.sums.to(output.device))

    def number(self) -> Tensor:
        """The number of the next noisy pass of this micro-batch."""
        index, self._count = self._count, self._count + 1
        if not torch.compiler.is_compiling():
            self._warn_if_step_was_forgotten()
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
        # Where a whole pass is repeated, its first call is by its first, and so on.
        number = None if self.current is None else len(self.current.noted[site])
        calls = {
            call: each
            for each in self._kept
            for call in each.noted[site]
            if number in (None, call.number)
        }
        call = recomputation.repeated_call(calls, ids)
        if call is None:
            return None
        if self.current is not None:
            self.current.noted[site].append(call)
        return calls[call].batch, call.draw

    def warn_if_step_was_never_set(self) -> None:
        """For compiled graphs, in which the passes are counted and no more."""
        if not self._is_begun and int(self._count) > 1:
            self._warn_that_step_was_forgotten()

    def _warn_if_step_was_forgotten(self) -> None:
        """A further pass is of the same micro-batch, unless the weights have changed since."""
        if self._has_warned:
            return
        versions = _compat.versions(p for each in self._trained if (p := each()) is not None)
        if self._versions is None:
            self._versions = versions
        elif not self._is_begun or versions != self._versions:
            self._warn_that_step_was_forgotten()

    def _warn_that_step_was_forgotten(self) -> None:
        if self._has_warned:
            return
        self._has_warned = True
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
        yield from _nodes([getattr(output, each.name) for each in fields(output)])
