"""On fake CUDA tensors, which need torch's CUDA build but no GPU: one device, and no waiting."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from fake_passes import KINDS, OPTIONS, SCHEDULES, WaitsForTheDeviceError, run, watch, watched
from reference import ENCODINGS, Embedder
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from neft_plugins import NEFTConfig, attach_neft, registry
from neft_plugins.noise.drawing import blocks, operation

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="needs torch's CUDA build; see tox's environment fake-cuda"
)
GPU = torch.device("cuda", 0)
ON_THE_GPU = dict.fromkeys(("embeddings", "lengths", "alpha", "seed", "pass_index"), GPU)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_all_is_on_the_device_and_nothing_waits_for_it(encoding, options):
    draws = run("cuda:0", encoding, options)
    assert draws == [ON_THE_GPU] * 3


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_of_schedules_too(options):
    # In the first step of the warm-up alpha is 0, and nothing is drawn.
    assert run("cuda:0", "padded right", options) == [ON_THE_GPU]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_of_other_models_too(encoding, kind):
    draws = run("cuda:0", encoding, {"tokens": "response"}, kind)
    assert draws == [ON_THE_GPU] * 3 * (2 if kind == "twice" else 1)


def test_weights_that_are_moved_after_attaching_are_followed():
    batch = {"input_ids": torch.zeros(2, 8, dtype=torch.int64)}
    mode = FakeTensorMode()
    with mode:
        model = Embedder(16)
        neft = attach_neft(model, NEFTConfig(alpha=5.0), total_steps=4)
        model.embed.weight = torch.nn.Parameter(model.embed.weight.to(GPU))
        given = {key: mode.from_tensor(value).to(GPU) for key, value in batch.items()}
        model(**given)  # learns where the embeddings are, and moves what it had
        with watch() as watching:
            for step in (1, 2):
                neft.set_step(step)
                model(**given)
        assert neft._passes.sums.device == GPU
    assert watching.draws == [ON_THE_GPU] * 2


def theirs(shape, generator):
    return torch.zeros(shape, device=GPU)


@pytest.fixture
def third_party(monkeypatch):
    """A distribution of a third party, registered as `gaussian`, which a config may name."""
    load = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind, name: theirs if name == "gaussian" else load(kind, name)
    )
    operation.has_kernel.cache_clear()
    yield
    operation.has_kernel.cache_clear()


@pytest.mark.usefixtures("third_party")
def test_the_seed_of_a_distribution_without_a_kernel_is_on_the_cpu():
    draws = run("cuda:0", "padded right", {"distribution": "gaussian"})
    cpu = dict.fromkeys(("seed", "pass_index"), torch.device("cpu"))
    assert draws == [ON_THE_GPU | cpu] * 3


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_blocks_do_not_wait_either(in_place, relative, monkeypatch):
    monkeypatch.setattr(blocks, "DEVICE_BLOCK", 64)
    # A generator of a GPU that is not there cannot be made.
    generator = SimpleNamespace(manual_seed=lambda seed: None)
    with mock.patch.object(torch, "Generator", return_value=generator), watched():
        clean = torch.zeros(20, 16, device=GPU, dtype=torch.bfloat16)
        noisy = clean if in_place else torch.empty_like(clean)
        lengths = torch.ones(20, device=GPU, dtype=torch.int64)
        alpha = torch.zeros((), device=GPU)
        energies = blocks.add_noise(clean, noisy, lengths, alpha, 5, "gaussian", relative)
        assert energies.device == GPU


@pytest.mark.parametrize(
    "wait",
    [
        lambda value: value.item(),
        lambda value: bool(value),
        lambda value: value.tolist(),
        lambda value: value.cpu(),
        lambda value: value + torch.zeros(()),
        lambda value: torch.zeros(3).to(GPU),
    ],
    ids=["item", "bool", "tolist", "cpu", "mixed up", "moved"],
)
def test_what_waits_would_be_seen(wait):
    with watched():
        value = torch.zeros((), device=GPU)
        with pytest.raises((WaitsForTheDeviceError, DataDependentOutputException)):
            wait(value)
