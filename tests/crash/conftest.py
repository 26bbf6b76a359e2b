"""What the tests of this folder share: a small file system of their own, to be filled up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes an empty file system of so many MiB, in memory, which is gone after the test."""
    path = tmp_path / "small"

    def make(size_mib: int) -> Path:
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(path)]
        try:
            mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a small file system needs root")
        return path

    yield make
    if path.is_mount():
        subprocess.run(["umount", str(path)], check=True)
