"""What the noise did to a model, seen from outside of it; and what is left on the model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One call of a module that turned token ids into vectors.

    Attributes:
        module: What was called; None in a record of another process.
        ids: The tokens it was given.
        clean: Its output before any other hook of it.
        output: Its output after all of them, which is what reached the model.
        training: Whether the module was in training mode.
        with_gradients: Whether gradients were on.
        recomputed: Whether activation checkpointing called it, in the backward pass.
    """

    module: nn.Module | None
    ids: Tensor
    clean: Tensor
    output: Tensor
    training: bool
    with_gradients: bool
    recomputed: bool

    @property
    def noise(self) -> Tensor:
        """What was added."""
        return self.output - self.clean

    @property
    def noisy(self) -> bool:
        """Whether anything was."""
        return bool(self.noise.any())


class _Watch:
    """The recorder's hooks on a module: its first and its last, whoever adds some later."""

    def __init__(self, module: nn.Module, calls: list[Call]) -> None:
        self.module, self.calls = module, calls
        self.seen: tuple[Tensor, Tensor] | None = None
        self.first = module.register_forward_hook(self.note_clean, with_kwargs=True)
        self.last = module.register_forward_hook(self.note_output)
        self.register = module.register_forward_hook
        self.surround()

    def register_inside(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the module's ``register_forward_hook``."""
        handle = self.register(*args, **kwargs)
        self.surround()
        return handle

    def surround(self) -> None:
        self.module._forward_hooks.move_to_end(self.first.id, last=False)
        self.module._forward_hooks.move_to_end(self.last.id)

    def note_clean(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        self.seen = None
        if given is None or given.is_floating_point() or not isinstance(output, Tensor):
            return
        # Cloned: some models write into the embedding's output.
        self.seen = given.clone(), output.detach().clone()

    def note_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.seen is None:
            return
        recomputed = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        self.calls.append(
            Call(
                module,
                *self.seen,
                output.detach().clone(),
                module.training,
                torch.is_grad_enabled(),
                recomputed,
            )
        )


@contextmanager
def recorded(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Iterator[list[Call]]:
    """Note the calls of a model's input embedding, whatever trains, wraps or shards the model.

    Args:
        model: The model, or the PEFT model around it, without what wraps it for training.
        modules: What to watch in place of its input embedding. With ``model.modules()``, noise at
            a wrong place is seen too.

    Yields:
        The calls so far.
    """
    calls: list[Call] = []
    watched = [model.get_input_embeddings()] if modules is None else modules  # pyright: ignore
    with ExitStack() as stack:
        for watch in [_Watch(module, calls) for module in watched]:
            stack.callback(watch.first.remove)
            stack.callback(watch.last.remove)
            inside = mock.patch.object(watch.module, "register_forward_hook", watch.register_inside)
            stack.enter_context(inside)
        yield calls


def noised(model: nn.Module, *args: Any, **batch: Any) -> list[Call]:
    """The calls in one forward pass, of whatever module, whose output had something added."""
    with recorded(model, model.modules()) as calls:
        model(*args, **batch)
    assert calls, "no module was given token ids"
    return [call for call in calls if call.noisy]


def check_sizes(call: Call, real: Tensor, alpha: float, atol: float = 1e-6) -> None:
    """Rademacher noise on rows of one document each: alpha / sqrt(3 L D) in every coordinate.

    Args:
        call: Of a pass with ``distribution="rademacher"``, where |eps| is 1/sqrt(3) in every draw.
        real: (B, T) bool, the tokens that are no padding; the others must have no noise.
        alpha: alpha of the pass.
        atol: Rounding of the sum.
    """
    length = real.sum(1, keepdim=True).clamp(min=1)
    size = torch.where(real, alpha / (3 * length * call.noise.shape[-1]).sqrt(), 0.0)
    expected = size.unsqueeze(-1).expand(call.noise.shape)
    torch.testing.assert_close(call.noise.float().abs(), expected, rtol=1e-3, atol=atol)


def is_one_draw(one: Call, other: Call) -> bool:
    """Whether two noises have the same signs, wherever both are."""
    return bool((_product_of_signs(one, other) > 0).all())


def are_two_draws(one: Call, other: Call) -> bool:
    """Whether the signs of two noises have nothing to do with each other, by 5 sigma."""
    product = _product_of_signs(one, other)
    return abs(float(product.mean())) < 5 / len(product) ** 0.5


def _product_of_signs(one: Call, other: Call) -> Tensor:
    rows, width = (min(sizes) for sizes in zip(one.ids.shape, other.ids.shape, strict=True))
    product = (one.noise[:rows, :width] * other.noise[:rows, :width]).sign()
    product = product[product != 0].float()
    assert len(product) >= 100, "too few coordinates to tell"
    return product


def to_save(calls: Iterable[Call]) -> list[Call]:
    """The calls without their modules, on the CPU."""
    return [
        replace(
            call,
            module=None,
            ids=call.ids.cpu(),
            clean=call.clean.cpu(),
            output=call.output.cpu(),
        )
        for call in calls
    ]


def hooks_of(model: nn.Module) -> dict[str, list[str]]:
    """Every hook on a model and its modules, of whatever kind, by the place where it is."""
    return {
        f"{name}.{kind}": [_name(hook) for hook in hooks.values()]
        for name, module in model.named_modules()
        for kind, hooks in vars(module).items()
        if "hook" in kind and isinstance(hooks, Mapping) and hooks
    }


def count_hooks(model: nn.Module) -> int:
    """Our hooks on a model and its modules."""
    hooks = [hook for hooks in hooks_of(model).values() for hook in hooks]
    return sum(hook.startswith("neft_plugins.") for hook in hooks)


def snapshot(model: nn.Module) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What noise could leave behind: every hook, and the attributes of every module."""
    return hooks_of(model), {name: sorted(vars(each)) for name, each in model.named_modules()}


def _name(hook: Any) -> str:
    """Of a function, a method, a partial of one, or the flag of a hook."""
    hook = getattr(hook, "func", hook)
    kind = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{kind.__module__}.{kind.__qualname__}"
