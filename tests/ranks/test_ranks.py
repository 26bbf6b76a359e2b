"""Runs every file ranks_*.py of this folder inside 1, 2, 3 and 4 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_tests import run_rank_tests

LIMIT_S = 300.0  # for all files; a test that hangs ends the launch much sooner

FILES = sorted(Path(__file__).parent.glob("ranks_*.py"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_inside_ranks(ranks: int, tmp_path: Path) -> None:
    """One launch runs all files; after a failure each file runs alone, to show whether it depends on the others."""
    together = run_rank_tests(FILES, ranks, tmp_path / "all", limit_s=LIMIT_S)
    if not together.passed:
        alone = {file.stem: run_rank_tests([file], ranks, tmp_path / file.stem).passed for file in FILES}
        pytest.fail(f"{together.text}\nEach file alone, passed: {alone}", pytrace=False)
