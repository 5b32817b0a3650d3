"""NoiseSite: from a batch to the noise on one embedding's output."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neft_plugins import registry
from neft_plugins.config import NEFTConfig
from neft_plugins.model import embeddings as finder
from neft_plugins.model.embeddings import InputEmbedding
from neft_plugins.model.shards import SequenceShards
from neft_plugins.noise import inject, lengths, meter
from neft_plugins.noise.tokens import IGNORED_LABEL, MissingLabelsError, TokenView

Batch = Mapping[str, Any]


class NoiseSite:
    """The noise at one embedding module.

    What changes from step to step is in the 0-dim CPU tensors ``alpha`` and ``seed``, which a
    compiled graph takes as inputs; the rest is fixed when the noise is attached.

    Args:
        model: The model, asked for its padding and placeholder tokens.
        embedding: Where the noise is added.
        config: What noise.
        alone: Whether it is the model's only site.
        pad_token_id: The tokenizer's padding token; unset, the model's.
        shards: The ranks among which each row is cut, if any.
    """

    def __init__(
        self,
        model: nn.Module,
        embedding: InputEmbedding,
        config: NEFTConfig,
        alone: bool = True,
        pad_token_id: int | None = None,
        shards: SequenceShards | None = None,
    ) -> None:
        self.embedding = embedding
        self.config = config
        self.alpha = torch.zeros((), dtype=torch.float32)
        self.seed = torch.zeros((), dtype=torch.int64)
        self.fired = False
        self.sums: Tensor | None = None
        self.hidden_size = 0
        self.dtype = torch.float32
        self._rule = registry.load("tokens", config.tokens)
        self._scaler = finder.lookup_scaler(embedding.module)
        self._placeholders = finder.placeholder_ids(model)
        models_own = finder.pad_token_id(model)
        self._pad_token_id = models_own if pad_token_id is None else pad_token_id
        self._model_name = type(model).__name__
        self._alone = alone
        self._shards = shards
        registry.load("distribution", config.distribution)

    def __call__(
        self, batch: Batch, module_ids: Tensor, clean: Tensor, again: bool = False
    ) -> Tensor:
        """Add the noise of one forward pass.

        Args:
            batch: What the model was given.
            module_ids: The tokens the embedding module was given, of any shape.
            clean: (B, T, D) or (N, D), the module's output.
            again: Whether this is a further call in one forward pass. It gets noise only where
                it is given the batch's tokens: LED and BigBird-Pegasus embed padding of their
                own by a second call.

        Returns:
            The noisy output, of the same shape and dtype.
        """
        if module_ids.is_floating_point():
            raise ValueError(
                f"The module '{self.embedding.name}' of {self._model_name} takes no token ids (its "
                f"input is {module_ids.dtype}), so it is no token embedding. Name the one that is: "
                "`embedding='...'`."
            )
        if self.embedding.side == "decoder":
            batch = decoder_batch(batch)
        ids = batch.get("input_ids")
        if again and ids is not None and module_ids.shape != ids.shape:
            return clean
        batch_ids = _two_dimensional(module_ids if ids is None else ids)
        if self._shards is None:
            noised_lengths, real = self._lengths(batch, batch_ids)
        else:  # L and the token rule are of whole documents
            batch, own = self._shards.join(batch, batch_ids)
            noised_lengths, real = self._lengths(batch, batch["input_ids"])
            noised_lengths, real = noised_lengths[:, own], real[:, own]
        if again and ids is not None:
            same = (module_ids == ids).all()
            noised_lengths, real = noised_lengths * same, real & same
        noised_lengths = align(noised_lengths, real, ids, module_ids, clean.shape[:-1])
        norms = inject.token_norms(clean)
        scale = self._scale(noised_lengths, norms, clean)
        noisy, noise = inject.add_noise(
            clean, scale, self.alpha, self.seed, self.config.distribution
        )
        sums = meter.measure(noise, norms, noised_lengths > 0, real)
        # In a compiled graph only the last pass is kept: reading what was there would recompile.
        kept = None if torch.compiler.is_compiling() else self.sums
        self.sums = sums if kept is None else kept + sums
        self.hidden_size, self.dtype = clean.shape[-1], clean.dtype
        return noisy

    def _lengths(self, batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T): L of each token that gets noise, 0 elsewhere; and which tokens are real."""
        if self.config.length == "row":
            documents = lengths.rows_as_documents(ids.shape, ids.device)
        else:
            documents = lengths.find_documents(batch, ids, self._pad_token_id)
        view = TokenView(
            ids, documents.real, documents.number, lambda: self._read_labels(batch, ids.shape)
        )
        chosen = self._rule(view)
        if chosen.shape != ids.shape or chosen.dtype != torch.bool:
            raise ValueError(
                f"The token rule '{self.config.tokens}' must give a bool mask of shape "
                f"{tuple(ids.shape)}; got {chosen.dtype} of shape {tuple(chosen.shape)}."
            )
        noised = chosen & documents.real
        for placeholder in self._placeholders:
            noised = noised & (ids != placeholder)
        counted = noised if self.config.length == "noised" else documents.real
        return lengths.count_tokens(documents, counted) * noised, documents.real

    def _scale(self, noised_lengths: Tensor, norms: Tensor, clean: Tensor) -> Tensor:
        """The magnitude of each token's noise, float32, 0 where there is none."""
        if self.config.scale == "relative":
            relative = inject.relative_noise_scale(self.alpha, norms, clean.shape[-1])
            return torch.where(noised_lengths > 0, relative, 0.0)
        scale = inject.noise_scale(self.alpha, noised_lengths, clean.shape[-1])
        if self._scaler is None:
            return scale
        factor: Any = self._scaler.embed_scale
        # The module rounds its factor to its dtype before it multiplies.
        return scale * (factor.to(clean.dtype) if isinstance(factor, Tensor) else factor)

    def _read_labels(self, batch: Batch, shape: torch.Size) -> Tensor:
        rule = f"`tokens: {self.config.tokens}`"
        if self.embedding.side == "encoder" and self._alone:
            raise MissingLabelsError(
                f"{rule} has no meaning for the encoder of {self._model_name}: its labels are "
                "those of the decoder's tokens. Use `tokens: all`, or put noise on the decoder "
                "too with decoder=True."
            )
        labels, shifted = batch.get("labels"), batch.get("shift_labels")
        if shifted is not None:  # for Ulysses, transformers gives these as `labels` too
            labels = shift_right(shifted)
        if labels is None:
            seen = ", ".join(f"`{key}`" for key, value in batch.items() if value is not None)
            raise MissingLabelsError(
                f"{rule} needs labels, but {self._model_name} was called with {seen} only. Pass "
                "labels to the model, or call `neft.set_batch(labels=labels)` before the forward "
                "pass, as NEFTSFTTrainer does. A trainer that keeps its labels or completion mask "
                "from the model can only use `tokens: all`."
            )
        if self.embedding.side == "encoder":  # nothing of its tokens is trained on
            return torch.full(shape, IGNORED_LABEL, device=labels.device)
        if labels.shape != shape:
            raise MissingLabelsError(
                f"{rule} needs one label for each token: labels have shape {tuple(labels.shape)}, "
                f"the tokens {tuple(shape)}. Use `tokens: all`."
            )
        return labels


def decoder_batch(batch: Batch) -> dict[str, Any]:
    """An encoder-decoder's batch as its decoder's embedding sees it.

    The decoder's input i holds label i - 1, after a start token.

    Args:
        batch: What the encoder-decoder was given.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` of the decoder's tokens, each where known.
    """
    labels, mask = batch.get("labels"), batch.get("decoder_attention_mask")
    if labels is not None:
        labels = shift_right(labels)
        if mask is None:
            mask = (labels != IGNORED_LABEL).to(torch.int64)
            mask[:, 0] = 1
    return {
        "input_ids": batch.get("decoder_input_ids"),
        "attention_mask": mask,
        "labels": labels,
    }


def shift_right(labels: Tensor) -> Tensor:
    """(B, T) labels one place to the right; the first place has none."""
    return torch.nn.functional.pad(labels[:, :-1], (1, 0), value=IGNORED_LABEL)


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


def _two_dimensional(ids: Tensor) -> Tensor:
    return ids.unsqueeze(0) if ids.ndim == 1 else ids
