"""Models of sentence-transformers that are not one encoder: what is noised, or why nothing is."""

from pathlib import Path
from typing import Any

import pytest
from tiny_encoders import save_encoder
from transformers import BertForMaskedLM

from neft_plugins import NEFTCallback, NEFTConfig
from neft_plugins.model.hooks import NoNoiseError

st = pytest.importorskip("sentence_transformers")

from encoder_runs import CONFIG, check_noise, train, trainer_of  # noqa: E402
from recorder import recorded  # noqa: E402
from sentence_transformers.base.modules import Router, Transformer  # noqa: E402
from sentence_transformers.sentence_transformer import losses as dense  # noqa: E402
from sentence_transformers.sentence_transformer import modules as parts  # noqa: E402
from sentence_transformers.sparse_encoder import losses as sparse  # noqa: E402
from sentence_transformers.sparse_encoder import modules as sparse_parts  # noqa: E402

ROUTES = {"router_mapping": {"anchor": "query", "positive": "document"}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("bert"), BertForMaskedLM)


def two_towers(encoder: str) -> Any:
    """An encoder for queries and another for documents."""
    towers = []
    for _ in range(2):
        transformer = Transformer(encoder)
        towers.append([transformer, parts.Pooling(transformer.get_embedding_dimension())])
    return st.SentenceTransformer(modules=[Router.for_query_document(*towers)], device="cpu")


def test_two_encoders_are_not_chosen_between(encoder: str, tmp_path: Path) -> None:
    model = two_towers(encoder)
    trainer = trainer_of(model, tmp_path, dense.MultipleNegativesRankingLoss, **ROUTES)
    with pytest.raises(ValueError, match="SentenceTransformer holds several models") as error:
        trainer.train()
    name = "'0.sub_modules.{}.0.model.embeddings.word_embeddings' of BertModel"
    assert f"{name.format('query')} and {name.format('document')}" in str(error.value)


@pytest.mark.parametrize("noisy", ["query", "document"])
def test_the_encoder_that_is_named_gets_noise(noisy: str, encoder: str, tmp_path: Path) -> None:
    model = two_towers(encoder)
    embeddings = {
        route: model[0].sub_modules[route][0].model.get_input_embeddings()
        for route in ("query", "document")
    }
    embedding = embeddings.pop(noisy)
    callback = NEFTCallback(CONFIG, embedding=embedding)
    (clean,) = embeddings.values()
    options = {"config": None, "callbacks": [callback], **ROUTES}
    trainer = trainer_of(model, tmp_path, dense.MultipleNegativesRankingLoss, **options)
    with recorded(model, [clean]) as calls:
        noised = train(trainer, embedding)
    check_noise(noised, passes=3)
    assert len(calls) == 3
    assert not any(call.noisy for call in calls)


def test_one_encoder_of_two_routes(encoder: str, tmp_path: Path) -> None:
    transformer = Transformer(encoder)
    modules = [transformer, parts.Pooling(transformer.get_embedding_dimension())]
    router = Router.for_query_document(modules, modules)
    model = st.SentenceTransformer(modules=[router], device="cpu")
    trainer = trainer_of(model, tmp_path, dense.MultipleNegativesRankingLoss, **ROUTES)
    check_noise(train(trainer), passes=2 * 3)


def test_queries_without_an_encoder(encoder: str, tmp_path: Path) -> None:
    """Inference-free SPLADE: the queries' weights are looked up, and only documents get noise."""

    def loss(model: Any) -> Any:
        ranking = sparse.SparseMultipleNegativesRankingLoss(model)
        only = {"use_document_regularizer_only": True}
        return sparse.SpladeLoss(model, ranking, document_regularizer_weight=1e-5, **only)

    document = [sparse_parts.MLMTransformer(encoder), sparse_parts.SpladePooling("max")]
    query = [sparse_parts.SparseStaticEmbedding(tokenizer=document[0].tokenizer)]
    router = Router.for_query_document(query, document)
    model = st.SparseEncoder(modules=[router], device="cpu")
    trainer = trainer_of(model, tmp_path, loss, **ROUTES)
    check_noise(train(trainer), passes=3)


def test_a_static_embedding_is_refused(encoder: str, tmp_path: Path) -> None:
    tokenizer = Transformer(encoder).tokenizer
    static = parts.StaticEmbedding(tokenizer, embedding_dim=8)
    model = st.SentenceTransformer(modules=[static], device="cpu")
    trainer = trainer_of(model, tmp_path, dense.MultipleNegativesRankingLoss)
    with pytest.raises(ValueError, match=r"'0.embedding' \(EmbeddingBag\) gives one vector"):
        trainer.train()


def test_an_embedding_that_is_never_called(encoder: str, tmp_path: Path) -> None:
    model = two_towers(encoder)
    name = "0.sub_modules.query.0.model.embeddings.word_embeddings"
    callback = NEFTCallback(NEFTConfig(alpha=5.0), embedding=name)
    routes = {"router_mapping": {"anchor": "document", "positive": "document"}}
    options = {"config": None, "callbacks": [callback], **routes}
    trainer = trainer_of(model, tmp_path, dense.MultipleNegativesRankingLoss, **options)
    with pytest.raises(NoNoiseError, match="no noise was added"):
        trainer.train()
