"""What the noise that a run had gives reason to warn of."""

import math
from collections.abc import Iterator

import torch

from neft_plugins.config import NEFTConfig
from neft_plugins.noise.meter import NoiseStats


def doubts(
    stats: NoiseStats, config: NEFTConfig, alpha: float, dtype: torch.dtype, of_whole_rows: bool
) -> Iterator[tuple[str, str]]:
    """What is probably not what was meant.

    Args:
        stats: Of the noise since the last log.
        config: What noise.
        alpha: alpha(t) at the last step.
        dtype: That of the embeddings.
        of_whole_rows: Whether the stats are of whole rows. Of a part of its rows a rank cannot say
            that no token was chosen: the others may have all that were.

    Yields:
        What kind of doubt, and the message.
    """
    rules = ", ".join(config.token_rules)
    # A batch or two without such a token is normal; a whole run of them is not.
    if of_whole_rows and stats.noised_tokens == 0 and alpha > 0:
        yield (
            "none chosen",
            f"No token got noise since the last log: `tokens: {rules}` chose none. If "
            "`neft/noised_tokens` stays 0, training is without noise; then check which tokens are "
            "trained on (labels != -100), or use `tokens: all`.",
        )
    resolution = torch.finfo(dtype).eps
    # The small alphas at the end of a decay are meant.
    if 0 < stats.noise_to_signal < resolution / 2 and alpha >= 0.5 * config.alpha:
        yield (
            "rounded away",
            f"The noise is {stats.noise_to_signal:.2g} of the embeddings, under half of what "
            f"{dtype} resolves ({resolution:.2g}), so most of it is rounded away. Raise alpha "
            f"(now {alpha:g}), or use `scale: relative` with 0.02 or more.",
        )
    if 1 < stats.noise_to_signal < math.inf:
        way_out = (
            "With `scale: relative` alpha is that ratio, and 0.05 to 0.5 is typical"
            if config.scale == "relative"
            else "Lower alpha, or use `scale: relative` with 0.05 to 0.5"
        )
        yield (
            "stronger than the signal",
            f"The noise is {stats.noise_to_signal:.3g} times as strong as the embeddings it is "
            f"added to (alpha {alpha:g}), so little of the text is left. {way_out}.",
        )
