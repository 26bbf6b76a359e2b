"""Reading a file sample by sample: the same values, digest and errors as reading it as a whole, in less memory."""

from __future__ import annotations

import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_jobs import write_dataset

from parse_mpi.data import dataset, hdf5
from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.data.hdf5_values import FileArray
from parse_mpi.data.memory import available_bytes
from parse_mpi.errors import DataError

SAMPLES = 700  # more than are read at a time
LAYOUTS: dict[str, dict[str, object]] = {
    "contiguous": {},
    "compressed": {"chunks": (64, 2, 3), "compression": "gzip"},
    "double": {"dtype": ">f8", "chunks": (5, 1, 3)},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lazy") / "set.h5"
    write_dataset(path, {"a": (2, 3), "b": (4,)}, count=SAMPLES)
    with h5py.File(path, "r+") as file:
        values = file["modalities/a"][()]
        del file["modalities/a"]
        file.create_dataset("modalities/a", data=values, **LAYOUTS[request.param])
    return path


@given(index=st.lists(st.integers(0, SAMPLES - 1), max_size=600))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_selection_of_samples_is_that_of_the_array(path: Path, index: list[int]) -> None:
    whole, lazy = (read_dataset(path, reading).modalities for reading in ("memory", "lazy"))
    for m in ("a", "b"):
        assert isinstance(lazy[m], FileArray)
        assert lazy[m].shape == whole[m].shape
        some = lazy[m][np.array(index, np.int64)]
        assert some.dtype == np.float32
        assert some.flags.c_contiguous
        np.testing.assert_array_equal(some, whole[m][np.array(index, np.int64)])


def test_all_samples_in_order(path: Path) -> None:
    whole, lazy = (read_dataset(path, reading).modalities["a"] for reading in ("memory", "lazy"))
    np.testing.assert_array_equal(lazy[np.arange(SAMPLES)], whole)


def test_the_digest_does_not_depend_on_how_a_file_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digests() -> tuple[str, str]:
        whole, lazy = (read_dataset(path, reading).digest() for reading in ("memory", "lazy"))
        return whole, lazy

    whole, lazy = digests()
    assert whole == lazy
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 100)
    assert digests() == (whole, whole)
    monkeypatch.setattr(dataset, "DIGESTED_WHOLE_BYTES", 1000)
    monkeypatch.setattr(dataset, "DIGESTED_SAMPLE_BYTES", 400)
    of_some, also_of_some = digests()
    assert of_some == also_of_some != whole


def test_auto_is_lazy_where_modalities_take_more_than_half_of_a_processes_share(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = SAMPLES * 4 * (6 + 4)

    def is_lazy(available: int, readers: int) -> bool:
        monkeypatch.setattr(hdf5, "available_bytes", lambda: available)
        kinds = {isinstance(x, FileArray) for x in read_dataset(path, "auto", readers).modalities.values()}
        assert len(kinds) == 1
        return kinds.pop()

    assert not is_lazy(2 * decoded, 1)
    assert is_lazy(2 * decoded - 1, 1)
    assert not is_lazy(8 * decoded, 4)
    assert is_lazy(8 * decoded - 1, 4)


def test_values_that_are_not_finite_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.h5", {"a": (3,)}, count=50)
    with h5py.File(path, "r+") as file:
        file["modalities/a"][30, 1] = np.nan
    x = read_dataset(path, "lazy").modalities["a"]
    assert np.isfinite(x[np.arange(30)]).all()
    with pytest.raises(
        DataError, match=r"set.h5: not a data file (.|\n)*/modalities/a: row 30 isn't finite in float32"
    ):
        x[np.array([40, 30, 2])]


def test_what_the_tables_show_is_refused_at_once(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.h5", {"a": (3,)}, count=50)
    with h5py.File(path, "r+") as file:
        file["modalities/b"] = h5py.ExternalLink("other.h5", "/x")
        file["labels"][3] = -1
    with pytest.raises(DataError, match=r"/modalities/b: is a link(.|\n)*/labels: row 3 is -1"):
        read_dataset(path, "lazy")


def test_a_damaged_chunk_or_a_lost_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.h5", {"a": (3,), "b": (64,)}, count=50)
    with h5py.File(path, "r+") as file:
        values = file["modalities/b"][()]
        del file["modalities/b"]
        file.create_dataset("modalities/b", data=values, chunks=(10, 64), compression="gzip")
        chunk = file["modalities/b"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    modalities = read_dataset(path, "lazy").modalities
    assert modalities["b"][np.array([3])].shape == (1, 64)
    with pytest.raises(DataError, match="/modalities/b: can't be read"):
        modalities["b"][np.array([25])]
    path.unlink()
    with pytest.raises(DataError, match="/modalities/a: can't be read"):
        modalities["a"][np.array([25])]


def test_samples_too_large_for_the_memory_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(path) as file:
        array = file["modalities/a"]
        least = array.dtype.itemsize * max(6, np.prod(array.chunks or 1))
    monkeypatch.setattr(hdf5, "available_bytes", lambda: least)
    assert isinstance(read_dataset(path, "lazy").modalities["a"], FileArray)
    monkeypatch.setattr(hdf5, "available_bytes", lambda: least - 1)
    with pytest.raises(DataError, match=f"/modalities/a: one sample takes {least:,} bytes to read"):
        read_dataset(path, "lazy")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("version", [1, 2])
def test_available_memory_is_the_least_that_machine_and_control_groups_allow(tmp_path: Path, version: int) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemTotal: 9000 kB\nMemAvailable:    7000 kB\n")
    assert available_bytes(proc, groups) == 7000 * 1024
    name = "memory.max" if version == 2 else "memory/memory.limit_in_bytes"
    root, file = groups / name.rpartition("/")[0], name.rpartition("/")[2]
    write(proc / "self/cgroup", "0::/job/step\n" if version == 2 else "3:cpu:/x\n4:memory,other:/job/step\n")
    write(root / "job" / "step" / file, "max\n" if version == 2 else "9223372036854771712\n")
    assert available_bytes(proc, groups) == 7000 * 1024
    write(root / "job" / file, "5000000\n")
    assert available_bytes(proc, groups) == 5_000_000
    write(root / file, "4000000\n")
    assert available_bytes(proc, groups) == 4_000_000


def test_available_memory_heeds_a_limit_of_the_address_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = resource.getpagesize()
    write(tmp_path / "self/statm", "300 100 5 5 0 5 0\n")
    write(tmp_path / "meminfo", f"MemAvailable: {page} kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000 * page, 2000 * page))
    assert available_bytes(tmp_path, tmp_path) == 700 * page


def test_this_machine_has_some_memory() -> None:
    assert available_bytes() > 1 << 20
