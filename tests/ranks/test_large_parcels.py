"""More than 2^31-1 bytes in a message of the exchange. Open MPI refuses such counts, but rows are counted whole."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from launch import run

PROGRAM = str(Path(__file__).with_name("large_parcels.py"))
NEEDED_BYTES = 6 << 30  # 2 GiB that arrive, and what a library may take on the way


@pytest.mark.soak
@pytest.mark.parametrize("via", ["neighbour", "p2p"])
@pytest.mark.parametrize(("rows", "row_bytes"), [(2100, (1 << 20) + 4), (1, (1 << 31) + 8)])
def test_more_than_two_gigabytes_arrive(tmp_path: Path, rows: int, row_bytes: int, via: str) -> None:
    if psutil.virtual_memory().available < NEEDED_BYTES:
        pytest.skip("this takes 6 GiB of memory that is free")
    command = [sys.executable, "-m", "mpi4py", PROGRAM, str(rows), str(row_bytes), via]
    outcome = run(2, command, tmp_path, limit_s=120.0)
    assert outcome.code == 0, outcome
    assert f"arrived {rows * row_bytes}" in outcome.logs[1]
