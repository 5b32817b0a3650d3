"""The losses of sentence-transformers: which passes they make, and which of these get noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_encoders import HIDDEN, save_encoder, texts
from torch import nn
from transformers import BertForMaskedLM

from neft_plugins.model.recomputation import UnknownPassError

st = pytest.importorskip("sentence_transformers")

from encoder_runs import (  # noqa: E402
    COUNT,
    PAIRS,
    check_noise,
    train,
    trainer_of,
    word_embeddings,
)
from recorder import recorded  # noqa: E402
from sentence_transformers.cross_encoder import losses as cross  # noqa: E402
from sentence_transformers.multi_vector_encoder import losses as multi  # noqa: E402
from sentence_transformers.sentence_transformer import losses as dense  # noqa: E402
from sentence_transformers.sparse_encoder import losses as sparse  # noqa: E402

PAIR = [*PAIRS.values()]
TRIPLET = [*PAIR, texts(COUNT, seed=3)]
SCORES = [number / COUNT for number in range(COUNT)]
CLASSES = [number % 2 for number in range(COUNT)]
LISTS = [texts(4, seed=number) for number in range(COUNT)]
VECTORS = [[float(number % (k + 2)) for k in range(HIDDEN)] for number in range(COUNT)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("bert"), BertForMaskedLM)


def another(model: Any) -> Any:
    """A model of the same weights: a guide."""
    return st.SentenceTransformer(model.transformers_model.config._name_or_path, device="cpu")


class Case(NamedTuple):
    """A loss and what it is given.

    Attributes:
        make: Makes the loss of a model.
        texts: The columns of texts.
        labels: The column of labels, if any.
        passes: How many passes of the model get noise in each step.
        another: Whether the loss has another model.
        kind: Of which model it is the loss.
    """

    make: Callable[[Any], nn.Module]
    texts: list[list[Any]] = PAIR
    labels: list[Any] | None = None
    passes: int = 2
    another: bool = False
    kind: str = "SentenceTransformer"

    def columns(self) -> dict[str, Any]:
        columns = {f"text{number}": column for number, column in enumerate(self.texts)}
        return columns if self.labels is None else columns | {"label": self.labels}


RIGHT = {
    "CoSENTLoss": Case(dense.CoSENTLoss, labels=SCORES),
    "AnglELoss": Case(dense.AnglELoss, labels=SCORES),
    "CosineSimilarityLoss": Case(dense.CosineSimilarityLoss, labels=SCORES),
    "ContrastiveLoss": Case(dense.ContrastiveLoss, labels=CLASSES),
    "OnlineContrastiveLoss": Case(dense.OnlineContrastiveLoss, labels=CLASSES),
    "SoftmaxLoss": Case(lambda model: dense.SoftmaxLoss(model, HIDDEN, 2), labels=CLASSES),
    "MultipleNegativesSymmetricRankingLoss": Case(dense.MultipleNegativesSymmetricRankingLoss),
    "GlobalOrthogonalRegularizationLoss": Case(dense.GlobalOrthogonalRegularizationLoss),
    "TripletLoss": Case(dense.TripletLoss, TRIPLET),
    "MarginMSELoss": Case(dense.MarginMSELoss, TRIPLET, SCORES),
    "DistillKLDivLoss": Case(
        dense.DistillKLDivLoss, TRIPLET, [[score, 1 - score] for score in SCORES]
    ),
    "BatchAllTripletLoss": Case(dense.BatchAllTripletLoss, PAIR[:1], CLASSES, passes=1),
    "MSELoss": Case(dense.MSELoss, PAIR[:1], VECTORS, passes=1),
    "EmbedDistillLoss": Case(dense.EmbedDistillLoss, PAIR[:1], VECTORS, passes=1),
    "MegaBatchMarginLoss, not in mini-batches": Case(
        lambda model: dense.MegaBatchMarginLoss(model, use_mini_batched_version=False)
    ),
    # These call the model again for each dimension or layer, and are given what it gave before.
    "MatryoshkaLoss": Case(
        lambda model: dense.MatryoshkaLoss(
            model, dense.MultipleNegativesRankingLoss(model), [HIDDEN, 8, 4]
        )
    ),
    "AdaptiveLayerLoss": Case(
        lambda model: dense.AdaptiveLayerLoss(model, dense.MultipleNegativesRankingLoss(model), -1)
    ),
    "Matryoshka2dLoss": Case(
        lambda model: dense.Matryoshka2dLoss(
            model, dense.MultipleNegativesRankingLoss(model), [HIDDEN, 8]
        )
    ),
    # These have another model beside it, which stays clean.
    "GISTEmbedLoss": Case(lambda model: dense.GISTEmbedLoss(model, another(model)), another=True),
    "ContrastiveTensionLoss": Case(
        dense.ContrastiveTensionLoss, labels=CLASSES, passes=1, another=True
    ),
    "ContrastiveTensionLossInBatchNegatives": Case(
        dense.ContrastiveTensionLossInBatchNegatives, PAIR[:1], passes=1, another=True
    ),
    "DenoisingAutoEncoderLoss": Case(
        lambda model: dense.DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True),
        passes=1,
        another=True,
    ),
    # A text and each of its candidates are one row.
    "MultipleNegativesRankingLoss of a CrossEncoder": Case(
        lambda model: cross.MultipleNegativesRankingLoss(model, num_negatives=2),
        passes=3,
        kind="CrossEncoder",
    ),
    "LambdaLoss, 4 candidates each, in mini-batches": Case(
        lambda model: cross.LambdaLoss(model, mini_batch_size=8),
        [PAIR[0], LISTS],
        [[1, 0, 0, 0]] * COUNT,
        passes=4,
        kind="CrossEncoder",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_loss_that_is_right(name: str, encoder: str, tmp_path: Path) -> None:
    """Every pass of the model has noise of its own; none of another model has any."""
    case = RIGHT[name]
    model = getattr(st, case.kind)(encoder, device="cpu")
    trainer = trainer_of(model, tmp_path, case.make, case.columns(), max_steps=2)
    own = word_embeddings(model)
    every = (m for m in trainer.loss.modules() if isinstance(m, nn.Embedding) and m is not own)
    others = [m for m in every if m.num_embeddings == own.num_embeddings]
    with recorded(model, others) as calls:
        check_noise(train(trainer), passes=2 * case.passes)
    assert bool(calls) == case.another
    assert not any(call.noisy for call in calls)


CACHED = {
    "CachedMultipleNegativesRankingLoss": dense.CachedMultipleNegativesRankingLoss,
    "CachedMultipleNegativesSymmetricRankingLoss": (
        dense.CachedMultipleNegativesSymmetricRankingLoss
    ),
    "CachedGISTEmbedLoss": lambda model: dense.CachedGISTEmbedLoss(model, another(model)),
    "MegaBatchMarginLoss, as by default": dense.MegaBatchMarginLoss,
    "MatryoshkaLoss of a cached one": lambda model: dense.MatryoshkaLoss(
        model, dense.CachedMultipleNegativesRankingLoss(model), [HIDDEN, 8]
    ),
    "CrossEncoder": cross.CachedMultipleNegativesRankingLoss,
    "MultiVectorEncoder": multi.CachedMultiVectorMultipleNegativesRankingLoss,
    "SparseEncoder": lambda model: sparse.CachedSpladeLoss(
        model, sparse.SparseMultipleNegativesRankingLoss(model), 1e-5, 1e-5
    ),
}


@pytest.mark.parametrize("name", CACHED)
def test_a_cached_loss_is_refused(name: str, encoder: str, tmp_path: Path) -> None:
    """It takes the loss of clean embeddings, and its gradient at noisy ones."""
    kind = name if name.endswith("Encoder") else "SentenceTransformer"
    model = getattr(st, kind)(encoder, device="cpu")
    trainer = trainer_of(model, tmp_path, CACHED[name], PAIRS)
    with pytest.raises(UnknownPassError, match="within a backward pass") as error:
        trainer.train()
    assert "CachedMultipleNegativesRankingLoss" in str(error.value)
    assert trainer.state.global_step == 0
