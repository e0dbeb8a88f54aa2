"""Programs that the runs of a file share; a file says which by `pytest.mark.usefixtures`."""

from __future__ import annotations

import pytest
from small import shared_programs
from stand_ins import in_place_of_programs


@pytest.fixture(scope="module")
def programs(quick_compilation):
    """Real ones, compiled once."""
    with shared_programs():
        yield


@pytest.fixture(scope="module")
def stand_in_programs(quick_compilation):
    """Ones that compute next to nothing."""
    with in_place_of_programs():
        yield
