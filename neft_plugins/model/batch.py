"""What a model was given: its tokens and labels, and how they lie in the embedding's output."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from neft_plugins.noise.tokens import IGNORED_LABEL

Batch = Mapping[str, Any]

TOKENS = {"input_ids", "inputs_embeds"}
NOTED = {
    *TOKENS,
    "attention_mask",
    "position_ids",
    "seq_idx",
    "cu_seq_lens_q",
    "labels",
    "shift_labels",
    "decoder_input_ids",
    "decoder_attention_mask",
}
"""The model's arguments that say which tokens are real, of which document, and trained on."""


def note(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's arguments, those that matter to the noise.

    Args:
        arguments: The arguments by name.

    Returns:
        Those of ``NOTED`` that are not None. ``inputs_embeds`` is noted only as given, and not
        held.
    """
    return {
        key: True if key == "inputs_embeds" else value
        for key, value in arguments.items()
        if key in NOTED and value is not None
    }


def note_features(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What ``note`` finds within the one argument that holds tokens.

    A ``SentenceTransformer`` is given its features so. Its encoder is then not called as a module,
    but by a method, so no hook of that hears what it is given.

    Args:
        arguments: The arguments by name.

    Returns:
        As ``note``; nothing where no argument holds tokens, or several do.
    """
    within = [note(value) for value in arguments.values() if isinstance(value, Mapping)]
    found = [given for given in within if TOKENS & given.keys()]
    return found[0] if len(found) == 1 else {}


def decoder_batch(
    batch: Batch, module_ids: Tensor, padding: Collection[int] = ()
) -> dict[str, Any]:
    """An encoder-decoder's batch as its decoder's embedding sees it.

    The decoder's input i holds label i - 1, after a start token. Without a mask, its padding is
    what is a padding token at the end and has no label: the labels of a prompt are masked too
    (Donut, Whisper), and label smoothing keeps all labels from the model.

    Args:
        batch: What the encoder-decoder was given.
        module_ids: The tokens that the embedding was given, for where the batch has none.
        padding: Ids of padding tokens.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` of the decoder's tokens, each where known.
    """
    given, mask = batch.get("decoder_input_ids"), batch.get("decoder_attention_mask")
    labels = batch.get("labels")
    # A class's or a span's label is of no token.
    labels = None if labels is None or labels.ndim != 2 else shift_right(labels)
    ids = two_dimensional(module_ids if given is None else given)
    if mask is None and padding:
        real = not_padding(ids, padding)
        labelled = labels is not None and labels.shape == real.shape
        mask = start_and(real | (labels != IGNORED_LABEL) if labelled else real)
    elif mask is None and labels is not None:
        mask = start_and(labels != IGNORED_LABEL)
    return {"input_ids": given, "attention_mask": mask, "labels": labels}


def start_and(real: Tensor) -> Tensor:
    """(B, T) bool as a mask of 0 and 1, with the first token, which may look like padding."""
    mask = real.to(torch.int64)
    return torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=1)


def other_tokens(ids: Tensor, padding: Collection[int] = ()) -> dict[str, Any]:
    """Tokens of which nothing else is known, as a batch: no argument of the model describes them.

    A model embeds such tokens by a further call: the second text of a pair, or padding of its own
    (LED, BigBird-Pegasus). None of them is trained on.

    Args:
        ids: (B, T).
        padding: Ids of padding tokens.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``.
    """
    return {
        "input_ids": ids,
        "attention_mask": not_padding(ids, padding).to(torch.int64),
        "labels": torch.full_like(ids, IGNORED_LABEL),
    }


def not_padding(ids: Tensor, padding: Collection[int]) -> Tensor:
    """(B, T) ids -> bool, False on the padding tokens at either end of a row.

    Between other tokens a padding token is text: it may be the end-of-text token too.
    """
    text = torch.ones_like(ids, dtype=torch.bool)
    for token in padding:
        text = text & (ids != token)
    begun = text.cumsum(1) > 0
    not_ended = text.flip(1).cumsum(1).flip(1) > 0
    return begun & not_ended


def shift_right(labels: Tensor) -> Tensor:
    """(B, T) labels one place to the right; the first place has none."""
    return torch.nn.functional.pad(labels[:, :-1], (1, 0), value=IGNORED_LABEL)


def two_dimensional(ids: Tensor) -> Tensor:
    """(T,) ids as one row; (B, T) as they are."""
    return ids.unsqueeze(0) if ids.ndim == 1 else ids


def align(
    values: Tensor, real: Tensor, ids: Tensor | None, module_ids: Tensor, shape: torch.Size
) -> Tensor:
    """Lay (B, T) values of the batch's tokens onto the tokens the embedding module was given.

    Most modules get the batch's tokens as they are. Some get them flattened, with or without the
    padding (ModernBERT), transposed (XLNet), or with tokens of the model's own before (CPM-Ant) or
    after (Longformer, Reformer) them; the model's own tokens get the value 0.

    Args:
        values: (B, T), one for each token of the batch.
        real: (B, T) bool, False on padding.
        ids: (B, T), the batch's tokens, where known.
        module_ids: The tokens the module was given.
        shape: Shape of the module's output, less its last dimension.

    Returns:
        The values, of the given shape.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    rows, width = values.shape
    if shape == values.shape:
        if rows == width > 1 and ids is not None and module_ids.shape == ids.shape:
            # Not merely other ids: some models rewrite placeholders before they look them up.
            transposed = (module_ids == ids.T).all() & (module_ids != ids).any()
            return torch.where(transposed, values.T, values)
        return values
    if len(shape) == 1:
        return values.flatten() if shape[0] == values.numel() else values[real]
    if len(shape) == 2 and shape == values.T.shape:
        return values.T
    if len(shape) == 2 and shape[0] == rows and shape[1] > width:
        extra = shape[1] - width
        after = torch.nn.functional.pad(values, (0, extra))
        if ids is None:
            return after
        before = torch.nn.functional.pad(values, (extra, 0))
        return torch.where((module_ids[:, extra:] == ids).all(), before, after)
    raise ValueError(
        f"The embedding produced vectors for {tuple(shape)} tokens, but the batch has "
        f"{tuple(values.shape)}. Name the module that embeds the batch's tokens with `embedding=`."
    )
