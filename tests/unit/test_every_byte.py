"""Every damaged byte of a checkpoint or of metrics is noticed, by digests, seals and canonical text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from damage import flipped
from hostile_files import ROWS, SECRET, Shard, small_checkpoint

from parse_mpi.errors import StorageError
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.manifest import read_manifest
from parse_mpi.storage.metrics import read_metrics, write_segment
from parse_mpi.storage.seal import SEAL_BYTES
from parse_mpi.storage.write import write_hdf5


def test_every_flipped_byte_of_a_shard_is_detected(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path)
    checkpoint = Checkpoint(directory)
    for _ in flipped(directory / "shard-0000.h5", bits=[3]):
        with pytest.raises(StorageError, match=r"shard-0000\.h5: was damaged"):
            checkpoint.verify()
    np.testing.assert_array_equal(checkpoint.read(Shard.name, np.arange(ROWS)), np.zeros_like(SECRET))


def test_every_flipped_bit_of_a_manifest_is_detected(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path)
    for _ in flipped(directory / "manifest.json", bits=range(8)):
        with pytest.raises(StorageError, match=r"manifest\.json"):
            read_manifest(directory)


def test_every_flipped_byte_of_metrics_is_detected(tmp_path: Path) -> None:
    """Text of attributes as well, over which HDF5 has no checksum."""
    write_segment(tmp_path, 1, 2, {"rounds/loss": SECRET[:2]}, {"rounds/loss": {"term": ["total", "heads"]}})
    path = tmp_path / "metrics" / "round-000002.h5"
    for _ in flipped(path, bits=[3]):
        with pytest.raises(StorageError, match=r"round-000002\.h5"):
            read_metrics(tmp_path)
    assert read_metrics(tmp_path).attributes["rounds/loss"] == {"term": ["total", "heads"]}


def test_metrics_without_their_seal_are_refused(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, 2, {"rounds/loss": SECRET[:2]}, {})
    path = tmp_path / "metrics" / "round-000002.h5"
    path.write_bytes(path.read_bytes()[:-SEAL_BYTES])
    with pytest.raises(StorageError, match="its last line is not the sha256 of the rest"):
        read_metrics(tmp_path)


def test_a_seal_can_be_checked_by_hand_and_hides_nothing_from_h5py(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, 2, {"rounds/loss": SECRET[:2]}, {})
    path = tmp_path / "metrics" / "round-000002.h5"
    content, _, last_line = path.read_bytes().removesuffix(b"\n").rpartition(b"\n")
    assert last_line.decode() == f"parse-mpi sha256 {hashlib.sha256(content).hexdigest()}"
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["rounds/loss"], SECRET[:2])


def test_without_a_seal_text_could_change_in_silence(tmp_path: Path) -> None:
    """Why there are seals: neither HDF5's checksums nor the digests of data sets cover it."""
    path = tmp_path / "bare.h5"
    write_hdf5(path, {"rounds/loss": SECRET}, {"rounds/loss": {"term": ["total", "heads"]}})
    path.write_bytes(path.read_bytes().replace(b"heads", b"headz"))
    with h5py.File(path) as file:
        assert list(file["rounds/loss"].attrs["term"]) == ["total", "headz"]
        np.testing.assert_array_equal(file["rounds/loss"], SECRET)
