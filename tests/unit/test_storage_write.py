"""The write primitive: what plain h5py reads is what was given, and a bad write never gets the file's name."""

from __future__ import annotations

import errno
import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parse_mpi.errors import StorageError
from parse_mpi.storage.read import read_hdf5
from parse_mpi.storage.write import write_hdf5, write_text

NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    hnp.complex_number_dtypes(sizes=(64, 128)),
    hnp.byte_string_dtypes(min_len=1, max_len=5),
)
ANY_ARRAY = NUMBERS.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
NAMES = st.lists(st.text("abé[]. ", min_size=1, max_size=4).filter(lambda s: s.strip(". ")), min_size=1, max_size=2)
IN_ONE_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@IN_ONE_FOLDER
@given(st.lists(ANY_ARRAY, max_size=4), NAMES)
def test_plain_h5py_reads_what_was_written(tmp_path: Path, arrays: list[Any], parts: list[str]) -> None:
    path = tmp_path / "file.h5"
    named = {f"group/{'/'.join(parts)}/{index}": array for index, array in enumerate(arrays)}
    record = write_hdf5(path, named, {})
    with h5py.File(path) as file:
        for name, array in named.items():
            stored = np.asarray(file[name][()], dtype=file[name].dtype)
            assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
            assert stored.tobytes() == array.tobytes()
            assert file[name].chunks is None
            assert file[name].attrs["sha256"] == record.arrays[name] == hashlib.sha256(array.tobytes()).hexdigest()
    assert record.size_bytes == path.stat().st_size
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@IN_ONE_FOLDER
@given(hnp.arrays(hnp.unicode_string_dtypes(min_len=1, max_len=4), hnp.array_shapes(min_dims=0, min_side=0)))
def test_strings_come_back(tmp_path: Path, words: Any) -> None:
    try:
        np.char.encode(words, "utf-8")
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    write_hdf5(tmp_path / "words.h5", {"agents/kind": words}, {})
    read = read_hdf5(tmp_path / "words.h5").arrays["agents/kind"]
    assert read.shape == words.shape
    assert read.tolist() == words.tolist()


def test_attributes_come_back_as_they_were_given(tmp_path: Path) -> None:
    given_attributes = {
        "": {"name": "quick é", "rounds": 3, "lr": 0.5, "exact": True, "job": "x" * 100_000},
        "rounds": {"terms": ["ce", "contrastive"], "nobody": []},
        "rounds/loss": {"unit": "nats", "weights": np.arange(3.0)},
    }
    write_hdf5(tmp_path / "a.h5", {"rounds/loss": np.ones(2)}, given_attributes)
    read = read_hdf5(tmp_path / "a.h5").attributes
    np.testing.assert_array_equal(read["rounds/loss"].pop("weights"), given_attributes["rounds/loss"].pop("weights"))
    assert read == given_attributes
    assert [type(read[""][key]) for key in ("rounds", "lr", "exact")] == [int, float, bool]


def test_strided_and_read_only_arrays_are_written_in_c_order(tmp_path: Path) -> None:
    matrix = np.arange(12.0).reshape(3, 4)
    frozen = matrix.copy()
    frozen.flags.writeable = False
    write_hdf5(tmp_path / "m.h5", {"t": matrix.T, "s": matrix[:, ::2], "f": frozen}, {})
    read = read_hdf5(tmp_path / "m.h5").arrays
    np.testing.assert_array_equal(read["t"], matrix.T)
    np.testing.assert_array_equal(read["s"], matrix[:, ::2])
    np.testing.assert_array_equal(read["f"], frozen)


def test_many_arrays_across_page_borders(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(0, 20_000, 300)
    arrays = {f"group{i % 7}/a{i}": np.full(size, i, np.int32) for i, size in enumerate(sizes)}
    write_hdf5(tmp_path / "many.h5", arrays, {"elsewhere": {"note": "an empty group"}})
    content = read_hdf5(tmp_path / "many.h5")
    assert all(np.array_equal(content.arrays[name], array) for name, array in arrays.items())
    assert content.attributes["elsewhere"] == {"note": "an empty group"}


def test_same_content_same_bytes(tmp_path: Path) -> None:
    records = [
        write_hdf5(tmp_path / name, {"a/b": np.arange(5), "s": np.array(["x"])}, {"": {"k": "v"}, "a": {"l": ["m"]}})
        for name in ("one.h5", "two.h5")
    ]
    assert records[0] == records[1]


def test_arrays_are_not_copied(tmp_path: Path) -> None:
    rows = np.ones(1 << 23)  # 64 MiB
    tracemalloc.start()
    write_hdf5(tmp_path / "big.h5", {"rows": rows}, {})
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16 << 20


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="agents/thing: dtype object"):
        write_hdf5(tmp_path / "o.h5", {"agents/thing": np.array([{}, []], dtype=object)}, {})
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:777], offset))
    write_hdf5(tmp_path / "s.h5", {"a": np.arange(5000)}, {})
    np.testing.assert_array_equal(read_hdf5(tmp_path / "s.h5").arrays["a"], np.arange(5000))


def test_a_disk_that_lies_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device stores other bytes than it was given and reports success: the old file stays."""
    path = tmp_path / "f.h5"
    write_hdf5(path, {"a": np.zeros(1000)}, {})
    before = path.read_bytes()
    pwrite = os.pwrite

    def flip(fd: int, data: memoryview, offset: int) -> int:
        damaged = bytearray(data)
        damaged[len(damaged) // 2] ^= 1
        return pwrite(fd, damaged, offset)

    monkeypatch.setattr(os, "pwrite", flip)
    with pytest.raises(StorageError, match="read back"):
        write_hdf5(path, {"a": np.ones(1000)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_without_progress_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(StorageError, match="no progress"):
        write_hdf5(tmp_path / "f.h5", {"a": np.ones(3)}, {})


def test_a_file_system_without_fallocate_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write_hdf5(tmp_path / "f.h5", {"a": np.ones(3)}, {})
    np.testing.assert_array_equal(read_hdf5(tmp_path / "f.h5").arrays["a"], np.ones(3))


def test_errors_name_the_file_and_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"nowhere/f\.txt: can't be written: No such file"):
        write_text(tmp_path / "nowhere" / "f.txt", "text")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"f\.txt: can't be written: No space left on device\. Free space"):
        write_text(tmp_path / "f.txt", "text")


@pytest.mark.parametrize("text", ["", "one\n", "ünï" * 1000])
def test_text_is_replaced_whole(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text("an older and longer content" * 1000)
    write_text(path, text)
    assert path.read_text("utf-8") == text


def test_leftovers_of_killed_writers_go_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".job.yaml.0123abcd.tmp").write_text("half")
    (tmp_path / ".other.yaml.0123abcd.tmp").write_text("not mine")
    write_text(tmp_path / "job.yaml", "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".other.yaml.0123abcd.tmp", "job.yaml"]


def test_every_flipped_bit_of_an_array_is_noticed(tmp_path: Path) -> None:
    """Of a flip anywhere in the file: the arrays come back right, or reading fails. No wrong number is ever read."""
    path = tmp_path / "f.h5"
    loss = np.random.default_rng(0).normal(size=40)
    write_hdf5(path, {"rounds/loss": loss}, {"": {"round": 3}})
    intact = path.read_bytes()
    rejected = 0
    for position in range(0, len(intact), 11):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            read = read_hdf5(path).arrays
        except StorageError:
            rejected += 1
        else:
            np.testing.assert_array_equal(read["rounds/loss"], loss)
    assert rejected >= loss.nbytes // 11
