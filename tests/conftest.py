"""What all tests share; that this file lies here also lets them import the helpers beside it."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

import pytest
from hypothesis import settings

HERE = Path(__file__).parent

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist one worker at a time starts ranks, which take both cores; others run unit tests meanwhile."""
    for item in items:
        if item.path.relative_to(HERE).parts[0] != "unit":
            item.add_marker(pytest.mark.xdist_group("launches"))
