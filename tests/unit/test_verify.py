"""`parse-mpi verify`: whatever is damaged in a run directory is named, the rest is checked all the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checkpoint_files import copy_dealt
from damage import flip, forge

from parse_mpi.cli import main
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.manifest import MANIFEST_NAME
from parse_mpi.storage.metrics import consolidate, segments_and_tables, write_segment
from parse_mpi.storage.rundir import RunDirectory, RunState

RECORDED = Path(__file__).parents[1] / "format_1" / "run"
ROUND_2, ROUND_4 = "checkpoints/round-000002/", "checkpoints/round-000004/"
CHECKPOINTS = (
    *(ROUND_2 + name for name in (MANIFEST_NAME, "shard-0000.h5", "shard-0001.h5")),
    *(ROUND_4 + name for name in (MANIFEST_NAME, "shard-0000.h5", "shard-0001.h5", "shard-0002.h5", "view.h5")),
)
METRICS = (
    *(f"metrics/{name}.h5" for name in ("round-000002", "round-000004", "table-ending", "table-plan")),
    "metrics.h5",
)
ALL = {"job.yaml", "state.json", *CHECKPOINTS, *METRICS}


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after round 4 of 6; its older checkpoint is of format version 1, the newer one of this."""
    run = tmp_path_factory.mktemp("sound") / "run"
    shutil.copytree(RECORDED, run)
    shutil.rmtree(run / ROUND_4)
    copy_dealt(Checkpoint(RECORDED / ROUND_4), run / ROUND_4, np.array([2, 0, 1, 0]), 3)
    consolidate(run)
    return run


@pytest.fixture
def run(sound_run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound_run, tmp_path / "run"))


@dataclass(frozen=True)
class Verdict:
    """What the command said. sound: files with a line that says ok; damaged: lines that say DAMAGED; text: all."""

    code: int
    sound: set[str]
    damaged: list[str]
    restart: str
    last: str
    text: str


@pytest.fixture
def verify(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], Verdict]:
    def verify() -> Verdict:
        capsys.readouterr()
        code = main(["verify", str(run)])
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        restart = [line for line in lines if line.startswith("restart: ")]
        return Verdict(
            code,
            {match[1] for line in lines if (match := re.fullmatch(r"ok       (\S+) \([0-9.]+ k?B\)", line))},
            [line.removeprefix("DAMAGED  ") for line in lines if line.startswith("DAMAGED  ")],
            restart[0] if restart else "",
            lines[-1],
            out,
        )

    return verify


def values_in(path: Path) -> int:
    """Where the first value of some data set of an HDF5 file lies."""
    offsets: list[int] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: offsets.append(item.id.get_offset()) if getattr(item, "size", 0) else None)
    return offsets[-1]


# -- what is sound, and what is not ------------------------------------------------------------------------------------


def test_a_sound_run_is_said_to_be_sound_file_by_file(run: Path, verify: Callable[[], Verdict]) -> None:
    verdict = verify()
    assert (verdict.code, verdict.damaged) == (0, [])
    assert verdict.sound == ALL
    assert verdict.restart == "restart: goes on after round 4 of 6, from checkpoints/round-000004"
    size = sum((run / name).stat().st_size for name in ALL)
    assert re.fullmatch(rf"all sound: {len(ALL)} files, {size / 1000:.1f} kB in \d+\.\d s", verdict.last)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_flipped_bit_in_a_checkpoint_is_found(name: str, run: Path, verify: Callable[[], Verdict]) -> None:
    size = (run / name).stat().st_size
    for position in (8, size // 2):
        flip(run / name, position)
        verdict = verify()
        assert verdict.code == 5
        assert [line.startswith(f"{name}: ") for line in verdict.damaged] == [True], (position, verdict.damaged)
        unread = {other for other in CHECKPOINTS if other.startswith(name.removesuffix(MANIFEST_NAME))}
        assert verdict.sound == ALL - (unread if name.endswith(MANIFEST_NAME) else {name})
        loaded = 2 if name.startswith(ROUND_4) and "view" not in name else 4
        assert verdict.restart == f"restart: goes on after round {loaded} of 6, from checkpoints/round-00000{loaded}"
        assert verdict.last.startswith("1 fault: ")
        flip(run / name, position)


@pytest.mark.parametrize("name", METRICS)
def test_a_flipped_value_in_metrics_is_found(name: str, run: Path, verify: Callable[[], Verdict]) -> None:
    flip(run / name, values_in(run / name))
    verdict = verify()
    assert verdict.code == 5
    assert verdict.damaged[0].startswith(f"{name}: ")
    assert verdict.sound == ALL - {name}
    if name.endswith("round-000002.h5"):
        assert verdict.damaged[1].startswith("restart: it would be refused, because the metrics")
    else:
        loaded = 2 if name.endswith("round-000004.h5") else 4
        assert verdict.restart.startswith(f"restart: goes on after round {loaded} of 6")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("job.yaml", "seeed: 1\n", "unknown key"), ("state.json", '{"round": 4}', "not the state of a run")],
)
def test_what_has_no_digest_must_be_readable(
    name: str, text: str, reason: str, run: Path, verify: Callable[[], Verdict]
) -> None:
    (run / name).write_text(text)
    verdict = verify()
    assert (verdict.code, verdict.sound, len(verdict.damaged)) == (5, ALL - {name}, 1)
    assert f"{name}:" in verdict.text
    assert reason in verdict.text
    assert verdict.restart.startswith(f"restart: is refused until {name} can be read, and then goes on after round 4")


@pytest.mark.parametrize("name", sorted(ALL - {"job.yaml", "metrics.h5"}))
def test_a_missing_file_is_missed(name: str, run: Path, verify: Callable[[], Verdict]) -> None:
    (run / name).unlink()
    verdict = verify()
    assert verdict.code == 5
    assert name not in verdict.sound
    assert verdict.sound >= ALL - set(CHECKPOINTS) - {name, "metrics.h5"}
    assert len(verdict.damaged) >= 1


def test_metrics_must_follow_from_their_segments(run: Path, verify: Callable[[], Verdict]) -> None:
    kept = (run / "metrics.h5").read_bytes()
    with h5py.File(run / "metrics" / "round-000004.h5") as file:
        segment = {"rounds/round": file["rounds/round"][()], "rounds/loss": file["rounds/loss"][()] + 1}
    write_segment(run, 3, 4, segment, {})
    (run / "metrics.h5").write_bytes(kept)
    verdict = verify()
    assert verdict.sound == ALL - {"metrics.h5"}
    assert len(verdict.damaged) == 1
    assert "does not hold what the segments and tables give" in verdict.damaged[0]
    assert "rounds/loss" in verdict.damaged[0]
    assert "rounds/round," not in verdict.damaged[0]


def other_digest(body: dict[str, Any]) -> None:
    body["arrays"]["slices/redundant_head/momentum"]["parts"][1]["sha256"] = "0" * 64


def other_agents(body: dict[str, Any]) -> None:
    parts = [entry["parts"] for name, entry in body["arrays"].items() if name.startswith("slices/redundant_head/")]
    for first, second, *_ in parts:  # agents 1 and 3, agent 2
        first["agents"], second["agents"] = [[1, 2]], [[3, 3]]


@pytest.mark.parametrize(
    ("change", "reason"), [(other_digest, "momentum does not have the sha256"), (other_agents, "holds other ids")]
)
def test_arrays_are_held_against_the_manifest(
    change: Callable[[dict[str, Any]], None], reason: str, run: Path, verify: Callable[[], Verdict]
) -> None:
    forge(run / ROUND_4, change)
    verdict = verify()
    assert verdict.code == 5
    assert reason in verdict.damaged[0]
    assert "shard-000" in verdict.damaged[0]


# -- where a restart would begin ---------------------------------------------------------------------------------------


def test_no_sound_checkpoint_is_no_restart(run: Path, verify: Callable[[], Verdict]) -> None:
    for name in (ROUND_2, ROUND_4):
        flip(run / name / "shard-0001.h5", 999)
    verdict = verify()
    assert [line for line in verdict.damaged if "none of the checkpoints can be trusted" in line]
    assert (verdict.code, verdict.restart, verdict.last.split(":")[0]) == (5, "", "3 faults")


def test_a_checkpoint_that_vanished_is_missed(run: Path, verify: Callable[[], Verdict]) -> None:
    shutil.rmtree(run / ROUND_4)
    verdict = verify()
    assert verdict.code == 5
    assert verdict.damaged == ["restart: the checkpoint of round 4, which state.json names, is not there"]


def test_a_missing_segment_stands_in_the_way(run: Path, verify: Callable[[], Verdict]) -> None:
    (run / "metrics" / "round-000002.h5").unlink()
    (run / "metrics.h5").unlink()
    verdict = verify()
    assert len(verdict.damaged) == 1
    assert verdict.damaged[0].startswith("restart: it would be refused, because the metrics")


def test_what_killed_writes_left_is_said_and_is_no_damage(run: Path, verify: Callable[[], Verdict]) -> None:
    left = [
        ".state.json.0123abcd.tmp",
        "checkpoints/.round-000006.0123abcd.tmp",
        "metrics/.round-000006.h5.01234567.tmp",
    ]
    for name in left:
        (run / name).mkdir()
    verdict = verify()
    assert (verdict.code, verdict.damaged) == (0, [])
    assert [line.split()[1].rstrip(":") for line in verdict.text.splitlines() if line.startswith("leftover ")] == left


def test_a_run_that_has_just_begun_is_sound(run: Path, verify: Callable[[], Verdict]) -> None:
    shutil.rmtree(run / "checkpoints")
    for path in [*segments_and_tables(run), run / "metrics.h5"]:
        path.unlink()
    RunDirectory(run).write_state(RunState(round=0, rounds=6, status="running"))
    verdict = verify()
    assert (verdict.code, verdict.sound) == (0, {"job.yaml", "state.json"})
    assert verdict.restart == "restart: begins at round 0; there is no checkpoint yet"


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_newer_format_is_not_called_sound(run: Path, verify: Callable[[], Verdict]) -> None:
    forge(run / ROUND_4, lambda body: body.update(format_version=99))
    verdict = verify()
    assert "format version 99 is newer than this parse-mpi" in verdict.damaged[0]
    assert verdict.restart.startswith("restart: goes on after round 2")


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 5
    assert "holds no run (no job.yaml)" in capsys.readouterr().err


def test_it_needs_neither_torch_nor_mpi(run: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, mpi4py=None); from parse_mpi.cli import main; "
        f"sys.exit(main(['verify', {str(run)!r}]) or main(['inspect', {str(run)!r}, '--agents']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "all sound" in done.stdout
