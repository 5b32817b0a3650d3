"""Other hosts: what docs/other_hosts.md shows for each has the noise of a plain loop."""

import importlib.util
import signal

import pytest
import torch
from helpers import tiny_llama
from host_blocks import (
    FABRIC,
    HOSTS,
    LIGHTNING,
    after_each_step,
    make_batches,
    on_a_rank,
    places,
    plain_noise,
    run_block,
)
from ranks import run_on_ranks

NO_LIGHTNING = pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None, reason="needs lightning"
)
ALL = [
    pytest.param(host, marks=NO_LIGHTNING if host in (FABRIC, LIGHTNING) else ()) for host in HOSTS
]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    """Lightning writes logs and checkpoints where it is, and ignores Ctrl-C once it had one."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def count_of(host: str) -> int:
    """Batches of an epoch: with a last step of one micro-batch, where the block allows it."""
    return 4 if host == FABRIC else 5


@pytest.mark.parametrize("host", ALL)
def test_the_noise_is_that_of_a_plain_loop(host):
    rows, where = make_batches(count_of(host)), places(host, count_of(host))
    calls, left = run_block(host, rows)
    expected = plain_noise(calls, where, rows)
    for call, noise in zip(calls, expected, strict=True):
        torch.testing.assert_close(call.noise, noise, rtol=0, atol=2e-6)
    assert left == 0
    total_steps = where[-1][0] + 1
    for call, (step, _) in zip(calls, where, strict=True):
        whole_row = call.noise[1]  # 9 tokens, none of them padding
        bound = 5.0 * (1 - step / total_steps) / whole_row.numel() ** 0.5
        assert 0.95 * bound < whole_row.abs().max() <= bound + 1e-6


@pytest.mark.parametrize("host", ALL)
def test_an_evaluation_between_steps_is_clean_and_changes_no_noise(host):
    rows = make_batches(count_of(host))
    undisturbed, _ = run_block(host, rows)
    model = tiny_llama().eval()

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            model(**rows[0])
        model.train()

    with after_each_step(evaluate):
        calls, _ = run_block(host, rows, model=model)
    trained = [call for call in calls if call.training]
    clean = [call for call in calls if not call.training]
    assert clean
    assert not any(call.noisy for call in clean)
    for one, other in zip(trained, undisturbed, strict=True):
        torch.testing.assert_close(one.noise, other.noise, rtol=0, atol=2e-6)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("host", ALL)
def test_an_exception_leaves_no_hook(host, error):
    def fail() -> None:
        raise error("stop")

    ends = SystemExit if host == LIGHTNING and error is KeyboardInterrupt else error
    with after_each_step(fail), pytest.raises(ends) as caught:
        run_block(host, make_batches(4))
    assert "0 hooks are left" in caught.value.__notes__


@pytest.mark.slow
@pytest.mark.parametrize("host", ALL)
def test_two_ranks_have_the_noise_of_two_ranks_of_a_plain_loop(host, tmp_path):
    count = 8
    rows, where = make_batches(count), places(host, count // 2)
    without_deepspeed = {"DS_ACCELERATOR": ""}
    ranks = run_on_ranks(tmp_path, on_a_rank, host, count, environment=without_deepspeed)
    for rank, done in enumerate(ranks):
        expected = plain_noise(done["calls"], where, rows, rank, 2)
        for call, noise in zip(done["calls"], expected, strict=True):
            torch.testing.assert_close(call.noise, noise, rtol=0, atol=2e-6)
        assert done["left"] == 0
