"""Recomputation: which call of an embedding is repeated, where a backward pass makes it again.

Activation checkpointing repeats a part of a forward pass in the backward pass, whatever was
forwarded since. Autograd numbers the nodes of its graph in the order in which they are made, and
the node that the backward pass is at is one of the forward pass that is repeated: so its number
tells which of the earlier calls that was, and within one checkpoint, the tokens do. A reentrant
checkpoint makes its first pass without gradients, and so without noise: what it repeats is a noisy
pass like any other.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from neft_plugins import _compat
from neft_plugins.noise.drawing.operation import Draw


class UnknownPassError(RuntimeError):
    """A forward pass within a backward pass that repeats none which had noise."""


@dataclass(frozen=True, eq=False)
class NotedCall:
    """A call of an embedding with gradients, as it may be repeated.

    Attributes:
        number: Which call of the embedding in its pass, the clean ones counted too.
        time: autograd's clock when it began.
        ids: The tokens it was given.
        draw: Its noise; None where it had none.
    """

    number: int
    time: int
    ids: Tensor
    draw: Draw | None


def repeated_call(calls: Iterable[NotedCall], ids: Tensor) -> NotedCall | None:
    """The call that is repeated now: the last one of these tokens before autograd's node was made.

    Args:
        calls: The calls that may be.
        ids: The tokens given now.

    Returns:
        The call, or None where it is none of them.
    """
    time = _compat.node_time()
    before = [call for call in calls if call.time <= time and _same_tokens(call.ids, ids)]
    return max(before, key=lambda call: call.time, default=None)


def _same_tokens(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def refuse_unknown_pass(model_name: str) -> NoReturn:
    """Where a model is called in a backward pass, and nothing is repeated."""
    raise UnknownPassError(
        f"{model_name} is called with gradients within a backward pass, and this repeats no "
        "forward pass that had gradients: what was computed before had no noise, and now would. "
        "A loss that caches embeddings does so (CachedMultipleNegativesRankingLoss and others of "
        "GradCache's kind): use it without its cache, as MultipleNegativesRankingLoss, or train "
        "without noise."
    )


# In compiled graphs no Python of a hook runs, so an operator does the same there.

new_place = itertools.count().__next__
"""A number for each embedding of a process, in compiled graphs."""


class _PastDraw(NamedTuple):
    place: int
    call: int
    time: int
    numbers: tuple[Tensor, Tensor, Tensor]


_past: deque[_PastDraw] = deque(maxlen=1024)


def past_or_next(draw: Draw, place: int) -> Draw:
    """The draw of a compiled graph: the next, or the past one where the graph is run again.

    Args:
        draw: The next draw.
        place: Number of the embedding, of ``new_place``.

    Returns:
        The draw to use.
    """
    alpha, seed, pass_index = _past_or_next(
        draw.alpha, draw.seed, draw.pass_index, draw.call, place
    )
    return Draw(alpha, seed, pass_index, draw.call)


# Python runs at each call, so not within CUDA graphs, which are cut here.
@torch.library.custom_op(
    "neft_plugins::past_or_next", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _past_or_next(
    alpha: Tensor, seed: Tensor, pass_index: Tensor, call: int, place: int
) -> tuple[Tensor, Tensor, Tensor]:
    numbers = alpha.clone(), seed.clone(), pass_index.clone()
    if _compat.in_backward_pass():
        time = _compat.node_time() + 1  # the node of a graph is made just before the graph is run
        for past in reversed(_past):
            if (past.place, past.call) == (place, call) and past.time <= time:
                numbers = past.numbers
                break
        else:
            refuse_unknown_pass("A compiled model")
    else:
        _past.append(_PastDraw(place, call, _compat.autograd_clock(), numbers))
    # Copies: a graph may write over what it is given.
    return numbers[0].clone(), numbers[1].clone(), numbers[2].clone()


@_past_or_next.register_fake
def _(
    alpha: Tensor, seed: Tensor, pass_index: Tensor, *where: object
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(alpha), torch.empty_like(seed), torch.empty_like(pass_index)
