"""E' = E + m * g * alpha(t) / sqrt(L * D) * eps, against the slow reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ENCODINGS, Document, Embedder, EncodedBatch, expected_magnitudes, padded
from torch import nn

from neft_plugins import NEFTConfig, attach_neft

ALPHA = 5.0
SQRT3 = math.sqrt(3)
NOTHING_CHOSEN = pytest.mark.filterwarnings("ignore:No token got noise")
documents_strategy = st.lists(
    st.integers(1, 7).flatmap(
        lambda n: st.builds(Document, length=st.just(n), prompt=st.integers(0, n))
    ),
    min_size=1,
    max_size=5,
)


def noise_of(model: Embedder, batch, config: NEFTConfig) -> torch.Tensor:
    """What attaching adds to the embeddings, (B, T, D)."""
    clean = model(**batch.arguments)
    with attach_neft(model, config, total_steps=10):
        noisy = model(**batch.arguments)
    assert noisy.dtype == clean.dtype
    assert noisy.shape == clean.shape
    return (noisy - clean).detach()


@NOTHING_CHOSEN
@given(
    documents=documents_strategy,
    encoding=st.sampled_from(sorted(ENCODINGS)),
    tokens=st.sampled_from(["all", "response", "prompt"]),
    length=st.sampled_from(["sequence", "noised"]),
    hidden_size=st.integers(1, 9),
)
@settings(max_examples=300, deadline=None)
def test_every_coordinate_has_the_magnitude_of_the_reference(
    documents, encoding, tokens, length, hidden_size
):
    # A packed document of one padding token is padding by definition, and the reference has none.
    batch = ENCODINGS[encoding](documents)
    config = NEFTConfig(alpha=ALPHA, distribution="rademacher", tokens=tokens, length=length)
    noise = noise_of(Embedder(hidden_size), batch, config)
    expected = expected_magnitudes(
        batch, documents, hidden_size, alpha=ALPHA, tokens=tokens, length=length
    )
    # |eps| is 1/sqrt(3) in every coordinate, so no statistics are needed.
    wanted = (expected / SQRT3).unsqueeze(-1).expand(noise.shape)
    torch.testing.assert_close(noise.abs().double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distribution", ["uniform", "gaussian", "rademacher"])
def test_noise_is_computed_in_float32_and_rounded_once(dtype, distribution):
    batch = padded([Document(5), Document(3)])
    config = NEFTConfig(alpha=ALPHA, distribution=distribution)
    exact = noise_of(Embedder(16), batch, config)
    rounded = noise_of(Embedder(16, dtype=dtype), batch, config)
    assert torch.equal(rounded, exact.to(dtype))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_a_document_gets_the_same_scale_alone_padded_or_packed(encoding):
    alone = Document(4)
    company = [Document(7), alone, Document(2)]
    batch = ENCODINGS[encoding](company)
    config = NEFTConfig(alpha=ALPHA, distribution="rademacher")
    noise = noise_of(Embedder(8), batch, config)
    by_itself = noise_of(Embedder(8), padded([alone], extra=0), config)
    for row, column, number, _ in batch.places:
        if number == 1:
            assert torch.equal(noise[row, column].abs(), by_itself[0, 0].abs())


@pytest.mark.parametrize("tokens", ["all", "prompt", "response"])
def test_row_scales_by_the_width_and_noises_padding(tokens):
    documents = [Document(5, 2), Document(3, 1)]
    batch = padded(documents)
    config = NEFTConfig(alpha=ALPHA, distribution="rademacher", length="row", tokens=tokens)
    noise = noise_of(Embedder(8), batch, config)
    width = batch.arguments["input_ids"].shape[1]
    trained = batch.arguments["labels"] != -100
    noised = {"all": torch.ones_like(trained), "response": trained, "prompt": ~trained}[tokens]
    expected = noised * (ALPHA / math.sqrt(width * 8) / SQRT3)
    torch.testing.assert_close(noise.abs(), expected.unsqueeze(-1).expand(noise.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.02, 0.2])
def test_relative_scale_makes_alpha_the_noise_to_signal_ratio(dtype, alpha):
    batch = padded([Document(5), Document(3)])
    model = Embedder(64, dtype=dtype, zero=False)
    config = NEFTConfig(alpha=alpha, distribution="rademacher", scale="relative")
    with attach_neft(model, config) as neft:
        noisy = model(**batch.arguments).float()
        metrics = neft.metrics()
    clean = model(**batch.arguments).float()
    rms = clean.square().mean(-1).sqrt()
    real = batch.arguments["attention_mask"].bool()
    assert torch.equal(noisy[~real], clean[~real])
    assert metrics["neft/noise_to_signal"] == pytest.approx(alpha, rel=1e-3)
    resolution = torch.finfo(dtype).eps
    ratio = (noisy - clean).square().mean(-1).sqrt()[real] / rms[real]
    assert ratio.tolist() == pytest.approx([alpha] * len(ratio), rel=1e-4 + 20 * resolution)


def test_a_hole_in_the_mask_does_not_split_a_document():
    batch = padded([Document(6)], extra=0)
    batch.arguments["attention_mask"][0, 2] = 0
    noise = noise_of(Embedder(8), batch, NEFTConfig(alpha=ALPHA, distribution="rademacher"))
    expected = ALPHA / math.sqrt(5 * 8) / SQRT3
    assert noise[0, 2].abs().max() == 0
    assert noise[0, [0, 1, 3, 4, 5]].abs().flatten().tolist() == pytest.approx([expected] * 40)


def test_without_any_mask_every_token_of_a_row_is_real():
    batch = padded([Document(5), Document(3)])
    del batch.arguments["attention_mask"]
    noise = noise_of(Embedder(8), batch, NEFTConfig(alpha=ALPHA, distribution="rademacher"))
    width = batch.arguments["input_ids"].shape[1]
    torch.testing.assert_close(
        noise.abs(), torch.full_like(noise, ALPHA / math.sqrt(width * 8) / SQRT3)
    )


@NOTHING_CHOSEN
@pytest.mark.parametrize("tokens", ["response", "prompt"])
def test_a_batch_without_a_chosen_token_is_left_alone(tokens):
    batch = padded([Document(4, 4 if tokens == "response" else 0)])
    model = Embedder(8)
    with attach_neft(model, NEFTConfig(alpha=ALPHA, tokens=tokens, length="noised")) as neft:
        assert model(**batch.arguments).abs().max() == 0
        assert neft.metrics()["neft/noised_tokens"] == 0


def test_packed_positions_of_text_beside_those_of_images():
    """Packed Qwen2-VL: the first of its four are the text's, the others number patches."""
    text = torch.tensor([[0, 1, 2, 3, 0, 1]])
    batch = EncodedBatch(
        {
            "input_ids": torch.full((1, 6), 5),
            "position_ids": torch.stack([text, *torch.zeros(3, 1, 6, dtype=torch.int64)]),
        },
        [],
    )
    noise = noise_of(Embedder(8), batch, NEFTConfig(alpha=ALPHA, distribution="rademacher"))
    for part, length in ((slice(0, 4), 4), (slice(4, 6), 2)):
        expected = torch.full((1, length, 8), ALPHA / math.sqrt(length * 8) / SQRT3)
        torch.testing.assert_close(noise[:, part].abs(), expected)


def test_an_all_masked_row_gets_no_noise():
    batch = padded([Document(4), Document(4)])
    batch.arguments["attention_mask"][1] = 0
    noise = noise_of(Embedder(8), batch, NEFTConfig(alpha=ALPHA))
    assert noise[1].abs().max() == 0
    assert noise[0, :4].abs().min() > 0


def test_gradients_pass_unchanged():
    batch = padded([Document(5), Document(3)])
    model = Embedder(8, zero=False)
    weights = torch.randn(2, 7, 8)
    grads = []
    for config in (None, NEFTConfig(alpha=ALPHA), NEFTConfig(alpha=0.1, scale="relative")):
        model.zero_grad()
        if config is None:
            (model(**batch.arguments) * weights).sum().backward()
        else:
            with attach_neft(model, config):
                (model(**batch.arguments) * weights).sum().backward()
        grads.append(model.embed.weight.grad.clone())
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


class ScaledEmbedding(nn.Embedding):
    """As Gemma (a buffer) and BART (a float) do."""

    def __init__(self, factor):
        super().__init__(32, 8)
        self.embed_scale = factor

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


@pytest.mark.parametrize("factor", [8.0, torch.tensor(8.0)])
def test_noise_is_scaled_with_the_lookup_of_a_scaled_embedding(factor):
    batch = padded([Document(5)], extra=0)
    model = Embedder(8)
    model.embed = ScaledEmbedding(factor)
    nn.init.zeros_(model.embed.weight)
    noise = noise_of(model, batch, NEFTConfig(alpha=ALPHA, distribution="rademacher"))
    expected = 8.0 * ALPHA / math.sqrt(5 * 8) / SQRT3
    torch.testing.assert_close(noise.abs(), torch.full_like(noise, expected))


def stats_of(embedding: nn.Module, **options) -> dict[str, float]:
    """Rademacher noise, whose energy is the same in every draw."""
    batch = padded([Document(5)], extra=0)
    model = Embedder(8)
    model.embed = embedding
    config = NEFTConfig(distribution="rademacher", **options)
    with attach_neft(model, config) as neft:
        model(**batch.arguments)
        return neft.metrics()


def test_the_factor_is_rounded_as_the_module_rounds_it():
    factor = torch.tensor(3.01)  # 3.015625 in bfloat16
    stats = stats_of(ScaledEmbedding(factor).to(torch.bfloat16), alpha=ALPHA)
    expected = factor.bfloat16().item() * ALPHA / math.sqrt(5 * 8) / SQRT3
    assert stats["neft/noise_rms"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_relative_scale_is_of_the_scaled_lookup(factor):
    stats = stats_of(ScaledEmbedding(factor), alpha=0.1, scale="relative")
    assert stats["neft/noise_to_signal"] == pytest.approx(0.1, rel=1e-6)


def test_a_schedule_reaches_the_noise():
    batch = padded([Document(5)], extra=0)
    model = Embedder(8)
    config = NEFTConfig(alpha=ALPHA, distribution="rademacher", schedule="linear", warmup_steps=2)
    sizes = []
    with attach_neft(model, config, total_steps=6) as neft:
        for step in range(7):
            neft.set_step(step)
            sizes.append(model(**batch.arguments).abs().mean().item())
    full = ALPHA / math.sqrt(5 * 8) / SQRT3
    assert sizes == pytest.approx([f * full for f in (0, 0.5, 1, 0.75, 0.5, 0.25, 0)], rel=1e-6)


def test_mask_shapes_that_say_nothing_of_documents_are_refused():
    model = Embedder(8)
    ids = torch.ones(2, 5, dtype=torch.int64)
    with attach_neft(model, NEFTConfig(alpha=ALPHA)) as neft:
        neft.set_step(0)
        with pytest.raises(
            ValueError, match=r"must be a \(batch, tokens\) tensor; got shape \(2, 1"
        ):
            model(input_ids=ids, attention_mask=torch.ones(2, 1, 5, 5))
        with pytest.raises(ValueError, match="tensor; got dict"):
            model(input_ids=ids, attention_mask={"full": None})
        with pytest.raises(
            ValueError, match=r"has shape \(2, 4\) but the tokens have shape \(2, 5\)"
        ):
            model(input_ids=ids, attention_mask=torch.ones(2, 4))
    with attach_neft(model, NEFTConfig(alpha=ALPHA, length="row")):
        assert model(input_ids=ids, attention_mask=torch.ones(2, 1, 5, 5)).abs().min() > 0
