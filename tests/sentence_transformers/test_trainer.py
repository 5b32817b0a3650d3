"""sentence-transformers: a loss makes several passes, and each has noise of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import HIDDEN, save_encoder, texts
from transformers import BertForMaskedLM, TrainerCallback

from neft_plugins import NEFTConfig, attach_neft

st = pytest.importorskip("sentence_transformers")

from encoder_runs import (  # noqa: E402
    ALPHA,
    CONFIG,
    COUNT,
    PAIRS,
    check_noise,
    logged,
    train,
    trainer_of,
    word_embeddings,
)
from recorder import recorded  # noqa: E402
from sentence_transformers.base.losses import column_merging_disabled  # noqa: E402
from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)

RANKING = MultipleNegativesRankingLoss


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(encoder: str) -> Any:
    return st.SentenceTransformer(encoder, device="cpu")


# One micro-batch, several passes


def test_each_pass_has_noise_of_its_own(model: Any, tmp_path: Path) -> None:
    """Anchors and positives, micro-batches, optimizer steps."""
    trainer = trainer_of(model, tmp_path, RANKING, gradient_accumulation_steps=2)
    check_noise(train(trainer), passes=2 * 2 * 3)
    assert logged(trainer, "neft/alpha") == [ALPHA] * 3
    assert logged(trainer, "neft/noised_tokens") == [1.0] * 3


@pytest.mark.parametrize("merged", [True, False])
def test_triplets(model: Any, tmp_path: Path, merged: bool) -> None:
    """Positives and negatives are one pass, where their columns are alike."""
    trainer = trainer_of(model, tmp_path, RANKING, PAIRS | {"negative": texts(COUNT, seed=3)})
    if merged:
        check_noise(train(trainer), passes=2 * 3)
    else:
        with column_merging_disabled():
            check_noise(train(trainer), passes=3 * 3)


def test_several_datasets_losses_and_prompts(model: Any, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    scores = {"score": [number / COUNT for number in range(COUNT)]}
    datasets = {"pairs": Dataset.from_dict(PAIRS), "scored": Dataset.from_dict(PAIRS | scores)}
    trainer = trainer_of(
        model,
        tmp_path,
        lambda model: {"pairs": RANKING(model), "scored": CoSENTLoss(model)},
        DatasetDict(datasets),
        prompts={"pairs": {"anchor": "w1 w2 "}},
        multi_dataset_batch_sampler="round_robin",
        max_steps=4,
    )
    calls = train(trainer)
    check_noise(calls, passes=2 * 4)
    assert any((call.ids[:, 1:3] == torch.tensor([6, 7])).all() for call in calls)


def test_noise_does_not_tell_which_texts_belong_together(model: Any, tmp_path: Path) -> None:
    """Of a model that learns nothing; with one draw for both, the loss fell from 2.1 to 0.0005."""
    losses = {}
    for name, config in (("clean", None), ("noisy", CONFIG)):
        options = {"config": config, "max_steps": 12, "learning_rate": 0.0}
        trainer = trainer_of(model, tmp_path, RANKING, **options)
        trainer.train()
        losses[name] = sum(logged(trainer)) / 12
    assert losses["noisy"] >= losses["clean"] > 1.5


# What has no noise


class Encode(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        model.encode(["w1 w2 w3"])


def test_evaluation_and_encode_are_clean(model: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    trainer = trainer_of(
        model,
        tmp_path,
        RANKING,
        callbacks=[Encode()],
        eval_dataset=Dataset.from_dict({key: column[:4] for key, column in PAIRS.items()}),
        eval_strategy="steps",
        eval_steps=1,
    )
    with recorded(model, [word_embeddings(model)]) as every:
        calls = train(trainer)
    check_noise(calls, passes=2 * 3)
    assert len([call for call in every if not call.noisy]) >= 3 + 2 * 3
    assert any("eval_loss" in log for log in trainer.state.log_history)


def test_after_training_the_model_is_as_it_was(model: Any, tmp_path: Path) -> None:
    before = model.encode(PAIRS["anchor"])
    train(trainer_of(model, tmp_path, RANKING, learning_rate=0.0))
    assert (model.encode(PAIRS["anchor"]) == before).all()


# How it is trained


def test_a_resumed_run_is_the_uninterrupted_one(encoder: str, tmp_path: Path) -> None:
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "seed": 5}
    config = NEFTConfig(alpha=ALPHA, distribution="rademacher", schedule="linear")
    runs = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        model = st.SentenceTransformer(encoder, device="cpu")
        trainer = trainer_of(model, tmp_path, RANKING, config=config, **saving)
        runs.append((train(trainer, resume_from_checkpoint=checkpoint), model.state_dict()))
    (whole, expected), (resumed, got) = runs
    assert (len(whole), len(resumed)) == (8, 4)
    for one, other in zip(whole[4:], resumed, strict=True):
        assert one.noisy
        assert torch.equal(one.output, other.output)
    for name, weight in expected.items():
        assert torch.equal(got[name], weight), name


def test_gradient_checkpointing(model: Any, tmp_path: Path) -> None:
    trainer = trainer_of(model, tmp_path, RANKING, gradient_checkpointing=True)
    check_noise(train(trainer), passes=2 * 3)


def test_compiled(encoder: str, tmp_path: Path) -> None:
    """The graph of the first pass serves the others, and each draws anew."""
    losses = []
    for compiling in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        model = st.SentenceTransformer(encoder, device="cpu")
        trainer = trainer_of(model, tmp_path, RANKING, **compiling)
        trainer.train()
        losses.append(logged(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_an_adapter(model: Any, tmp_path: Path) -> None:
    from peft import LoraConfig

    model.add_adapter(LoraConfig(target_modules=["query"], r=2))
    check_noise(train(trainer_of(model, tmp_path, RANKING)), passes=2 * 3)


def test_texts_packed_without_padding(model: Any) -> None:
    """As for FlashAttention; RoBERTa's positions begin at 2."""
    lengths = [3, 6, 2]
    features = {
        "input_ids": torch.arange(10, 10 + sum(lengths)).unsqueeze(0),
        "position_ids": torch.cat([2 + torch.arange(n) for n in lengths]).unsqueeze(0),
        "seq_idx": torch.arange(3).repeat_interleave(torch.tensor(lengths)).unsqueeze(0),
        "cu_seq_lens_q": torch.tensor([0, 3, 9, 11]),
    }
    with attach_neft(model.train(), CONFIG), recorded(model, [word_embeddings(model)]) as calls:
        model[0](features)
    expected = torch.cat([torch.full((n,), ALPHA / (3 * n * HIDDEN) ** 0.5) for n in lengths])
    torch.testing.assert_close(
        calls[0].noise[0].abs(), expected.unsqueeze(1).expand(-1, HIDDEN), rtol=1e-4, atol=1e-6
    )


# Its other models


def test_a_cross_encoder(encoder: str, tmp_path: Path) -> None:
    """One pass, of both texts as one."""
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model = st.CrossEncoder(encoder, num_labels=1, device="cpu")
    columns = PAIRS | {"label": [number % 2 for number in range(COUNT)]}
    trainer = trainer_of(model, tmp_path, BinaryCrossEntropyLoss, columns)
    check_noise(train(trainer), passes=3)


def test_a_sparse_encoder(tmp_path: Path) -> None:
    from sentence_transformers.sparse_encoder import losses

    def loss(model: Any) -> Any:
        weights = {"document_regularizer_weight": 1e-5, "query_regularizer_weight": 1e-5}
        ranking = losses.SparseMultipleNegativesRankingLoss(model)
        return losses.SpladeLoss(model, ranking, **weights)

    model = st.SparseEncoder(save_encoder(tmp_path / "model", BertForMaskedLM), device="cpu")
    check_noise(train(trainer_of(model, tmp_path, loss)), passes=2 * 3)


def test_a_multi_vector_encoder(encoder: str, tmp_path: Path) -> None:
    from sentence_transformers.multi_vector_encoder import losses

    model = st.MultiVectorEncoder(encoder, device="cpu")
    trainer = trainer_of(model, tmp_path, losses.MultiVectorMultipleNegativesRankingLoss)
    check_noise(train(trainer), passes=2 * 3)
