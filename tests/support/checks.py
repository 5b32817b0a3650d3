"""What must hold of the records of a run on several ranks."""

import itertools
import math

import torch
from recorder import are_two_draws
from training import FIRST_TOKEN, HIDDEN, LENGTHS, PROMPT

ALPHA = 5.0
STEPS = 2
NOISE = {
    "neftune_noise_alpha": ALPHA,
    "neft_distribution": "rademacher",
    "neft_schedule": "linear",
    "neft_tokens": "response",
}
PADDED = {"max_length": 64, "pad_to_multiple_of": 8}
PACKED = {"max_length": 64, "packing": True, "packing_strategy": "bfd"}
PACKINGS = {"padded": PADDED, "packed": PACKED}


def check_is_the_noise_of(one: dict, ranks: list[dict]) -> None:
    """Each micro-batch of a global batch has the noise it has in one process that accumulates."""
    global_batch = len(one["passes"]) // STEPS
    accumulation = global_batch // len(ranks)
    for index, expected in enumerate(one["passes"]):
        step, k = divmod(index, global_batch)
        micro_step, rank = divmod(k, len(ranks))
        found = ranks[rank]["passes"][step * accumulation + micro_step]
        assert torch.equal(found.ids, expected.ids), (step, k)
        torch.testing.assert_close(found.noise, expected.noise, rtol=0, atol=1e-5)
        assert expected.noise.abs().max() > 0
    for rank in ranks:
        assert len(rank["passes"]) == len(one["passes"]) // len(ranks)


def documents(ids: torch.Tensor) -> list[tuple[int, int, int]]:
    """(row, column, length) of each document, told by its first token."""
    starts = (ids >= FIRST_TOKEN) & (ids < FIRST_TOKEN + len(LENGTHS))
    return [
        (row, column, LENGTHS[int(ids[row, column]) - FIRST_TOKEN])
        for row, column in starts.nonzero().tolist()
    ]


def check_is_the_equation(record: dict, rounding: float) -> None:
    """alpha(t) / sqrt(3 L D) on the response of each document, in every coordinate; 0 elsewhere."""
    for index, each in enumerate(record["passes"]):
        alpha = ALPHA * (1 - index * STEPS // len(record["passes"]) / STEPS)
        expected = torch.zeros(each.ids.shape)
        for row, column, length in documents(each.ids):
            response = slice(column + PROMPT, column + length)
            expected[row, response] = alpha / math.sqrt(3 * length * HIDDEN)
        wanted = expected.unsqueeze(-1).expand(each.noise.shape)
        torch.testing.assert_close(each.noise.float().abs(), wanted, rtol=0, atol=rounding)


def check_replicas_differ(ranks: list[dict]) -> None:
    """No two of them have the same noise on different text."""
    for passes in zip(*(rank["passes"] for rank in ranks), strict=True):
        for one, other in itertools.combinations(passes, 2):
            assert not torch.equal(one.ids, other.ids)
            assert are_two_draws(one, other)
