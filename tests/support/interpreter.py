"""Triton's interpreter, which runs kernels on a CPU, in numpy."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert_float = interpreter._convert_float


def is_on() -> bool:
    """Whether kernels run in it: so says ``TRITON_INTERPRET`` when Triton is imported."""
    from neft_plugins.noise.drawing import kernel

    return isinstance(kernel.noise_kernel, interpreter.InterpretedFunction)


@contextmanager
def like_a_gpu() -> Iterator[None]:
    """In what the interpreter does otherwise.

    It goes through the elements where a reduction has a function of its own, cuts bits off where
    float32 is to be bfloat16, and says that masked-out lanes divide by zero.
    """
    with (
        mock.patch.object(interpreter.ReduceOps, "generic_reduce", _by_halves),
        mock.patch.object(interpreter, "_convert_float", _round),
        np.errstate(divide="ignore", invalid="ignore"),
    ):
        yield


def _by_halves(reduction, values):
    """Along an axis whose length is a power of 2; as a GPU does it, within a warp."""
    dtypes = [value.dtype for value in values]
    arrays = [value.handle.data for value in values]
    while arrays[0].shape[reduction.axis] > 1:
        halves = [np.split(array, 2, axis=reduction.axis) for array in arrays]
        first, second = (
            [reduction.to_tensor(a, dtype) for a, dtype in zip(half, dtypes, strict=True)]
            for half in zip(*halves, strict=True)
        )
        arrays = [each.handle.data for each in reduction.combine_fn.fn(*first, *second)]
    return [
        reduction.to_tensor(array.squeeze(reduction.axis), dtype)
        for array, dtype in zip(arrays, dtypes, strict=True)
    ]


def _round(values, source, target, mode):
    """To the nearest bfloat16."""
    if (source, target) == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return rounded.view(torch.uint16).numpy()
    return _convert_float(values, source, target, mode)
