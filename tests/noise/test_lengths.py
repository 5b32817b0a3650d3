"""L from a mask alone; every other way to write documents is in model/test_equation.py."""

import pytest
import torch
from torch import Tensor

from neft_plugins.noise.lengths import count_tokens, find_documents


def lengths(mask: list[list[int]]) -> list[list[int]]:
    table: Tensor = torch.tensor(mask)
    documents = find_documents({"attention_mask": table}, torch.ones_like(table))
    return (count_tokens(documents, documents.real) * documents.real).tolist()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[1, 1, 0]] * 40, [[2, 2, 0]] * 40),
        ([[1, 2, 3]] * 2, [[1, 1, 1]] * 2),
        ([[1, 1, 2], [1, 0, 2]], [[2, 2, 1], [1, 0, 1]]),
        ([[1, 0, 1]], [[2, 0, 2]]),
        ([[0, 0, 0]], [[0, 0, 0]]),
    ],
    ids=["many rows", "as many documents as tokens", "coded", "a hole", "padding alone"],
)
def test_each_token_has_the_length_of_its_document(mask, expected):
    assert lengths(mask) == expected


def test_codes_beyond_the_width_and_below_0():
    assert lengths([[255, 255, 0], [-1, 7, 7]]) == [[2, 2, 0], [0, 2, 2]]
