"""The view of a checkpoint: plain h5py sees in one file what all shards hold, wherever the directory lies."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.manifest import Manifest
from parse_mpi.storage.shard import AgentArray

Ids = NDArray[np.int64]
PARAMETERS = "slices/encoder[top]/parameters"


def arrays_of(everyone: Ids, holders: Ids) -> list[AgentArray]:
    """Rows of every rank and type that tell whose they are."""
    steps = AgentArray("agents/steps", everyone, 10 * everyone)
    balance = AgentArray("agents/alignment_balance", everyone, everyone[:, None] / 4)
    rows = (holders[:, None] + np.arange(3) / 100).astype(np.float32)
    cube = np.broadcast_to(holders[:, None, None], (len(holders), 2, 5)).astype(">i2")
    names = (PARAMETERS, "slices/encoder[top]/momentum", "slices/odd %b name %%/cube", "slices/none/parameters")
    values = (rows, -rows, cube, rows[:, :0])
    return [steps, balance, *(AgentArray(name, holders, v) for name, v in zip(names, values, strict=True))]


def dealt(directory: Path, owners: list[int], holds: list[bool]) -> Manifest:
    """A checkpoint of agents whose rows lie in the shards that `owners` says; some hold slices."""
    owner, holder = np.array(owners, np.int64), np.array(holds, bool)
    shards = [
        arrays_of(np.flatnonzero(owner == shard), np.flatnonzero((owner == shard) & holder))
        for shard in range(max(owners) + 1)
    ]
    return write_checkpoint(directory, 7, shards)


def assert_view_shows(directory: Path, checkpoint: Checkpoint) -> None:
    """Every array of the checkpoint, all agents in ascending id, read through plain h5py."""
    with h5py.File(directory / "view.h5") as view:
        for name in checkpoint.names():
            agents = checkpoint.agents_of(name)
            np.testing.assert_array_equal(view[name.rpartition("/")[0]]["agents"][()], agents)
            expected, shown = checkpoint.read(name, agents), view[name]
            assert (shown.dtype, shown.shape) == (expected.dtype, expected.shape), name
            np.testing.assert_array_equal(shown[()], expected, err_msg=name)


@settings(max_examples=15)
@given(st.data())
def test_h5py_sees_all_shards_as_one(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    holds = data.draw(st.lists(st.booleans(), min_size=len(owners), max_size=len(owners)))
    directory = tmp_path_factory.mktemp("dealt") / "round-000007"
    manifest = dealt(directory, owners, holds)
    assert_view_shows(directory, Checkpoint(directory))
    with h5py.File(directory / "view.h5") as view:
        assert set(view["slices"]) == {"encoder[top]", "odd %b name %%", "none"}
        np.testing.assert_array_equal(view["agents/agents"], np.arange(len(owners)))
        np.testing.assert_array_equal(view[PARAMETERS][:, 0], np.flatnonzero(holds))
        assert dict(view.attrs) == {"format": "parse-mpi view", "format_version": 2, "round": 7}
    content = (directory / "view.h5").read_bytes()
    assert manifest.view is not None
    assert (manifest.view.file, manifest.view.size_bytes) == ("view.h5", len(content))
    assert manifest.view.sha256 == hashlib.sha256(content).hexdigest()


def test_a_copied_checkpoint_keeps_its_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = tmp_path / "there", tmp_path / "elsewhere" / "here"
    dealt(there, [1, 0, 2, 0, 1], [True] * 5)
    original = Checkpoint(there)
    rows = original.read(PARAMETERS, original.agents_of(PARAMETERS))
    shutil.copytree(there, here)
    shutil.rmtree(there)
    monkeypatch.chdir(tmp_path)
    assert_view_shows(here, Checkpoint(here))
    with h5py.File(os.path.relpath(here / "view.h5")) as view:
        np.testing.assert_array_equal(view[PARAMETERS], rows)


def test_the_rows_of_a_missing_shard_are_unknown(tmp_path: Path) -> None:
    dealt(tmp_path / "c", [1, 0, 1, 0], [True] * 4)
    (tmp_path / "c" / "shard-0001.h5").unlink()
    with h5py.File(tmp_path / "c" / "view.h5") as view:
        np.testing.assert_array_equal(view[PARAMETERS][:, 0], np.array([np.nan, 1, np.nan, 3], np.float32))
        np.testing.assert_array_equal(view["agents/steps"], [-1, 10, -1, 30])


def test_the_same_checkpoint_has_the_same_view_at_another_time(tmp_path: Path) -> None:
    first = dealt(tmp_path / "first", [0, 2, 1, 0], [True, False, True, True])
    time.sleep(1.1)  # HDF5 counts times in seconds
    assert dealt(tmp_path / "second", [0, 2, 1, 0], [True, False, True, True]).view == first.view


def test_a_thousand_agents_in_many_shards_take_little(tmp_path: Path) -> None:
    owners = np.random.default_rng(0).permutation(np.arange(1000) % 64).tolist()
    manifest = dealt(tmp_path / "c", owners, [True] * 1000)
    assert_view_shows(tmp_path / "c", Checkpoint(tmp_path / "c"))
    assert manifest.view is not None
    assert manifest.view.size_bytes < 200_000  # six arrays; a mapping a row instead of one a shard would take 1 MB
