"""L: how many tokens the document of each token has.

A row of a batch may hold one document with padding, or many documents packed; four encodings of
packing are in use. All are read here, without branching on data, so that the code traces into one
graph.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Documents(NamedTuple):
    """Which document each token belongs to.

    Attributes:
        number: (B, T) int64, the document's number, in [0, B * (T + 1)) and other in every row.
        real: (B, T) bool, False on padding.
    """

    number: Tensor
    real: Tensor


def rows_as_documents(shape: torch.Size, device: torch.device) -> Documents:
    """Each row one document, padding and all (``length: row``)."""
    row = torch.arange(shape[0], device=device).unsqueeze(1)
    return Documents(row.expand(shape), torch.ones(shape, dtype=torch.bool, device=device))


def find_documents(
    batch: Mapping[str, Any], input_ids: Tensor, pad_token_id: int | None = None
) -> Documents:
    """Read the documents of a batch from what the model was given.

    A document begins at the start of a row and wherever any of these says so:

    - ``position_ids`` (B, T) do not increase (they restart in each packed document);
    - ``seq_idx`` (B, T) changes;
    - ``cu_seq_lens_q`` (N + 1,), cumulated lengths over the flattened batch, has a boundary;
    - ``attention_mask`` (B, T) goes from one document's code to the next (Axolotl's 1, 2, 3, ...).

    Padding is where ``attention_mask`` is 0, ``seq_idx`` is negative, or ``cu_seq_lens_q`` has
    ended. A packed document made of padding tokens alone is padding too: so TRL fills a
    padding-free row up to ``pad_to_multiple_of``, and Axolotl a packed row to pretrain on, which it
    gives a mask of ones alone.

    Args:
        batch: The model's keyword arguments; absent and None entries are the same.
        input_ids: (B, T) int, the tokens.
        pad_token_id: The model's padding token, where it has one.

    Returns:
        The documents; tensors of shape (B, T).

    Raises:
        ValueError: If ``attention_mask`` is not a (B, T) tensor, so documents cannot be read from
        it.
    """
    shape, device = input_ids.shape, input_ids.device
    mask = batch.get("attention_mask")
    codes = None
    if mask is not None:
        codes = _two_dimensional_mask(mask, shape).to(torch.int64).clamp(0, shape[1])

    # mrope's (3, B, T) number image patches and say nothing of documents; of four, the first are
    # those of the text (packed Qwen2-VL and its kin).
    positions = batch.get("position_ids")
    if isinstance(positions, Tensor) and positions.ndim == 3 and positions.shape[0] == 4:
        positions = positions[0]
    positions = _expand(positions, shape)
    sequence = _expand(batch.get("seq_idx"), shape)
    boundaries = batch.get("cu_seq_lens_q")
    if positions is None and sequence is None and boundaries is None:
        return rows_as_documents(shape, device) if codes is None else _coded_documents(codes)

    starts = torch.zeros(shape, dtype=torch.bool, device=device)
    starts[:, 0] = True
    real = torch.ones(shape, dtype=torch.bool, device=device)
    if codes is not None:
        real = codes != 0
        # A hole in a 0/1 mask does not split a document, so compare with the last code seen, not
        # with 0.
        seen = codes.cummax(dim=1).values[:, :-1]
        starts[:, 1:] |= (codes[:, 1:] > seen) & (seen > 0)
    if positions is not None:
        starts[:, 1:] |= positions[:, 1:] <= positions[:, :-1]
    if sequence is not None:
        starts[:, 1:] |= sequence[:, 1:] != sequence[:, :-1]
        real = real & (sequence >= 0)
    if boundaries is not None:
        boundaries = boundaries.to(torch.int64)
        place = torch.arange(shape.numel(), device=device).view(shape)
        starts |= torch.isin(place, boundaries)
        real = real & (place < boundaries[-1])
    number = starts.flatten().cumsum(0).view(shape) - 1
    documents = Documents(number, real)
    if pad_token_id is not None:
        text = count_tokens(documents, input_ids != pad_token_id)
        documents = Documents(number, real & (text > 0))
    return documents


def _coded_documents(codes: Tensor) -> Documents:
    """Of the mask alone: the documents of a row are those of its codes, in a few small steps."""
    rows, width = codes.shape
    first = torch.arange(0, rows * (width + 1), width + 1, device=codes.device)
    return Documents(codes + first.unsqueeze(1), codes != 0)


def count_tokens(documents: Documents, mask: Tensor) -> Tensor:
    """How many tokens of each token's document are under a mask.

    Args:
        documents: The documents of the batch.
        mask: (B, T) bool.

    Returns:
        (B, T) int64: at every token, the count over its document.
    """
    rows, width = mask.shape
    index = documents.number.flatten()
    counts = torch.zeros(rows * (width + 1), dtype=torch.int64, device=index.device)
    counts = counts.scatter_add(0, index, mask.flatten().to(torch.int64))
    return counts.gather(0, index).view(mask.shape)


def _two_dimensional_mask(mask: Any, shape: torch.Size) -> Tensor:
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            "Document lengths cannot be read from this `attention_mask`: it must be a (batch, "
            f"tokens) tensor; got {got}. Pass a 2-D mask or, with `scale: absolute`, set "
            "`length: row` to scale by the row's width."
        )
    if mask.shape != shape:
        raise ValueError(
            f"`attention_mask` has shape {tuple(mask.shape)} but the tokens have shape "
            f"{tuple(shape)}. Pass a mask of the tokens' shape or, with `scale: absolute`, set "
            "`length: row`."
        )
    return mask


def _expand(ids: Any, shape: torch.Size) -> Tensor | None:
    """A (B, T) or (1, T) tensor as (B, T); anything else says nothing."""
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] != shape[1]:
        return None
    return ids.expand(shape)
