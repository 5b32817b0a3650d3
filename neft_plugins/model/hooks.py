"""The hooks of a forward pass, which follow it from the batch to the noise.

A pre-hook on every module around the embedding opens the record of the pass and notes the batch
(the outermost module called that names its tokens does); the embedding's hook numbers the call, and
has its site draw and add; the record is closed, and it is an error if no noise was added, when that
module returns. All are traced by ``torch.compile`` into the model's graph.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neft_plugins import _compat
from neft_plugins.model import embeddings as finder
from neft_plugins.model import recomputation
from neft_plugins.model.batch import TOKENS, Batch, note, note_features
from neft_plugins.model.passes import ForwardPass, ForwardPasses, find_attached
from neft_plugins.model.recomputation import NotedCall
from neft_plugins.model.site import NoiseSite
from neft_plugins.noise.drawing.operation import Draw


class NoNoiseError(RuntimeError):
    """A training forward pass in which the noise did not reach the model."""


def hook(model: nn.Module, passes: ForwardPasses) -> list[Any]:
    """Hook a model, unwrapped.

    Args:
        model: The model.
        passes: The records of its passes.

    Returns:
        What takes each hook off by its ``remove()``.
    """
    made = []
    around = (m for s in passes.sites for m in finder.ancestors(model, s.embedding.module))
    for module in {id(m): m for m in around}.values():
        within = [
            number
            for number, site in enumerate(passes.sites)
            if any(site.embedding.module is part for part in module.modules())
        ]
        scope = _Scope(passes, module, model, within)
        made += [
            module.register_forward_pre_hook(scope.open, with_kwargs=True),
            module.register_forward_hook(scope.close, always_call=True),
        ]
    for number, site in enumerate(passes.sites):
        embedding = EmbeddingHook(passes, site, number)
        made += [
            site.embedding.module.register_forward_pre_hook(embedding.begin),
            site.embedding.module.register_forward_hook(embedding.add, with_kwargs=True),
        ]
    return made


class _Scope:
    """The hooks of one module around the embedding: open the record of a pass, and close it."""

    def __init__(
        self, passes: ForwardPasses, module: nn.Module, model: nn.Module, within: list[int]
    ) -> None:
        self.passes, self.within = passes, within
        parameters = inspect.signature(module.forward).parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in parameters) and hasattr(model, "get_base_model"):
            inner = model.get_base_model()  # pyright: ignore[reportCallIssue]
            parameters = inspect.signature(inner.forward).parameters.values()
        self.names = [p.name for p in parameters]

    def open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the batch, if no module around this one has, or it is another."""
        passes = self.passes
        outer = passes.current
        if not passes.attached or (
            outer is not None and outer.names_tokens and not _is_another(kwargs, outer.batch)
        ):
            return
        placed = dict(zip(self.names, args, strict=False))
        # By place, only tensors: TRL calls its wrapper with a model and a batch in such places.
        tensors = {name: value for name, value in placed.items() if isinstance(value, Tensor)}
        given = note(tensors | kwargs)
        features = {} if TOKENS & given.keys() else note_features(placed | kwargs)
        passes.current = ForwardPass(
            self,
            passes.extra | (dict(outer.batch) if outer else {}) | given | features,
            passes.micro_batch,
            outer,
            of_features=bool(features),
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
        for number in self.within:
            site = passes.sites[number]
            # Features may hold what was computed before, or be those of another encoder.
            missed = this.calls[number] == 0 and not this.of_features
            if missed and passes.is_on(site.embedding.module):
                passes.refuse_later_adapters()
                raise NoNoiseError(_no_noise(passes.model_name, site, this.batch))
            if this.outer is not None:  # a wrapper's pass has the noise of those within
                this.outer.calls[number] += this.calls[number]


class EmbeddingHook:
    """The hooks of one embedding module: add the noise."""

    def __init__(self, passes: ForwardPasses, site: NoiseSite, number: int) -> None:
        self.passes, self.site, self.number = passes, site, number
        self.key = passes.key  # for `add`, which does not look at `passes` itself
        self.place = recomputation.new_place()
        self.time = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingHook, (self.passes, self.site, self.number)  # a copy has the copy's key

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note when the call begins."""
        if not torch.compiler.is_compiling():
            self.time = _compat.autograd_clock()

    def add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """The noisy output, or None, which leaves the module's own."""
        passes = find_attached(self.key)
        if passes is None:
            return None
        this = passes.current
        ids = args[0] if args else next(iter(kwargs.values()))
        if _repeating():
            repeated = passes.repeated(self.number, ids)
            if repeated is not None:  # the same noise again, and nothing is counted
                batch, draw = repeated
                return None if draw is None else self.site.add(batch, ids, output, draw)[0]
            if passes.is_on(module) and not _compat.in_reentrant_checkpoint():
                recomputation.refuse_unknown_pass(passes.model_name)
        if this is None:
            return None
        draw = self._next_draw(passes, this, module)
        noisy = None
        if draw is not None:
            passes.note_output(self.number, output)
            noisy, sums = self.site.add(this.batch, ids, output, draw)
            passes.add_sums(sums)
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            noted = this.noted[self.number]
            noted.append(NotedCall(len(noted), self.time, ids, draw))
            # Here too: where this is not compiled, the hook that closes the pass may be.
            passes.keep(this, output if noisy is None else noisy)
        return noisy

    def _next_draw(
        self, passes: ForwardPasses, this: ForwardPass, module: nn.Module
    ) -> Draw | None:
        """Which draw a call gets; None where the noise is off."""
        if not passes.is_on(module):
            if torch.is_grad_enabled() and not module.training:
                passes.ran_in_eval_mode = True
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


def _is_another(arguments: Mapping[str, Any], batch: Batch) -> bool:
    """Whether a module within is given tokens of its own, with a mask: the second text of a pair.

    Tokens alone may be the batch's, padded or rewritten by the model.
    """
    described = all(
        isinstance(arguments.get(key), Tensor) for key in ("input_ids", "attention_mask")
    )
    return described and all(
        arguments[key] is not batch.get(key) for key in ("input_ids", "attention_mask")
    )


def _repeating() -> bool:
    """Whether activation checkpointing repeats a part of an earlier pass, in the backward pass.

    A compiled graph has its own recomputation, of which no hook hears.
    """
    return not torch.compiler.is_compiling() and _compat.in_backward_pass()


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
