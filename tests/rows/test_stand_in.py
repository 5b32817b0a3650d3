"""What a host does to the process while it prepares rows ends with the preparing."""

import gc
import logging
import os
from pathlib import Path

import pytest

from neft_plugins.rows.stand_in import stand_in_run


def state() -> tuple:
    from datasets.utils import logging as bars

    levels = [logging.getLogger(name).level for name in ("trl", "transformers")]
    return dict(os.environ), levels, bars.is_progress_bar_enabled(), gc.get_freeze_count() > 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_as_it_was(frozen, fails):
    gc.freeze() if frozen else gc.unfreeze()
    before = state()
    try:
        with stand_in_run() as folder:
            Path(folder, "prepared").write_text("rows")
            os.environ |= {"PATH": "another", "NEW": "1"}
            assert gc.get_freeze_count()
            assert logging.getLogger("trl").level == logging.CRITICAL
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert state() == before
    assert not Path(folder).exists()
    gc.freeze()  # as tests/conftest.py does
