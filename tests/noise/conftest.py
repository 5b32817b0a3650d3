"""Where the kernel runs: in Triton's interpreter on a CPU, or natively on a GPU."""

from collections.abc import Iterator

import pytest

DEVICES = [pytest.param("cpu", id="interpreter"), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def kernel_device(request: pytest.FixtureRequest) -> Iterator[str]:
    pytest.importorskip("triton")
    import interpreter

    if interpreter.is_on() != (request.param == "cpu"):
        pytest.skip("Triton's interpreter is on, or it is not: one process has either")
    with interpreter.like_a_gpu():
        yield request.param
