"""Every forward pass and every call of the embedding has noise of its own."""

import itertools

import pytest
import torch
from reference import Config, Document, Embedder, padded
from torch import Tensor, nn

from neft_plugins import NEFTConfig, attach_neft
from neft_plugins.config import NEFTWarning
from neft_plugins.noise import distributions, seeds

CONFIG = NEFTConfig(alpha=5.0, seed=3)
DOCUMENTS = [Document(7), Document(4)]
D = 64


def given() -> dict[str, Tensor]:
    batch = padded(DOCUMENTS).arguments
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def drawn(step: int, k: int, pass_index: int, call: int = 0) -> Tensor:
    """The draw of a call, by the mathematics alone."""
    seed = seeds.draw_seed(seeds.micro_batch_seed(3, step, k), pass_index, call)
    return distributions.uniform(
        (2, 9, D), torch.Generator().manual_seed(seeds.block_seed(seed, 0))
    )


def check_is(noise: Tensor, draw: Tensor) -> None:
    """On the first document, of 7 tokens."""
    torch.testing.assert_close(noise[0, :7], draw[0, :7] * 5.0 / (7 * D) ** 0.5)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def test_noise_is_a_function_of_seed_step_micro_batch_pass_and_call():
    model = Embedder(D)
    with attach_neft(model, CONFIG, data_rank=1, data_world_size=3) as neft:
        for step, micro_step in itertools.product(range(3), range(2)):
            neft.set_step(step, micro_step)
            for pass_index in range(3):
                check_is(model(**given()), drawn(step, 3 * micro_step + 1, pass_index))


def test_only_noisy_passes_count():
    model = Embedder(D)
    with attach_neft(model, CONFIG) as neft:
        neft.set_step(4)
        check_is(model(**given()), drawn(4, 0, 0))
        with torch.no_grad():
            model(**given())
        model.eval()
        model(**given())
        model.train()
        check_is(model(**given()), drawn(4, 0, 1))


def test_a_pass_that_fails_does_not_stop_the_next():
    model = Embedder(D)
    with attach_neft(model, CONFIG) as neft:
        neft.set_step(0)
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[10**6]]))
        assert model(**given()).abs().max() > 0


class Pair(nn.Module):
    """A module that embeds two texts in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.embed = nn.Embedding(32, D)
        nn.init.zeros_(self.embed.weight)

    def forward(self, query: Tensor, doc: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(query), self.embed(doc)


class NamedPair(Pair):
    """The first of which is the batch's ``input_ids``."""

    def forward(self, input_ids: Tensor, doc_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(input_ids), self.embed(doc_ids)


@pytest.mark.parametrize("kind", [Pair, NamedPair])
@pytest.mark.parametrize("width", [9, 13], ids=["as wide", "wider"])
def test_each_call_of_one_pass_has_its_own_noise(kind, width):
    """Of a further text, padding is what its ends say; nothing else is known of it."""
    model = kind()
    query = given()["input_ids"][:, :7]
    doc = torch.zeros(2, width, dtype=torch.int64)
    doc[0, :7], doc[1, 2:] = 5, 6
    config = NEFTConfig(alpha=5.0, distribution="rademacher", seed=3)
    with attach_neft(model, config, embedding="embed") as neft:
        for step in range(2):
            neft.set_step(step)
            first, second = model(query, doc)
            assert abs(correlation(first[0], second[0, :7])) < 0.15
            size = torch.zeros(2, width)
            size[0, :7], size[1, 2:] = 7**-0.5, (width - 2) ** -0.5
            expected = 5.0 / (3 * D) ** 0.5 * size.unsqueeze(-1).expand(second.shape)
            torch.testing.assert_close(second.abs(), expected)
            assert first[0].abs().min() > 0
            assert 0 < neft.metrics()["neft/noised_tokens"] <= 1


def test_a_further_call_of_the_same_tokens_is_of_the_same_documents():
    class Twice(Embedder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            return self.embed(input_ids), self.embed(input_ids)

    model = Twice(D)
    batch = given()
    batch["attention_mask"][0, 3:] = 0  # which the tokens themselves do not show
    with attach_neft(model, CONFIG) as neft:
        neft.set_step(2)
        for call, noise in enumerate(model(**batch)):
            draw = drawn(2, 0, 0, call)[0, :3] * 5.0 / (3 * D) ** 0.5
            torch.testing.assert_close(noise[0, :3], draw)
            assert not noise[0, 3:].any()


def test_a_further_call_of_other_tokens_has_no_response():
    model = NamedPair()
    with attach_neft(model, NEFTConfig(alpha=5.0, tokens="response"), embedding="embed") as neft:
        neft.set_step(0)
        neft.set_batch(labels=torch.full((2, 9), 1))
        ids = given()["input_ids"]
        first, second = model(ids, ids + 1)
    assert first.abs().max() > 0
    assert not second.any()


class Encoder(nn.Module):
    """An untrained sentence encoder, of mean pooling and cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.embed = nn.Embedding(200, D)
        nn.init.normal_(self.embed.weight, std=0.02)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor) -> Tensor:
        return nn.functional.normalize(self.embed(input_ids).mean(1), dim=-1)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_noise_does_not_tell_a_contrastive_loss_its_pairs(alpha):
    """With one draw for both texts the loss of an untrained model fell from 2.1 to 0."""
    model = Encoder()
    anchor, positive = torch.randint(1, 200, (2, 8, 12)).unbind()

    def loss() -> float:
        scores = 20 * model(anchor) @ model(positive).T
        return float(nn.functional.cross_entropy(scores, torch.arange(8)))

    clean = loss()
    with attach_neft(model, NEFTConfig(alpha=alpha)) as neft:
        losses = []
        for step in range(10):
            neft.set_step(step)
            losses.append(loss())
    assert sum(losses) / 10 > 0.75 * clean


def test_passes_of_a_wrapper_that_names_no_tokens_are_passes_of_their_own():
    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Embedder(D)

        def forward(self, anchor: dict, positive: dict) -> tuple[Tensor, Tensor]:
            return self.inner(**anchor), self.inner(**positive)

    model = Contrast()
    with attach_neft(model, CONFIG, embedding="inner.embed") as neft:
        for step in range(2):
            neft.set_step(step)
            for pass_index, noise in enumerate(model(given(), given())):
                check_is(noise, drawn(step, 0, pass_index))


def test_what_a_wrapper_is_told_holds_for_the_model_within():
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Embedder(D)

        def forward(self, texts: Tensor, labels: Tensor) -> Tensor:
            return self.inner(input_ids=texts)

    model, labels = Labelled(), torch.full((2, 9), -100)
    labels[:, 4:6] = 1
    config = NEFTConfig(alpha=5.0, tokens="response")
    with attach_neft(model, config, embedding="inner.embed") as neft:
        neft.set_step(0)
        noise = model(given()["input_ids"], labels)
    assert torch.equal(noise.abs().amax(-1) > 0, labels != -100)


@pytest.mark.parametrize("document_first", [False, True])
def test_each_text_of_a_pair_has_the_mask_that_its_encoder_is_given(document_first):
    """Whatever the pair's own module calls them, and where no padding token is known."""

    class BiEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Embedder(D)
            self.encoder.config = None

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, doc_ids: Tensor, doc_mask: Tensor
        ) -> list[Tensor]:
            texts = [(input_ids, attention_mask), (doc_ids, doc_mask)]
            found = [
                self.encoder(input_ids=ids, attention_mask=mask)
                for ids, mask in (reversed(texts) if document_first else texts)
            ]
            return found[::-1] if document_first else found

    model, batch = BiEncoder(), given()
    doc_mask = torch.ones(2, 12, dtype=torch.int64)
    doc_mask[:, 6:] = 0
    config = NEFTConfig(alpha=5.0, distribution="rademacher")
    with attach_neft(model, config, embedding="encoder.embed") as neft:
        neft.set_step(0)
        query, doc = model(*batch.values(), torch.full((2, 12), 4), doc_mask)
    for noise, lengths in ((query, [7, 4]), (doc, [6, 6])):
        for row, length in zip(noise, lengths, strict=True):
            size = torch.full_like(row[:length], 5.0 / (3 * length * D) ** 0.5)
            torch.testing.assert_close(row[:length].abs(), size)
            assert not row[length:].any()


def test_after_another_text_the_embedding_has_the_pass_around_it_again():
    class Compared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Embedder(D)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, other: Tensor) -> Tensor:
            self.encoder(input_ids=other, attention_mask=torch.ones_like(other))
            return self.encoder.embed(input_ids)

    model, batch = Compared(), given()
    with attach_neft(model, NEFTConfig(5.0, "rademacher"), embedding="encoder.embed") as neft:
        neft.set_step(0)
        noise = model(*batch.values(), torch.full((2, 12), 4))
    for row, length in zip(noise, [7, 4], strict=True):
        size = torch.full_like(row[:length], 5.0 / (3 * length * D) ** 0.5)
        torch.testing.assert_close(row[:length].abs(), size)
        assert not row[length:].any()


def test_sums_are_over_all_passes():
    model = Embedder(D, zero=False)
    with attach_neft(model, NEFTConfig(alpha=5.0, distribution="rademacher")) as neft:
        neft.set_step(0)
        model(**given())
        model(input_ids=torch.ones(1, 25, dtype=torch.int64))
        energy = (2 * 25 / 3 + 25 / 3) / D  # 25 / (3 L D) a coordinate, of L tokens each
        rms = (energy / (11 + 25)) ** 0.5
        assert neft.metrics()["neft/noise_rms"] == pytest.approx(rms, rel=1e-5)


# A plain loop that forgets to say which step it is


def train(model: nn.Module, steps: int, before_step=None, passes: int = 1) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        if before_step is not None:
            before_step(step)
        sum(model(**given()).square().mean() for _ in range(passes)).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_loop_that_never_sets_the_step_is_warned_of_once():
    model = Embedder(D, zero=False)
    with pytest.warns(NEFTWarning, match="`set_step` was never called: alpha stays 5") as told:
        with attach_neft(model, NEFTConfig(alpha=5.0, schedule="linear"), total_steps=5):
            train(model, 4)
    assert len(told) == 1


def test_two_passes_without_any_step_are_warned_of():
    model = Embedder(D)
    with attach_neft(model, CONFIG):
        model(**given())
        with pytest.warns(NEFTWarning, match="`set_step` was never called"):
            model(**given())


def test_a_loop_that_sets_the_step_once_is_warned_of():
    model = Embedder(D, zero=False)
    with attach_neft(model, CONFIG) as neft:
        neft.set_step(0, 1)
        message = r"pass since `set_step\(0, 1\)`, and the weights have changed: alpha stays 5"
        with pytest.warns(NEFTWarning, match=message):
            train(model, 2)


@pytest.mark.parametrize("passes", [1, 3])
def test_a_loop_that_sets_every_step_is_not_warned_of(passes):
    model = Embedder(D, zero=False)
    with attach_neft(model, CONFIG) as neft:
        train(model, 3, neft.set_step, passes)


# Compiled


@pytest.mark.slow
@pytest.mark.usefixtures("no_recompilation")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_second_pass_of_a_compiled_graph_draws_anew(backend):
    model = Embedder(D)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with attach_neft(model, CONFIG) as neft:
        for step in range(3):
            neft.set_step(step)
            for pass_index in range(3):
                check_is(compiled(**given()), drawn(step, 0, pass_index))
            metrics = neft.metrics()
            assert metrics["neft/noised_tokens"] == 1.0
            assert metrics["neft/noise_rms"] == pytest.approx(
                5.0 / (3 * 11 / 2 * D) ** 0.5, rel=0.1
            )


@pytest.mark.usefixtures("no_recompilation")
def test_each_call_of_a_compiled_graph_has_its_own_noise():
    model = Pair()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    ids = given()["input_ids"]
    with attach_neft(model, CONFIG, embedding="embed") as neft:
        for step in range(2):
            neft.set_step(step)
            noises = compiled(ids, ids)
            neft.set_step(step)
            torch.testing.assert_close(noises, model(ids, ids))
            assert abs(correlation(*noises)) < 0.15


@pytest.mark.usefixtures("no_recompilation")
def test_a_compiled_loop_that_never_sets_the_step_is_warned_of():
    model = Embedder(D, zero=False)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.warns(NEFTWarning, match="`set_step` was never called"):
        with attach_neft(model, CONFIG):
            train(compiled, 3)


def test_what_is_counted_stays_on_the_cpu_whatever_the_default_device():
    model = Embedder(D)
    with attach_neft(model, CONFIG) as neft:
        with torch.device("meta"):
            neft.set_step(0)
        check_is(model(**given()), drawn(0, 0, 0))


@pytest.mark.usefixtures("no_recompilation")
def test_a_compiled_pass_and_eager_ones_of_one_micro_batch():
    model = Embedder(D)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with attach_neft(model, CONFIG) as neft:
        for step in range(2):
            neft.set_step(step)
            check_is(compiled(**given()), drawn(step, 0, 0))
            check_is(model(**given()), drawn(step, 0, 1))
            check_is(model(**given()), drawn(step, 0, 2))
