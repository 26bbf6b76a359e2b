"""Metrics: whatever the cuts and restarts, the joined segments are the uninterrupted series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parse_mpi.errors import StorageError
from parse_mpi.storage.metrics import consolidate, read_metrics, require_rounds, write_segment, write_table


def series(first_round: int, last_round: int, offset: float = 0.0) -> dict[str, Any]:
    """Losses of 2 agents that tell their round, and an evaluation in every third round."""
    rounds = np.arange(first_round, last_round + 1)
    evaluated = rounds[rounds % 3 == 0]
    return {
        "rounds/round": rounds,
        "rounds/loss": (rounds[:, None] + np.array([0.1, 0.2]) + offset).astype(np.float32),
        "evaluations/round": evaluated,
        "evaluations/accuracy": np.stack([evaluated, -evaluated], axis=1) / 100,
    }


def write(run_dir: Path, first_round: int, last_round: int, offset: float = 0.0) -> None:
    write_segment(run_dir, first_round, last_round, series(first_round, last_round, offset), {})


def files(run_dir: Path) -> list[str]:
    return sorted(entry.name for entry in (run_dir / "metrics").iterdir())


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Segments in the order in which a run that is killed now and then writes them."""
    written, ends = [], [0]
    for _ in range(draw(st.integers(1, 6))):
        ends = ends[: draw(st.integers(1, len(ends)))] if draw(st.booleans()) else ends
        last = ends[-1] + draw(st.integers(1, 5))
        written.append((ends[-1] + 1, last))
        ends.append(last)
    return written


@settings(max_examples=25, deadline=None)
@given(history=histories())
def test_joined_segments_are_the_uninterrupted_series(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[int, int]]
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    attempts = {}
    for attempt, (first, last) in enumerate(history):
        write(run_dir, first, last, offset=100.0 * attempt)
        attempts.update(dict.fromkeys(range(first, last + 1), attempt))
    expected = series(1, last)
    expected["rounds/loss"] += 100 * np.array([attempts[r] for r in range(1, last + 1)], np.float32)[:, None]
    while_running = read_metrics(run_dir)
    consolidate(run_dir)
    for metrics in (while_running, read_metrics(run_dir)):
        assert metrics.arrays.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(metrics[name], values)
            assert metrics[name].dtype == values.dtype
        assert (metrics.attributes[""]["first_round"], metrics.attributes[""]["last_round"]) == (1, last)


def test_plain_h5py_reads_the_consolidated_file(tmp_path: Path) -> None:
    write_table(tmp_path, "agents", {"agents/kind": np.array(["top", "bottom"])}, {"agents": {"count": 2}})
    write_segment(tmp_path, 1, 2, series(1, 2), {"": {"ranks": 2}, "rounds/loss": {"terms": ["old"]}})
    write_segment(tmp_path, 3, 5, series(3, 5), {"": {"ranks": 4}, "rounds/loss": {"terms": ["ce"]}})
    path = consolidate(tmp_path)
    assert path == tmp_path / "metrics.h5"
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["rounds/round"], [1, 2, 3, 4, 5])
        assert list(file["rounds/loss"].attrs["terms"]) == ["ce"]
        assert file.attrs["ranks"] == 4
        assert file["agents/kind"].asstr()[:].tolist() == ["top", "bottom"]
        assert file["agents"].attrs["count"] == 2
    assert files(tmp_path) == ["round-000002.h5", "round-000005.h5", "table-agents.h5"]


def test_consolidating_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, 1, 4)
    first = consolidate(tmp_path).read_bytes()
    assert consolidate(tmp_path).read_bytes() == first


def test_a_later_segment_or_table_is_never_missing_from_what_is_read(tmp_path: Path) -> None:
    write(tmp_path, 1, 4)
    consolidate(tmp_path)
    write(tmp_path, 5, 6)
    assert not (tmp_path / "metrics.h5").exists()
    assert read_metrics(tmp_path)["rounds/round"].tolist() == [1, 2, 3, 4, 5, 6]
    consolidate(tmp_path)
    write_table(tmp_path, "agents", {"agents/count": np.array(2)}, {})
    assert read_metrics(tmp_path)["agents/count"] == 2


@pytest.mark.parametrize(
    ("dtype", "joined_dtype", "unknown"),
    [("f4", "f4", np.nan), ("i8", "i8", -1), ("u1", "i2", -1), ("?", "i1", -1), ("U1", "U1", "")],
)
def test_another_number_of_ranks_leaves_unknown_values(
    tmp_path: Path, dtype: str, joined_dtype: str, unknown: Any
) -> None:
    two, three = np.ones((1, 2), dtype), np.ones((2, 3), dtype)
    write_segment(tmp_path, 1, 1, {"ranks/value": two}, {})
    write_segment(tmp_path, 2, 3, {"ranks/value": three}, {})
    joined = read_metrics(tmp_path)["ranks/value"]
    assert joined.dtype == np.dtype(joined_dtype)
    expected = np.ones((3, 3), dtype).astype(joined_dtype)
    expected[0, 2] = unknown
    np.testing.assert_array_equal(joined, expected)


def test_equal_shapes_keep_their_dtype(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, 1, {"agents/finite": np.array([[True, False]])}, {})
    write_segment(tmp_path, 2, 2, {"agents/finite": np.array([[True, True]])}, {})
    assert read_metrics(tmp_path)["agents/finite"].dtype == np.bool_


def test_a_metric_that_begins_later_stays_beside_its_rounds(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, 2, {"rounds/round": np.array([1, 2])}, {})
    write_segment(tmp_path, 3, 3, {"rounds/round": np.array([3]), "rounds/gap": np.array([[0.5, 0.25]])}, {})
    metrics = read_metrics(tmp_path)
    np.testing.assert_array_equal(metrics["rounds/gap"], [[np.nan, np.nan], [np.nan, np.nan], [0.5, 0.25]])


def test_a_gap_in_the_chain_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="ends at round 0 and goes on at round 4"):
        write(tmp_path, 4, 6)
    for first, last in ((1, 3), (4, 6), (7, 9)):
        write(tmp_path, first, last)
    with pytest.raises(StorageError, match="ends at round 3 and goes on at round 6"):
        write(tmp_path, 6, 8)
    assert read_metrics(tmp_path)["rounds/round"][-1] == 9
    (tmp_path / "metrics" / "round-000006.h5").unlink()
    with pytest.raises(StorageError, match=r"round-000009\.h5: the chain ends at round 3 and goes on at round 7"):
        read_metrics(tmp_path)


def test_a_renamed_segment_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    (tmp_path / "metrics" / "round-000003.h5").rename(tmp_path / "metrics" / "round-000004.h5")
    with pytest.raises(StorageError, match="not the segment that its name says"):
        read_metrics(tmp_path)


def test_damage_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    path = tmp_path / "metrics" / "round-000003.h5"
    content = path.read_bytes()
    position = content.index(series(1, 3)["rounds/loss"].tobytes())
    path.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
    with pytest.raises(StorageError, match=r"round-000003\.h5: was damaged or edited"):
        read_metrics(tmp_path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError, match=r"round-000003\.h5: can't be read"):
        consolidate(tmp_path)


def test_the_first_format_version_is_read_and_a_later_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(__file__).parents[1] / "format_1" / "run"
    metrics = read_metrics(run)
    assert metrics.attributes[""]["format_version"] == 1
    assert metrics["rounds/round"].tolist() == [1, 2, 3, 4]
    monkeypatch.setattr("parse_mpi.storage.metrics.FORMAT_VERSION", 3)
    write(tmp_path, 1, 2)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="format version 3 is newer than this parse-mpi, which reads up to 2"):
        read_metrics(tmp_path)


def test_a_foreign_hdf5_file_is_not_metrics(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "metrics.h5", "w") as file:
        file.attrs["format"] = "something else"
    with pytest.raises(StorageError, match="no metrics of parse-mpi: 'something else', version None"):
        read_metrics(tmp_path)


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no metrics yet"):
        read_metrics(tmp_path)
    write(tmp_path, 1, 3)
    with pytest.raises(StorageError, match="hold no rounds/los; there are evaluations/accuracy, "):
        read_metrics(tmp_path)["rounds/los"]


def test_arrays_that_make_no_segment_are_refused(tmp_path: Path) -> None:
    for arrays in ({"loss": np.ones(2)}, {"rounds/loss": np.array(1.0)}, {"r/a": np.ones(2), "r/b": np.ones(3)}):
        with pytest.raises(ValueError, match=r"loss|r/b: 3 rows"):
            write_segment(tmp_path, 1, 2, arrays, {})
    with pytest.raises(ValueError, match="from round 2 to round 1"):
        write_segment(tmp_path, 2, 1, {}, {})
    with pytest.raises(ValueError, match="a table's name"):
        write_table(tmp_path, "../agents", {}, {})


def test_a_table_and_a_segment_cannot_share_a_name(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    write_table(tmp_path, "rounds", {"rounds/loss": np.ones(3)}, {})
    with pytest.raises(StorageError, match="/rounds/loss is in a table and in another file"):
        consolidate(tmp_path)


def test_segments_with_another_number_of_axes_cannot_be_joined(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, 1, {"rounds/loss": np.ones((1, 2))}, {})
    write_segment(tmp_path, 2, 2, {"rounds/loss": np.ones((1, 2, 3))}, {})
    with pytest.raises(StorageError, match="different numbers of axes"):
        read_metrics(tmp_path)


def test_rounds_that_a_restart_needs_are_all_there_or_named(tmp_path: Path) -> None:
    write(tmp_path, 1, 4)
    write(tmp_path, 5, 8)
    require_rounds(tmp_path, 4)
    require_rounds(tmp_path, 8)
    with pytest.raises(StorageError, match=r"rounds 1 to 6 are not complete \(segments end at rounds \[4, 8\]\)"):
        require_rounds(tmp_path, 6)
    (tmp_path / "metrics" / "round-000008.h5").write_bytes(b"")
    with pytest.raises(StorageError, match=r"can't be read as HDF5: .*\. Put sound files back"):
        require_rounds(tmp_path, 8)
    require_rounds(tmp_path, 4)
    (tmp_path / "metrics" / "round-000008.h5").unlink()
    with pytest.raises(StorageError, match="rounds 1 to 8 are not complete"):
        require_rounds(tmp_path, 8)
    with pytest.raises(StorageError, match=r"rounds 1 to 2 .*\[\]"):
        require_rounds(tmp_path / "empty", 2)
