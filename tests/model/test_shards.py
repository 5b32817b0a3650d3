"""Rows cut over ranks: the noise's scale is that of the whole documents. Ranks are threads here.

Real ranks, and the hosts that cut the rows, are in distributed/test_context_parallel.py.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import ENCODINGS, PAD, Document, Embedder, EncodedBatch, expected_magnitudes, padded
from torch import Tensor
from torch.nn.functional import pad

from neft_plugins import NEFTConfig, attach_neft
from neft_plugins.model.shards import SequenceShards

ALPHA = 5.0
FILL = {"input_ids": PAD, "labels": -100, "shift_labels": -100, "seq_idx": -1}
documents_strategy = st.lists(
    st.integers(1, 9).flatmap(
        lambda n: st.builds(Document, length=st.just(n), prompt=st.integers(0, n))
    ),
    min_size=1,
    max_size=4,
)


def contiguous(width: int, size: int) -> Tensor:
    """(S, T / S): which columns each rank holds."""
    return torch.arange(width).view(size, -1)


def head_and_tail(width: int, size: int) -> Tensor:
    """As torch's context_parallel deals 2 S parts: one from the front and one from the back."""
    parts = torch.arange(width).view(2 * size, -1)
    return torch.cat([parts[:size], parts.flip(0)[:size]], dim=1)


LAYOUTS = {"contiguous": contiguous, "head and tail": head_and_tail}


def fake_shards(columns: Tensor) -> list[SequenceShards]:
    """Threads that exchange their parts, each the shards of one rank."""
    size = len(columns)
    parts: list[Tensor] = [torch.empty(0)] * size
    barrier = threading.Barrier(size, timeout=10)

    def make(rank: int) -> Callable[[Tensor], Tensor]:
        def gather(part: Tensor) -> Tensor:
            parts[rank] = part
            barrier.wait()
            whole = torch.cat(parts, dim=1)[:, columns.flatten().argsort()]
            barrier.wait()
            return whole

        return gather

    return [SequenceShards(rank, size, make(rank)) for rank in range(size)]


def fill_up(batch: EncodedBatch, multiple: int) -> dict[str, Tensor]:
    """The batch's (B, T) tensors, with padding to a multiple."""
    extra = -batch.arguments["input_ids"].shape[1] % multiple
    return {
        key: pad(value, (0, extra), value=FILL.get(key, 0)) if value.ndim == 2 else value
        for key, value in batch.arguments.items()
    }


def noise_over_ranks(
    arguments: dict[str, Tensor], columns: Tensor, hidden_size: int, config: NEFTConfig
) -> Tensor:
    """The noise of all ranks, put together to (B, T, D)."""
    shards = fake_shards(columns)

    def train(rank: int) -> Tensor:
        model = Embedder(hidden_size)
        part = {
            key: value[:, columns[rank]] if value.ndim == 2 else value
            for key, value in arguments.items()
        }
        with attach_neft(
            model, config, 10, data_rank=0, data_world_size=1, seed=0, shards=shards[rank]
        ):
            return model(**part).detach()

    with ThreadPoolExecutor(len(shards)) as ranks:
        parts = list(ranks.map(train, range(len(shards))))
    return torch.cat(parts, dim=1)[:, columns.flatten().argsort()]


@given(
    documents=documents_strategy,
    encoding=st.sampled_from(sorted(ENCODINGS)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    size=st.integers(2, 4),
    tokens=st.sampled_from(["all", "response", "prompt"]),
    length=st.sampled_from(["sequence", "noised"]),
    labels=st.sampled_from([("labels",), ("shift_labels",), ("labels", "shift_labels")]),
)
@settings(max_examples=150, deadline=None)
def test_every_token_has_the_magnitude_of_its_whole_document(
    documents, encoding, layout, size, tokens, length, labels
):
    batch = ENCODINGS[encoding](documents)
    arguments = fill_up(batch, 2 * size)
    width = arguments["input_ids"].shape[1]
    expected = torch.zeros(*arguments["input_ids"].shape, dtype=torch.float64)
    magnitudes = expected_magnitudes(batch, documents, 3, alpha=ALPHA, tokens=tokens, length=length)
    expected[:, : magnitudes.shape[1]] = magnitudes
    if "shift_labels" in labels:  # as the hosts do before they cut; for Ulysses, as `labels` too
        assume(all(document.prompt for document in documents))  # a row's first label is nobody's
        shifted = pad(arguments.pop("labels"), (0, 1), value=-100)[:, 1:]
        arguments |= dict.fromkeys(labels, shifted)
    config = NEFTConfig(alpha=ALPHA, distribution="rademacher", tokens=tokens, length=length)
    noise = noise_over_ranks(arguments, LAYOUTS[layout](width, size), 3, config)
    wanted = (expected / 3**0.5).unsqueeze(-1).expand(noise.shape)
    torch.testing.assert_close(noise.abs().double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("shared", [False, True], ids=["of each row", "of all rows"])
def test_positions_of_several_rows(layout, shared):
    """As Axolotl's collator gives them, and as transformers makes them where it is given none."""
    rows = [[2, 6, 4], [2, 6, 4]] if shared else [[5, 7], [2, 6, 4]]
    positions = torch.tensor([[i for length in row for i in range(length)] for row in rows])
    lengths = torch.tensor([[length for length in row for _ in range(length)] for row in rows])
    trained = torch.tensor([[i % 3 > 0 for i in range(12)], [i % 4 > 1 for i in range(12)]])
    arguments = {
        "input_ids": torch.full((2, 12), 5),
        "position_ids": positions[:1] if shared else positions,
        "labels": torch.where(trained, 5, -100),
    }
    config = NEFTConfig(alpha=ALPHA, distribution="rademacher", tokens="response")
    noise = noise_over_ranks(arguments, LAYOUTS[layout](12, 3), 8, config)
    size = torch.where(trained, ALPHA / (3 * lengths * 8).sqrt(), 0.0)
    torch.testing.assert_close(noise.abs(), size.unsqueeze(-1).expand(noise.shape))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_each_rank_draws_its_own_noise(layout):
    documents = [Document(64)] * 2
    arguments = padded(documents, extra=0).arguments
    columns = LAYOUTS[layout](64, 2)
    noise = noise_over_ranks(arguments, columns, 64, NEFTConfig(alpha=ALPHA))
    pair = torch.stack([noise[:, columns[rank]].flatten() for rank in range(2)])
    assert abs(torch.corrcoef(pair)[0, 1]) < 0.06  # 4 sigma
    config = NEFTConfig(alpha=ALPHA)
    assert torch.equal(noise, noise_over_ranks(arguments, columns, 64, config))


def test_a_row_is_as_wide_as_all_its_parts():
    arguments = padded([Document(5)], extra=3).arguments
    config = NEFTConfig(alpha=ALPHA, length="row", distribution="rademacher")
    noise = noise_over_ranks(arguments, contiguous(8, 2), 4, config)
    assert noise.abs().unique().tolist() == pytest.approx([ALPHA / (3 * 8 * 4) ** 0.5])


def test_rank_0_keeps_the_noise_of_a_batch_that_is_not_cut():
    """So that a seed means the same with and without context parallelism."""
    arguments = padded([Document(8)], extra=0).arguments
    config = NEFTConfig(alpha=ALPHA)
    cut = noise_over_ranks(arguments, contiguous(8, 2), 4, config)
    model = Embedder(4)
    with attach_neft(model, config, 10, data_rank=0, data_world_size=1, seed=0):
        whole = model(**{k: v[:, :4] for k, v in arguments.items()})
    torch.testing.assert_close(cut[:, :4], whole.detach() * 0.5**0.5)


def test_a_rank_without_a_chosen_token_does_not_warn_for_the_others():
    """Warnings of ours are errors here."""
    arguments = padded([Document(8, prompt=4)], extra=0).arguments
    config = NEFTConfig(alpha=ALPHA, tokens="response")
    noise = noise_over_ranks(arguments, contiguous(8, 2), 4, config)
    assert noise[:, :4].abs().max() == 0
    assert noise[:, 4:].abs().min() > 0


def test_shards_come_with_a_data_rank():
    (alone,) = fake_shards(contiguous(4, 1))
    with pytest.raises(ValueError, match="With `shards`, give `data_rank` and `data_world_size`"):
        attach_neft(Embedder(2), NEFTConfig(alpha=1.0), shards=alone)
