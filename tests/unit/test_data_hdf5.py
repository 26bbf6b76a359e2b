"""Data files: what is read, and that each way of breaking the layout is refused by name, data set and row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.errors import DataError

SAMPLES = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small file in good order: 8 samples, 3 classes, two modalities."""
    path = tmp_path / "small.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["modalities/image"] = rng.normal(size=(SAMPLES, 4, 5)).astype(np.float32)
        file["modalities/sound"] = rng.normal(size=(SAMPLES, 6)).astype(np.float32)
        file["labels"] = np.array([0, 1, 2, 0, 1, 2, 0, 1])
        file["split"] = np.array([0, 0, 0, 0, 0, 1, 2, 2], dtype=np.uint8)
        file["groups"] = np.arange(SAMPLES) // 2
        file.attrs["name"] = "Small"
        file.attrs["licence"] = "CC0"
        file.attrs["class_names"] = ["a", "b", "ç"]
    return path


def edit(path: Path, change: Callable[[Any], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name: str, values: object, **options: object) -> Callable[[Any], object]:
    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return change


def problem_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_dataset(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_order_in_which_a_file_keeps_its_modalities_does_not_count(path: Path) -> None:
    """It would decide where `concat` puts them, and a digest that does not know it would let such a run resume."""
    other = path.with_name("other.h5")
    with h5py.File(path) as file, h5py.File(other, "w") as copy:
        group = copy.create_group("modalities", track_order=True)
        for name in ("sound", "image"):
            group[name] = file[f"modalities/{name}"][()]
        for name in ("labels", "split"):
            copy[name] = file[name][()]
        assert list(group) == ["sound", "image"]
    assert list(read_dataset(other).modalities) == list(read_dataset(path).modalities) == ["image", "sound"]


def test_a_good_file_is_read_as_it_is(path: Path) -> None:
    dataset = read_dataset(path)
    with h5py.File(path) as file:
        for name in ("image", "sound"):
            np.testing.assert_array_equal(dataset.modalities[name], file["modalities"][name][()])
        np.testing.assert_array_equal(dataset.labels, file["labels"][()])
        np.testing.assert_array_equal(dataset.groups, file["groups"][()])
    assert (dataset.name, dict(dataset.attributes)) == ("Small", {"licence": "CC0"})
    assert dataset.class_names == ("a", "b", "ç")
    assert dataset.indices(0).tolist() == [0, 1, 2, 3, 4]


def test_types_are_made_those_of_the_program(path: Path) -> None:
    edit(path, replace("modalities/sound", np.ones((SAMPLES, 6), dtype=">f8"), chunks=(2, 3), compression="gzip"))
    edit(path, replace("labels", np.arange(SAMPLES) % 3, dtype=">u2"))
    edit(path, replace("split", np.arange(SAMPLES) % 3, dtype=np.int32))
    dataset = read_dataset(path)
    assert dataset.groups is not None
    types = [x.dtype.type for x in (dataset.modalities["sound"], dataset.labels, dataset.split, dataset.groups)]
    assert types == [np.float32, np.int64, np.uint8, np.int64]
    assert all(x.flags.c_contiguous for x in dataset.modalities.values())


def test_what_is_optional_may_be_missing(path: Path) -> None:
    def strip(file: Any) -> None:
        del file["groups"]
        for key in list(file.attrs):
            del file.attrs[key]

    edit(path, strip)
    dataset = read_dataset(path)
    assert (dataset.name, dataset.groups, dict(dataset.attributes)) == ("small", None, {})
    assert dataset.class_names == ("0", "1", "2")


def test_texts_of_fixed_length_are_read(path: Path) -> None:
    edit(path, lambda file: file.attrs.update(name=np.bytes_("Fixed"), class_names=np.array([b"x", b"yy", b"z"])))
    dataset = read_dataset(path)
    assert (dataset.name, dataset.class_names) == ("Fixed", ("x", "yy", "z"))


def with_nan(file: Any) -> None:
    file["modalities/image"][5, 1, 2] = np.nan
    file["modalities/image"][7, 0, 0] = np.inf


def remove(name: str) -> Callable[[Any], object]:
    return lambda file: file.__delitem__(name)


def overwrite(name: str, row: int, value: int) -> Callable[[Any], object]:
    return lambda file: file[name].__setitem__(row, value)


def no_modalities(file: Any) -> None:
    del file["modalities"]
    file.create_group("modalities")


def object_type(file: Any) -> None:
    del file["modalities/sound"]
    file.create_dataset("modalities/sound", (SAMPLES, 2), dtype=h5py.vlen_dtype(np.float32))


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((SAMPLES, 6), dtype=np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(SAMPLES, 6))
    del file["modalities/sound"]
    file.create_virtual_dataset("modalities/sound", layout)


def external_storage(file: Any) -> None:
    del file["modalities/sound"]
    file.create_dataset("modalities/sound", (SAMPLES, 6), dtype=np.float32, external=[("raw.bin", 0, 4 * 6 * SAMPLES)])


def external_link(file: Any) -> None:
    del file["modalities/sound"]
    file["modalities/sound"] = h5py.ExternalLink("other.h5", "/x")


def external_group(file: Any) -> None:
    del file["modalities"]
    file["modalities"] = h5py.ExternalLink("other.h5", "/modalities")


def external_groups_data_set(file: Any) -> None:
    del file["groups"]
    file["groups"] = h5py.ExternalLink("missing.h5", "/groups")


def soft_link(file: Any) -> None:
    file["modalities/again"] = h5py.SoftLink("/modalities/sound")


def empty(file: Any) -> None:
    del file["labels"]
    file["labels"] = h5py.Empty("i8")


def unwritten(file: Any) -> None:
    del file["modalities/sound"]
    file.create_dataset("modalities/sound", (SAMPLES, 2**40), dtype=np.float32)


def no_samples(file: Any) -> None:
    for name in ("modalities/image", "modalities/sound", "labels", "split", "groups"):
        values = file[name][:0]
        del file[name]
        file[name] = values


def name_that_is_not_text(file: Any) -> None:
    group = file["modalities"]
    group.id.links.create_soft(b"\xff", b"/labels")


def committed_type(file: Any) -> None:
    file["modalities/type"] = np.dtype("f4")


# Each: how the file is broken, and what the message must contain.
IN_TABLES: list[tuple[Callable[[Any], object], str]] = [
    (remove("labels"), "/labels: missing; a data set is expected"),
    (remove("split"), "/split: missing"),
    (remove("modalities"), "/modalities: missing; a group is expected"),
    (no_modalities, "/modalities: holds no data set"),
    (replace("modalities", np.ones(3)), "/modalities: not a group"),
    (lambda file: file["modalities"].create_group("nested"), "/modalities/nested: not a data set"),
    (committed_type, "/modalities/type: not a data set"),
    (replace("modalities/sound", np.ones((SAMPLES, 6), dtype=np.int16)), "/modalities/sound: has type int16; a float"),
    (replace("modalities/sound", np.ones(SAMPLES)), "/modalities/sound: has shape (8,); samples x"),
    (replace("modalities/sound", np.ones((SAMPLES, 0))), "/modalities/sound: has shape (8, 0)"),
    (
        replace("modalities/sound", np.ones((SAMPLES - 1, 6))),
        "/: the numbers of samples differ: /modalities/image 8, /modalities/sound 7, /labels 8",
    ),
    (replace("groups", np.arange(5)), "/groups 5"),
    (replace("groups", np.ones(SAMPLES)), "/groups: has type float64; an integer"),
    (replace("labels", np.zeros(SAMPLES)), "/labels: has type float64; an integer type is expected"),
    (replace("labels", np.zeros((SAMPLES, 1), dtype=int)), "/labels: has shape (8, 1); one number"),
    (empty, "/labels: no values were ever written"),
    (unwritten, "/modalities/sound: no values were ever written"),
    (no_samples, "/split: no sample is in the training split"),
    (lambda file: file.move("labels", "modalities/labels"), "/modalities/labels: has type int64; a floating-point"),
    (name_that_is_not_text, "/modalities: holds the name b'\\xff'"),
    (overwrite("labels", 4, -1), "/labels: row 4 is -1, which isn't a class, 0 to 2 (1 row in all)"),
    (overwrite("labels", 6, 3), "/labels: row 6 is 3"),
    (replace("labels", np.full(SAMPLES, 2**64 - 1, dtype=np.uint64)), "/labels: row 0 is 18446744073709551615"),
    (overwrite("split", 3, 9), "/split: row 3 is 9, which isn't 0 (train), 1 (validation) or 2 (test)"),
    (replace("split", np.full(SAMPLES, 2)), "/split: no sample is in the training split"),
    (object_type, "/modalities/sound: has type object"),
    (virtual, "/modalities/sound: its values lie in other files"),
    (external_storage, "/modalities/sound: its values lie in other files"),
    (external_link, "/modalities/sound: is a link"),
    (external_group, "/modalities: is a link"),
    (external_groups_data_set, "/groups: is a link"),
    (soft_link, "/modalities/again: is a link"),
    (lambda file: file.attrs.update(name=[1, 2]), "attribute name: not a text"),
    (lambda file: file.attrs.update(source=h5py.Empty("S1")), "attribute source: not a text"),
    (lambda file: file.attrs.update(class_names=[1.0, 2.0]), "attribute class_names: not a list of texts"),
    (lambda file: file.attrs.update(class_names=["a", "b", "a"]), "class_names: two classes have the same name"),
]
IN_VALUES: list[tuple[Callable[[Any], object], str]] = [
    (with_nan, "/modalities/image: row 5 isn't finite in float32 (2 rows in all)"),
    (replace("modalities/sound", np.full((SAMPLES, 2), 1e300)), "/modalities/sound: row 0 isn't finite in float32"),
]


@pytest.mark.parametrize(("change", "message"), IN_TABLES, ids=[message[:40] for _, message in IN_TABLES])
def test_a_broken_layout_is_refused_by_name_and_row(path: Path, change: Callable[[Any], object], message: str) -> None:
    edit(path, change)
    assert message in problem_of(path)


@pytest.mark.parametrize(("change", "message"), IN_VALUES)
def test_values_that_are_not_finite_are_refused(path: Path, change: Callable[[Any], object], message: str) -> None:
    edit(path, change)
    assert message in problem_of(path)


def test_each_fault_is_reported_once_and_all_together(path: Path) -> None:
    for change in (with_nan, overwrite("labels", 1, 7), overwrite("split", 0, 5), external_link):
        edit(path, change)
    lines = problem_of(path).splitlines()[1:]
    names = [line.split(":")[0].strip() for line in lines]
    assert names == ["/modalities/sound", "/labels", "/split", "/modalities/image"]


def test_a_label_far_beyond_the_samples_makes_no_class_names(path: Path) -> None:
    edit(path, lambda file: file.attrs.__delitem__("class_names"))
    edit(path, overwrite("labels", 2, 2**62))
    assert "/labels: row 2 is 4611686018427387904" in problem_of(path)


def test_missing_files_and_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    for bad in (tmp_path / "absent.h5", text, tmp_path):
        assert "can't be opened as an HDF5 file" in problem_of(bad)


def test_a_damaged_compressed_chunk_is_refused(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(SAMPLES, 64))
    edit(path, replace("modalities/sound", values, chunks=(2, 64), compression="gzip"))
    with h5py.File(path) as file:
        chunk = file["modalities/sound"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    assert "/modalities/sound: can't be read" in problem_of(path)


@given(share=st.floats(0, 0.999))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_short_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    cut = path.with_name("cut.h5")
    cut.write_bytes(content[: int(share * len(content))])
    problem_of(cut)
