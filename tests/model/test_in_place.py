"""The noise is written into a lookup that nobody else has, and never into what someone keeps."""

import itertools
import types

import pytest
import torch
from helpers import tiny_llama
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from neft_plugins import NEFTConfig, attach_neft
from neft_plugins.model.embeddings import gives_fresh_output

CONFIG = NEFTConfig(alpha=5.0, seed=3)
D = 32
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 3, 0]])


class Own(nn.Embedding):
    """Of somebody's own, so what it returns may be kept."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


class Keeper(nn.Embedding):
    """Returns the same tensor again and again."""

    def forward(self, input: Tensor) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept = super().forward(input)
        return self.kept


class Model(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embed = embedding

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embed(input_ids)


def outputs_of(embedding: nn.Module) -> tuple[Tensor, Tensor]:
    """What an embedding gave to the hooks, and what came out of them; two noisy passes."""
    model = Model(embedding)
    given = []
    with attach_neft(model, CONFIG, embedding="embed") as neft:
        # Between the embedding and the noise, by a hook that keeps what it sees.
        handle = embedding.register_forward_hook(lambda _, args, output: given.append(output))
        embedding._forward_hooks.move_to_end(handle.id, last=False)
        neft.set_step(0)
        model(IDS)
        out = model(IDS)
    handle.remove()
    return given[-1], out


def weights() -> Tensor:
    return torch.randn(16, D, generator=torch.Generator().manual_seed(0))


def scaled(cls: type[nn.Embedding]) -> nn.Embedding:
    return cls(16, D, padding_idx=0, embed_scale=3.0)


LOOKUPS = {
    "torch": lambda: nn.Embedding(16, D),
    "Gemma": lambda: scaled(Gemma3TextScaledWordEmbedding),
    "BART": lambda: scaled(BartScaledWordEmbedding),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_the_noise_is_written_into_a_lookup(name):
    given, out = outputs_of(LOOKUPS[name]())
    assert out is given


def test_not_into_what_a_module_of_ones_own_returns():
    given, out = outputs_of(Own(16, D))
    assert out.data_ptr() != given.data_ptr()
    keeper = Keeper(16, D)
    _, out = outputs_of(keeper)
    assert torch.equal(keeper.kept, keeper.weight[IDS])
    assert not torch.equal(out, keeper.kept)


def test_not_where_somebodys_hook_came_first():
    embedding, kept = nn.Embedding(16, D), []
    embedding.register_forward_hook(lambda module, args, output: kept.append(output))
    outputs_of(embedding)
    for each in kept:
        assert torch.equal(each, embedding.weight[IDS])


def test_a_hook_of_no_module_is_somebodys():
    embedding = nn.Embedding(16, D)
    embedding.register_forward_hook([].append)
    assert not gives_fresh_output(embedding)


def test_not_where_the_forward_was_replaced():
    embedding = nn.Embedding(16, D)
    embedding.forward = types.MethodType(
        lambda self, ids: nn.Embedding.forward(self, ids), embedding
    )
    given, out = outputs_of(embedding)
    assert out.data_ptr() != given.data_ptr()


def test_not_into_a_transposed_output():
    model = Model(nn.Embedding(16, D))
    model.embed.register_forward_hook(_transposed)
    _transposed.__module__ = "torch.somewhere"  # a host's, so that the hook does not forbid it
    with attach_neft(model, NEFTConfig(alpha=5.0, seed=3, length="row"), embedding="embed"):
        out = model(IDS)
    assert out.shape == (4, 2, D)
    assert not torch.equal(out, model.embed.weight[IDS].transpose(0, 1))


def _transposed(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output.transpose(0, 1)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("distribution", ["uniform", "gaussian", "rademacher"])
def test_the_noise_and_the_gradients_are_the_same_either_way(distribution, scale):
    config = NEFTConfig(alpha=0.5, seed=3, distribution=distribution, scale=scale)
    found = []
    for embedding in (nn.Embedding(16, D), Own(16, D)):
        embedding.weight.data.copy_(weights())
        model = Model(embedding)
        with attach_neft(model, config, embedding="embed") as neft:
            neft.set_step(0)
            out = model(IDS)
            out.square().sum().backward()
            found.append((out.detach(), embedding.weight.grad, neft.metrics()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]
    # The gradient is that at the noisy embeddings, passed to the rows of the lookup.
    by_rows = torch.zeros(16, D).index_add_(0, IDS.flatten(), 2 * found[0][0].view(-1, D))
    torch.testing.assert_close(found[0][1], by_rows)


@pytest.mark.parametrize("embedding", [nn.Embedding, Own])
def test_the_leaf_of_a_frozen_embedding_stays_a_leaf(embedding):
    """PEFT's `enable_input_require_grads` makes it one, before the noise or after."""
    for first in (True, False):
        model = tiny_llama(hidden_size=D)
        model.model.embed_tokens = embedding(64, D)
        model.requires_grad_(False)
        if first:
            model.enable_input_require_grads()
        with attach_neft(model, CONFIG):
            if not first:
                model.enable_input_require_grads()
            outputs = []
            model.model.embed_tokens.register_forward_hook(
                lambda module, args, output, outputs=outputs: outputs.append(output)
            )
            model(input_ids=IDS, labels=IDS).loss.backward()
        (output,) = outputs
        assert output.requires_grad
        if embedding is nn.Embedding or not first:
            assert output.is_leaf
            assert output.grad is not None
        assert not torch.equal(output, model.model.embed_tokens.weight[IDS])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_around_the_lookup_has_the_same_gradients(use_reentrant):
    found = []
    for checkpointed in (False, True):
        embedding = nn.Embedding(16, D)
        embedding.weight.data.copy_(weights())
        model = Model(embedding)
        anchor = torch.ones((), requires_grad=True)
        with attach_neft(model, CONFIG, embedding="embed") as neft:
            neft.set_step(0)

            def run(anchor: Tensor, model: nn.Module = model) -> Tensor:
                return (model(IDS) * anchor).square()

            if checkpointed:
                run(anchor) if use_reentrant else None  # its own first pass has no noise
                neft.set_step(0)
                out = checkpoint(run, anchor, use_reentrant=use_reentrant)
            else:
                out = run(anchor)
            out.sum().backward()
        found.append(embedding.weight.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("embedding", "dtype", "most"),
    [
        (nn.Embedding, torch.float32, 0.05),
        (nn.Embedding, torch.bfloat16, 0.05),
        (Own, torch.float32, 1.05),
        (Own, torch.bfloat16, 1.05),
    ],
)
def test_no_float32_copy_is_held(embedding, dtype, most):
    """The most bytes that a noisy lookup takes beyond the plain one's, over those of its output."""
    model = Model(embedding(16, 2048, dtype=dtype))
    ids = torch.randint(0, 16, (4, 2048))
    size = ids.numel() * 2048 * dtype.itemsize

    def most_bytes() -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            model(ids)
        events = profile.profiler.kineto_results.events()
        changes = [event.nbytes() for event in events if event.name() == "[memory]"]
        return max(itertools.accumulate(changes))

    plain = most_bytes()
    assert plain == pytest.approx(size, rel=0.01)
    with attach_neft(model, NEFTConfig(alpha=50.0, seed=3), embedding="embed") as neft:
        neft.set_step(0)
        assert (most_bytes() - plain) / size < most
