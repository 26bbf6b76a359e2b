"""What tests of commands that launch share."""

import pytest
from compare_cases import in_process


@pytest.fixture
def started(monkeypatch):
    """The commands of all launches, which run inside this process."""
    return in_process(monkeypatch)
