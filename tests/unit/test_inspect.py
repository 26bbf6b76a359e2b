"""`parse-mpi inspect`: the tables say what the rows of a checkpoint really are."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import copy_dealt, write_checkpoint

from parse_mpi.cli import main
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.shard import AgentArray
from parse_mpi.studies import checkpointview

RECORDED = Path(__file__).parents[1] / "format_1" / "run"
NEWEST = RECORDED / "checkpoints" / "round-000004"


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def inspect(*arguments: Path | str) -> tuple[int, str, str]:
        code = main(["inspect", *map(str, arguments)])
        return code, *capsys.readouterr()

    return inspect


def row_of(text: str, first: str) -> list[str]:
    """The cells of the line of a table that begins so."""
    found = [line.split() for line in text.splitlines() if line.split()[:1] == [first]]
    assert len(found) == 1, (first, text)
    return found[0]


def rows(values: np.ndarray, name: str = "slices/head/parameters") -> AgentArray:
    return AgentArray(name, np.arange(len(values)), values)


def test_the_header_and_each_slice(inspect: Callable[..., tuple[int, str, str]]) -> None:
    code, text, err = inspect(NEWEST)
    assert (code, err) == (0, "")
    size = sum(file.stat().st_size for file in NEWEST.glob("shard-*.h5"))
    header = f"{NEWEST}: after round 4, 4 agents, 2 shards of {size / 1000:.1f} kB, format version 1"
    assert text.splitlines()[0] == header
    checkpoint = Checkpoint(NEWEST)
    assert f"job digest {checkpoint.header['job_digest']}" in text
    assert "ranks 2, seed 0" in text
    names = [name.split("/")[1] for name in checkpoint.names() if name.endswith("/parameters")]
    assert len(names) == 8
    for name in names:
        agents = checkpoint.agents_of(f"slices/{name}/parameters")
        values = checkpoint.read(f"slices/{name}/parameters", agents)
        norms = np.sqrt((values.astype(np.float64) ** 2).sum(axis=1))
        spread = [f"{norms.min():.4g}", f"{np.median(norms):.4g}", f"{norms.max():.4g}"]
        assert row_of(text, name) == [name, str(len(agents)), str(values.shape[1]), "float32", "momentum", *spread]
    assert "NOT FINITE" not in text


def test_each_agent_has_what_it_holds_and_its_norms(inspect: Callable[..., tuple[int, str, str]]) -> None:
    text = inspect(NEWEST, "--agents")[1]
    checkpoint = Checkpoint(NEWEST)
    kinds = ["first", "second", "first+second", "first+second"]
    norms = {  # of the one agent with one slice
        name: np.linalg.norm(checkpoint.read(f"slices/{name}/parameters", np.array([1])))
        for name in ("encoder[second]", "redundant_head", "unique_head[second]")
    }
    assert [row_of(text, str(agent))[1] for agent in range(4)] == kinds
    expected = ", ".join(f"{name}={norm:.4g}" for name, norm in norms.items())
    assert " ".join(row_of(text, "1")[2:]) == expected


def test_large_arrays_are_read_in_parts(
    inspect: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = inspect(NEWEST, "--agents")
    monkeypatch.setattr(checkpointview, "READ_BYTES", 200)  # a row of some slices, several of others
    assert inspect(NEWEST, "--agents") == whole


def test_a_run_means_its_newest_sound_checkpoint(tmp_path: Path, inspect: Callable[..., tuple[int, str, str]]) -> None:
    run = tmp_path / "run"
    shutil.copytree(RECORDED, run)
    assert inspect(run)[1].startswith(f"{run / 'checkpoints' / 'round-000004'}: after round 4")
    shard = run / "checkpoints" / "round-000004" / "shard-0001.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    code, text, _ = inspect(run)
    assert code == 0
    flat = " ".join(text.split())
    assert flat.startswith(f"round-000004 is not used: {shard}: has {shard.stat().st_size} bytes, the manifest says")
    assert f"{run / 'checkpoints' / 'round-000002'}: after round 2" in flat
    assert inspect(shard.parent)[::2] == (5, f"error: {flat.split(': ', 1)[1].partition(' /')[0]}\n")


def test_the_same_on_other_shards_and_away_from_the_run(
    tmp_path: Path, inspect: Callable[..., tuple[int, str, str]]
) -> None:
    copy_dealt(Checkpoint(NEWEST), tmp_path / "a" / "b" / "copy", np.array([0, 1, 2, 0]), 3)
    there, here = inspect(NEWEST, "--agents")[1], inspect(tmp_path / "a" / "b" / "copy", "--agents")[1]
    assert "3 shards" in here
    assert "format version 2" in here
    assert row_of(here, "redundant_head") == row_of(there, "redundant_head")
    assert row_of(here, "3") == ["3", "?", *row_of(there, "3")[2:]]


def test_rows_that_are_not_finite_are_shouted_about(
    tmp_path: Path, inspect: Callable[..., tuple[int, str, str]]
) -> None:
    values, momentum = np.ones((5, 4)), np.zeros((5, 4))
    values[1, 2], values[4, 0], momentum[3, 3] = np.nan, -np.inf, np.inf
    shard = [rows(values), rows(momentum, "slices/head/momentum")]
    write_checkpoint(tmp_path / "c", 3, [shard])
    code, text, err = inspect(tmp_path / "c", "--agents")
    assert (code, err) == (0, "")
    assert "NOT FINITE: parameters of head in 2 agents: 1, 4" in text
    assert "NOT FINITE: momentum of head in 1 agent: 3" in text
    assert row_of(text, "head")[-3:] == ["2", "2", "2"]
    assert [row_of(text, str(agent))[-1] for agent in (0, 1, 4)] == ["head=2", "head=nan", "head=inf"]


@pytest.mark.parametrize("values", [np.ones((3, 2), np.int64), np.ones((3, 2, 2)), np.array([b"a", b"b"])])
def test_what_is_no_slice_is_refused(
    values: np.ndarray, tmp_path: Path, inspect: Callable[..., tuple[int, str, str]]
) -> None:
    write_checkpoint(tmp_path / "c", 3, [[rows(values)]])
    code, _, err = inspect(tmp_path / "c")
    assert (code, "head is not kept as one row of numbers an agent" in err) == (5, True)


def test_what_is_neither_a_run_nor_a_checkpoint_is_refused(
    tmp_path: Path, inspect: Callable[..., tuple[int, str, str]]
) -> None:
    assert inspect(tmp_path / "nowhere")[::2] == (
        5, f"error: {tmp_path}/nowhere: no directory. Name a run, or one of its checkpoints: "
        "RUN/checkpoints/round-...\n",
    )  # fmt: skip
    assert "neither a checkpoint (no manifest.json) nor a run (no job.yaml)" in inspect(tmp_path)[2]
    shutil.copy(RECORDED / "job.yaml", tmp_path)
    assert "no checkpoint has been written yet" in inspect(tmp_path)[2]
    shutil.copytree(NEWEST, tmp_path / "checkpoints" / "round-000004")
    manifest = tmp_path / "checkpoints" / "round-000004" / "manifest.json"
    manifest.write_text(re.sub(r'"format_version": 1', '"format_version": 99', manifest.read_text()))
    code, _, err = inspect(tmp_path)
    assert (code, "none of its checkpoints can be trusted" in err) == (5, True)
    assert "round-000004 is not used" in err
    assert "format version 99 is newer" in inspect(manifest.parent)[2]
