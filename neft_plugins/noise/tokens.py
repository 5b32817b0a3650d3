"""m: which tokens get noise.

A rule is a function ``(tokens: TokenView) -> Tensor``, a (B, T) bool mask. Padding is taken out of
the mask afterwards, so a rule need not think of it.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

IGNORED_LABEL = -100
"""The label of tokens that are not trained on, as in transformers and TRL."""


class TokenView(NamedTuple):
    """What a token rule may look at.

    Attributes:
        input_ids: (B, T) int, the tokens.
        real: (B, T) bool, False on padding.
        document: (B, T) int64, the number of each token's document, counted over the batch.
        read_labels: Gives the labels, (B, T) int; raises ``MissingLabelsError`` where there are
            none.
    """

    input_ids: Tensor
    real: Tensor
    document: Tensor
    read_labels: Callable[[], Tensor]


class MissingLabelsError(RuntimeError):
    """A token rule needs labels, and nothing that the noise can see has them."""


def all_tokens(tokens: TokenView) -> Tensor:
    """Every real token."""
    return tokens.real


def response(tokens: TokenView) -> Tensor:
    """Tokens that are trained on: labels != -100."""
    return tokens.read_labels() != IGNORED_LABEL


def prompt(tokens: TokenView) -> Tensor:
    """Real tokens that are not trained on: labels = -100."""
    return tokens.read_labels() == IGNORED_LABEL
