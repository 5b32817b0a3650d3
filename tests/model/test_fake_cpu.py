"""The hooks never ask a tensor for its value: on fake tensors, which have none."""

import pytest
from fake_passes import KINDS, OPTIONS, SCHEDULES, run
from reference import ENCODINGS


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_no_value_is_asked_for(encoding, options):
    assert len(run("cpu", encoding, options, backward=True)) == 3


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_nor_by_schedules(options):
    # In the first step of the warm-up alpha is 0, and nothing is drawn.
    assert len(run("cpu", "padded right", options, backward=True)) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_nor_by_other_models(encoding, kind):
    draws = run("cpu", encoding, {"tokens": "response"}, kind, backward=True)
    assert len(draws) == 3 * (2 if kind == "twice" else 1)
