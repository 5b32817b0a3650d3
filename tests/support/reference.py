"""The noise, defined by slow loops; and the ways in which a batch writes its documents."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

PAD = 0  # and the end of text
FILLER = 5  # in the place of padding where something else than the token says that it is
IGNORED = -100


@dataclass(frozen=True)
class Document:
    """Tokens, of which the first are a prompt that is not trained on."""

    length: int
    prompt: int = 0


@dataclass(frozen=True)
class EncodedBatch:
    """Arguments for a model, and where each token of each document lies in them."""

    arguments: dict[str, Tensor]
    places: list[tuple[int, int, int, int]]  # (row, column, document, position in the document)


def magnitude(
    document: Document,
    position: int,
    *,
    alpha: float,
    hidden_size: int,
    tokens: str = "all",
    length: str = "sequence",
    row_width: int = 0,
) -> float:
    """alpha / sqrt(L * D) of one token; 0 where it gets no noise."""

    def noised(i: int) -> bool:
        return {"all": True, "response": i >= document.prompt, "prompt": i < document.prompt}[
            tokens
        ]

    if not noised(position):
        return 0.0
    count = {
        "sequence": document.length,
        "row": row_width,
        "noised": sum(noised(i) for i in range(document.length)),
    }[length]
    return alpha / math.sqrt(count * hidden_size)


def _row(documents: list[tuple[int, Document]], row: int, column: int = 0, eos: bool = True):
    """One row of packed documents: ids, labels, codes, positions, and their tokens' places.

    Each ends with the padding token if ``eos``; one of that token alone would be padding.
    """
    ids, labels, codes, positions, places = [], [], [], [], []
    for code, (number, document) in enumerate(documents, start=1):
        for i in range(document.length):
            places.append((row, column + len(ids), number, i))
            is_eos = eos and i == document.length - 1 > 0
            ids.append(PAD if is_eos else 3 + (7 * number + i) % 11)
            labels.append(IGNORED if i < document.prompt else ids[-1])
            codes.append(code)
            positions.append(i)
    return ids, labels, codes, positions, places


def padded(
    documents: list[Document],
    side: str = "right",
    extra: int = 2,
    fill: int = PAD,
    eos: bool = False,
) -> EncodedBatch:
    """One document a row, an attention mask of 0 and 1."""
    width = max(d.length for d in documents) + extra
    rows, places = [], []
    for number, document in enumerate(documents):
        gap = width - document.length
        before = gap if side == "left" else 0
        ids, labels, codes, _, place = _row([(number, document)], number, before, eos)
        filling = [(fill, IGNORED, 0)] * gap
        real = list(zip(ids, labels, codes, strict=True))
        rows.append(filling + real if side == "left" else real + filling)
        places += place
    table = torch.tensor(rows)
    keys = ("input_ids", "labels", "attention_mask")
    return EncodedBatch(dict(zip(keys, table.unbind(-1), strict=True)), places)


def _packed(documents: list[Document]):
    ids, labels, codes, positions, places = _row(list(enumerate(documents)), 0)
    arguments = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
    return arguments, codes, positions, places


def _fill_up(arguments: dict[str, Tensor], count: int, token: int) -> dict[str, Tensor]:
    """Places that are no document's, behind those that are."""
    fills = {"input_ids": token, "labels": IGNORED}
    return {
        key: torch.nn.functional.pad(value, (0, count), value=fills[key])
        for key, value in arguments.items()
    }


def position_ids(documents: list[Document]) -> EncodedBatch:
    """Padding-free: one row, positions restart."""
    arguments, _, positions, places = _packed(documents)
    return EncodedBatch({**arguments, "position_ids": torch.tensor([positions])}, places)


def cu_seq_lens(documents: list[Document], extra: int = 0) -> EncodedBatch:
    """Padding-free: one row, cumulated lengths, which may end before the row does."""
    arguments, _, _, places = _packed(documents)
    ends = torch.tensor([0] + [d.length for d in documents]).cumsum(0).to(torch.int32)
    return EncodedBatch({**_fill_up(arguments, extra, FILLER), "cu_seq_lens_q": ends}, places)


def seq_idx(documents: list[Document], extra: int = 0) -> EncodedBatch:
    """Padding-free: one row, the document's number at each token, -1 at none."""
    arguments, codes, _, places = _packed(documents)
    numbers = torch.tensor([codes + [0] * extra]).int() - 1
    return EncodedBatch({**_fill_up(arguments, extra, FILLER), "seq_idx": numbers}, places)


def coded_mask(documents: list[Document], extra: int = 3) -> EncodedBatch:
    """Axolotl's V2 collator: the mask is 1, 2, 3, ... by document, 0 on padding."""
    arguments, codes, _, places = _packed(documents)
    mask = torch.tensor([codes + [0] * extra])
    return EncodedBatch({**_fill_up(arguments, extra, FILLER), "attention_mask": mask}, places)


def coded_mask_with_holes(documents: list[Document]) -> EncodedBatch:
    """As 1 0 1 0 2 0 2 0: after every token a place that is nobody's, in a document or between."""
    whole = coded_mask(documents, extra=0)
    holes = {"input_ids": FILLER, "labels": IGNORED, "attention_mask": 0}
    arguments = {
        key: torch.stack([value, torch.full_like(value, holes[key])], dim=-1).flatten(1)
        for key, value in whole.arguments.items()
    }
    return EncodedBatch(arguments, [(row, 2 * column, *of) for row, column, *of in whole.places])


def axolotl_pretraining(documents: list[Document], extra: int = 3) -> EncodedBatch:
    """Axolotl's packed rows to pretrain on: padding is one more document, and the mask all ones."""
    arguments, _, positions, places = _packed(documents)
    arguments = _fill_up(arguments, extra, PAD)
    positions = torch.tensor([positions + list(range(extra))])
    mask = torch.ones_like(positions)
    return EncodedBatch({**arguments, "position_ids": positions, "attention_mask": mask}, places)


def trl_padding_free(documents: list[Document], extra: int = 3) -> EncodedBatch:
    """TRL's padding-free rows with ``pad_to_multiple_of``: padding looks like documents of one."""
    arguments, _, positions, places = _packed(documents)
    arguments = _fill_up(arguments, extra, PAD)
    positions = torch.tensor([positions + [0] * extra])
    starts = (positions[0] == 0).nonzero().flatten()
    ends = torch.cat([starts, torch.tensor([positions.shape[1]])]).to(torch.int32)
    index = torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff())[None].int()
    return EncodedBatch(
        {**arguments, "position_ids": positions, "cu_seq_lens_q": ends, "seq_idx": index}, places
    )


ENCODINGS: dict[str, Callable[[list[Document]], EncodedBatch]] = {
    "padded right": partial(padded, fill=FILLER, eos=True),
    "padded left": partial(padded, side="left", fill=FILLER, eos=True),
    "position_ids": position_ids,
    "cu_seq_lens": cu_seq_lens,
    "cu_seq_lens that end": partial(cu_seq_lens, extra=3),
    "seq_idx": seq_idx,
    "seq_idx that end": partial(seq_idx, extra=3),
    "coded mask": coded_mask,
    "coded mask with holes": coded_mask_with_holes,
    "axolotl pretraining": axolotl_pretraining,
    "trl padding-free": trl_padding_free,
}


class Config:
    """What the noise asks of a model's config."""

    pad_token_id = PAD


class Embedder(nn.Module):
    """A model that is its embedding: what comes out is what a first layer would see."""

    def __init__(self, hidden_size: int, dtype: torch.dtype = torch.float32, zero: bool = True):
        super().__init__()
        self.config = Config()
        self.embed = nn.Embedding(32, hidden_size, dtype=dtype)
        if zero:  # then what comes out is the noise itself, with no rounding of a sum
            nn.init.zeros_(self.embed.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, **arguments: Tensor) -> Tensor:
        return self.embed(input_ids)


def expected_magnitudes(
    batch: EncodedBatch, documents: list[Document], hidden_size: int, **how
) -> Tensor:
    """(B, T) float64: the magnitude of every token's noise, by loops."""
    shape = batch.arguments["input_ids"].shape
    table = torch.zeros(shape, dtype=torch.float64)
    for row, column, number, position in batch.places:
        table[row, column] = magnitude(
            documents[number], position, hidden_size=hidden_size, row_width=shape[1], **how
        )
    return table
