"""Every byte of the files of a small run damaged in turn: it is noticed every time, and no wrong number is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flipped
from saves import Alone, save_now

from parse_mpi.errors import StorageError
from parse_mpi.storage.checkpoint import load_newest, open_checkpoint
from parse_mpi.storage.metrics import read_metrics, write_segment, write_table
from parse_mpi.storage.shard import AgentArray

NAME, AGENTS = "slices/encoder[top]/parameters", np.arange(3)
NEWEST = "checkpoints/round-000002"


def rows(round_index: int) -> Any:
    return np.random.default_rng(round_index).normal(size=(len(AGENTS), 40))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    write_table(tmp_path, "plan", {"agents/id": AGENTS}, {"agents": {"kind": ["top"]}})
    for r in (1, 2):
        write_segment(tmp_path, r, r, {"rounds/round": np.array([r])}, {"rounds/round": {"dimensions": ["round"]}})
        save_now(Alone(), tmp_path, r, [AgentArray(NAME, AGENTS, rows(r))], {"round": r}, keep=2)
    return tmp_path


def require_fallback(run_dir: Path) -> None:
    """The damaged checkpoint is rejected, and the one before loads with the right numbers."""
    checkpoint, rejections = load_newest(run_dir)
    assert [rejection.path.name for rejection in rejections] == ["round-000002"]
    assert checkpoint is not None
    assert checkpoint.round_index == 1
    np.testing.assert_array_equal(checkpoint.read(NAME, AGENTS), rows(1))


def require_refusal(run_dir: Path) -> None:
    with pytest.raises(StorageError):
        read_metrics(run_dir)


def test_every_flipped_byte_of_a_shard_is_noticed(run_dir: Path) -> None:
    shard = run_dir / NEWEST / "shard-0000.h5"
    for _ in flipped(shard, bits=[0]):
        with pytest.raises(StorageError, match="was damaged"):
            open_checkpoint(run_dir, 2).verify()
    open_checkpoint(run_dir, 2).verify()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "check"),
    [
        (f"{NEWEST}/shard-0000.h5", require_fallback),
        (f"{NEWEST}/manifest.json", require_fallback),
        ("metrics/round-000002.h5", require_refusal),
        ("metrics/table-plan.h5", require_refusal),
    ],
)
def test_every_flipped_bit_of_a_file_is_noticed(run_dir: Path, name: str, check: Callable[[Path], None]) -> None:
    for _ in flipped(run_dir / name, range(8)):
        check(run_dir)
    print(f"\n{name}: {8 * (run_dir / name).stat().st_size} bits flipped in turn, each noticed")
    assert load_newest(run_dir)[1] == []
    assert read_metrics(run_dir)["rounds/round"].tolist() == [1, 2]
