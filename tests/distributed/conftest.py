"""Data for Axolotl's runs on several ranks."""

from typing import Any

import pytest
from axolotl_engines import write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Any]:
    return write_data(tmp_path_factory.mktemp("data"))
