"""torch.compile: one graph, never compiled again while alpha, seed and batch change."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_llama
from reference import ENCODINGS, Document, Embedder

from neft_plugins import NEFTConfig, _compat, attach_neft
from neft_plugins.model.hooks import NoNoiseError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_recompilation")]
one_layer = partial(tiny_llama, num_hidden_layers=1)  # more only take longer to compile
DOCUMENTS = [Document(7, 3), Document(4, 2)]
DECAY = {"alpha": 5.0, "schedule": "cosine", "warmup_steps": 2, "alpha_end": 0.0}


def losses(model, step_model, batch, config, steps=5) -> list[float]:
    """Losses of a few steps with backward passes; alpha is 0 at the first and the last."""
    made = []
    with attach_neft(model, config, total_steps=4) as neft:
        for step in range(steps):
            neft.set_step(step)
            loss = step_model(**batch).loss
            loss.backward()
            made.append(loss.item())
            assert neft.metrics()["neft/alpha"] == pytest.approx(neft.alpha)
    return made


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": "response"},
        {"length": "noised", "tokens": "prompt", "distribution": "gaussian"},
        {"length": "row", "distribution": "rademacher"},
        {"scale": "relative", "alpha": 0.5},
    ],
)
def test_one_graph_and_the_same_losses_as_eager(options):
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    model = one_layer()
    config = NEFTConfig(**DECAY | options)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with_compile = losses(model, compiled, batch, config)
    torch.compiler.reset()
    assert with_compile == pytest.approx(losses(model, model, batch, config), rel=1e-5)
    assert len(set(with_compile)) > 3


@pytest.mark.parametrize("kind", ["symmetric", "independent"])
def test_pairs_and_clean_special_tokens(kind):
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    batch = {key: torch.cat([value, value]) for key, value in batch.items()}
    model = one_layer()
    tokenizer = SimpleNamespace(pad_token_id=0, all_special_ids=[0, 4, 7])
    config = NEFTConfig(5.0, tokens=["response", "no_special"], pairs=kind)
    made = []
    for run in (torch.compile(model, backend="aot_eager", fullgraph=True), model):
        with attach_neft(model, config, tokenizer=tokenizer) as neft:
            for step in range(3):
                neft.set_step(step)
                made.append(run(**batch).loss.item())
        torch.compiler.reset()
    assert made[:3] == pytest.approx(made[3:], rel=1e-5)
    assert len(set(made[:3])) == 3


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_way_to_write_documents_traces(encoding):
    batch = ENCODINGS[encoding](DOCUMENTS).arguments
    model = Embedder(16)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with attach_neft(model, NEFTConfig(alpha=5.0, tokens="response")) as neft:
        for step in range(3):
            neft.set_step(step)
            noise = compiled(**batch)
            neft.set_step(step)
            assert torch.equal(noise, model(**batch))


@pytest.mark.parametrize(
    ("make", "encoding"),
    [(one_layer, "padded right"), *((partial(Embedder, 16), each) for each in sorted(ENCODINGS))],
    ids=["llama-padded right", *sorted(ENCODINGS)],
)
def test_batches_of_every_width_share_one_dynamic_graph(make, encoding):
    model = make()
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    with attach_neft(model, NEFTConfig(alpha=5.0, tokens="response")) as neft:
        for step in range(6):
            documents = [Document(7 + step, 3), Document(4 + 2 * step, 2), Document(5, 1)]
            batch = ENCODINGS[encoding](documents).arguments
            neft.set_step(step)
            output = compiled(**batch)
            neft.set_step(step)
            expected = model(**batch)
            if make is one_layer:
                output, expected = output.loss, expected.loss
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-6)


def test_another_model_with_noise_compiles_nothing_anew():
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    model, other = Embedder(16), Embedder(8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with attach_neft(model, NEFTConfig(alpha=5.0)) as neft:
        alone = compiled(**batch)
        with attach_neft(other, NEFTConfig(alpha=1.0)):
            other(**batch)
            neft.set_step(0)
            assert torch.equal(compiled(**batch), alone)
        neft.set_step(0)
        assert torch.equal(compiled(**batch), alone)


def test_inductor():
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    model = one_layer()
    config = NEFTConfig(**DECAY, tokens="response")
    compiled = torch.compile(model, fullgraph=True)
    with_compile = losses(model, compiled, batch, config)
    assert with_compile == pytest.approx(losses(model, model, batch, config), rel=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_sums_stay_where_they_are(monkeypatch, backend):
    """On a CUDA device they are marked as not moving, which a CUDA graph that writes to them needs.

    Marked so here too: a graph that took them to have moved would be compiled again.
    """
    monkeypatch.setattr(_compat, "with_fixed_address", fixed)
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    model = one_layer()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with attach_neft(model, NEFTConfig(alpha=5.0, distribution="rademacher")) as neft:
        places, logged = set(), []
        for step in range(6):
            neft.set_step(step)
            compiled(**batch).loss.backward()
            places.add(neft._passes.sums.data_ptr())
            if step % 2:
                logged.append(neft.metrics())
    assert len(places) == 1
    assert logged[0]["neft/noise_rms"] > 0
    for each in logged[1:]:  # of rademacher, every draw has the same energy
        assert each == pytest.approx(logged[0])


def fixed(tensor: torch.Tensor) -> torch.Tensor:
    torch._dynamo.mark_static_address(tensor)
    return tensor


@pytest.mark.gpu
def test_cuda_graphs_draw_anew_at_each_replay():
    batch = {k: v.cuda() for k, v in ENCODINGS["padded right"](DOCUMENTS).arguments.items()}
    model = one_layer().cuda()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    with attach_neft(model, NEFTConfig(alpha=5.0)) as neft:
        made = []
        for step in range(8):  # the first are warm-ups, without a graph
            neft.set_step(step)
            loss = compiled(**batch).loss
            loss.backward()
            made.append(loss.item())
            neft.set_step(step)
            assert made[-1] == pytest.approx(model(**batch).loss.item(), rel=1e-3)
            assert neft.metrics()["neft/noised_tokens"] == 1
    assert len(set(made)) == len(made)


def test_attaching_to_the_compiled_model_and_to_its_inside_are_the_same():
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    model = one_layer()
    compiled = torch.compile(model, backend="aot_eager")
    with attach_neft(compiled, NEFTConfig(alpha=5.0)) as neft:
        first = compiled(**batch).loss
        neft.set_step(0)
        assert first.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


@torch._dynamo.config.patch(error_on_recompile=False)
def test_training_twice_with_one_compiled_model():
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    model = one_layer()
    compiled = torch.compile(model, backend="aot_eager")
    for alpha in (5.0, 10.0):
        config = NEFTConfig(**{**DECAY, "alpha": alpha})
        with_compile = losses(model, compiled, batch, config)
        assert with_compile == pytest.approx(losses(model, model, batch, config), rel=1e-5)
    assert compiled(**batch).loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-6)


@torch._dynamo.config.patch(error_on_recompile=False)
def test_a_graph_compiled_without_hooks_is_an_error_not_silence():
    # PyTorch does not guard on hooks that were not there (skip_nnmodule_hook_guards).
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    model = one_layer()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(**batch)
    with attach_neft(model, NEFTConfig(alpha=5.0)):
        with pytest.raises(NoNoiseError, match=r"`torch\.compiler\.reset\(\)`"):
            compiled(**batch)
    torch.compiler.reset()
    with attach_neft(model, NEFTConfig(alpha=5.0)):
        assert noisy(model, compiled, batch)


def noisy(model, compiled, batch) -> bool:
    with torch.no_grad():
        clean = model(**batch).loss.item()
    return compiled(**batch).loss.item() != pytest.approx(clean, rel=1e-4)


@torch._dynamo.config.patch(error_on_recompile=False)
@pytest.mark.parametrize("attached_first", [True, False])
def test_a_compiled_graph_is_clean_when_the_noise_is_removed(attached_first):
    batch = ENCODINGS["padded right"](DOCUMENTS).arguments
    model = Embedder(16)
    before = torch.compile(model, backend="aot_eager")
    with attach_neft(model, NEFTConfig(alpha=5.0)):
        compiled = torch.compile(model, backend="aot_eager") if attached_first else before
        assert compiled(**batch).abs().max() > 0
    assert not compiled(**batch).any()
