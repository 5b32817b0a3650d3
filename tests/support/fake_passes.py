"""Forward passes on fake tensors, which have a shape, a dtype and a device, but no values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from reference import ENCODINGS, Document, Embedder
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neft_plugins import NEFTConfig, attach_neft

DOCUMENTS = [Document(7, 3), Document(4, 2)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"distribution": "gaussian"},
    "rademacher": {"distribution": "rademacher"},
    "relative": {"scale": "relative", "alpha": 0.1},
    "row": {"length": "row"},
    "noised": {"length": "noised", "tokens": "response"},
    "response": {"tokens": "response"},
    "prompt": {"tokens": "prompt"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    **{
        name: {"schedule": name, "alpha_end": 1.0, "warmup_steps": 1}
        for name in ("linear", "cosine", "polynomial", "exponential")
    },
    "step": {"schedule": "step", "schedule_args": {"step_size": 1}, "warmup_steps": 0.1},
}


class WaitsForTheDeviceError(AssertionError):
    """What reads a value of the device's, or moves one from a device to another."""


class watch(TorchDispatchMode):  # noqa: N801, a context manager
    """An error where the fake tensors would not have one."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[dict[str, torch.device]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "neft_plugins":
            names = [argument.name for argument in func._schema.arguments]
            given = zip(names, args, strict=False)
            self.draws.append({k: v.device for k, v in given if isinstance(v, Tensor)})
            return out
        found = tree_leaves((args, kwargs, out))
        devices = {each.device for each in found if isinstance(each, Tensor)}
        if len(devices) > 1 or func is torch.ops.aten._local_scalar_dense.default:
            raise WaitsForTheDeviceError(f"{func} on {sorted(map(str, devices))}")
        return out


@contextmanager
def watched() -> Iterator[FakeTensorMode]:
    """Make fake tensors, and hear of what waits for the device."""
    with FakeTensorMode() as mode, watch():
        yield mode


class Scaled(nn.Embedding):
    """As Gemma does."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("embed_scale", torch.tensor(4.0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


class Twice(Embedder):
    """A model that embeds a second text too."""

    def forward(self, input_ids: Tensor, **arguments: Tensor) -> Tensor:
        return self.embed(input_ids) + self.embed(input_ids.flip(1))


def model_of(kind: str) -> Embedder:
    """Of the kinds ``KINDS``."""
    model = Twice(16) if kind == "twice" else Embedder(16)
    if kind == "scaled":
        model.embed = Scaled(32, 16)
    return model


KINDS = ("once", "scaled", "twice")


def run(
    device: str, encoding: str, options: dict[str, Any], kind: str = "once", backward: bool = False
) -> list[dict[str, torch.device]]:
    """Train for two micro-batches of one step, and one of the next.

    Args:
        device: Where everything is.
        encoding: Of ``reference.ENCODINGS``.
        options: Of ``NEFTConfig``.
        kind: Of model.
        backward: Whether to run the backward pass, which needs a device.

    Returns:
        Of each draw, on which device each argument of the operator was.

    Raises:
        WaitsForTheDeviceError: Where a value is read or moved.
    """
    batch = ENCODINGS[encoding](DOCUMENTS).arguments
    mode = FakeTensorMode()
    with mode:
        with torch.device(device):
            model = model_of(kind)
        given = {key: mode.from_tensor(value).to(device) for key, value in batch.items()}
        with watch() as watching:
            neft = attach_neft(model, NEFTConfig(**{"alpha": 5.0} | options), total_steps=4)
            for step, micro_step in ((0, 0), (0, 1), (1, 0)):
                neft.set_step(step, micro_step)
                noisy = model(**given)
                assert noisy.device == torch.device(device)
                assert noisy.shape == (*given["input_ids"].shape, 16)
                if backward:
                    noisy.sum().backward()
    # Not removed: that would read the sums of the noise, which is for logs alone.
    return watching.draws
