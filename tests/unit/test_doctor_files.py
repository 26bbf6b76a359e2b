"""What the doctor finds out about a directory, on file systems that keep their promises and on such that don't."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from parse_mpi.run.doctor_files import Alone, Ranks, check_directory
from parse_mpi.run.findings import Finding
from parse_mpi.storage import probe


def examined(out: Path, ranks: Ranks | None = None) -> Finding:
    """The one finding; nothing is left of the trials."""
    folder = probe.nearest_directory(out)
    before = sorted(folder.iterdir())
    (finding,) = check_directory(ranks or Alone(), out)
    assert sorted(folder.iterdir()) == before
    assert bool(finding.next_step) == (finding.level != "ok")
    return finding


def test_a_directory_that_is_still_to_be_made(tmp_path: Path) -> None:
    finding = examined(tmp_path / "runs" / "first")
    assert finding.level == "ok", finding
    assert finding.text.startswith(f"{tmp_path} (")
    assert "renames are atomic, O_EXCL holds" in finding.text


def test_a_directory_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    finding = examined(tmp_path)
    assert (finding.level, finding.text) == ("FAIL", f"{tmp_path}: Permission denied")


def test_a_flush_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    finding = examined(tmp_path)
    assert finding.level == "FAIL"
    assert "rank 0: flushing and renaming a file: Input/output error" in finding.text


def test_a_flush_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "flush_seconds", lambda folder, name: 2.5)
    finding = examined(tmp_path)
    assert finding.level == "note"
    assert "fsync of 1 MB takes 2500.0 ms" in finding.text


def test_a_rename_that_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Path, target: Path) -> None:
        with open(target, "wb", buffering=0) as file:
            content = source.read_bytes()
            file.write(content[:100])
            time.sleep(0.001)
            file.write(content[100:])

    monkeypatch.setattr(os, "rename", copy)
    finding = examined(tmp_path)
    assert finding.level == "FAIL"
    assert "renames are not atomic" in finding.text


def test_a_file_that_can_be_created_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "create_alone", lambda path: True)
    finding = examined(tmp_path)
    assert finding.level == "FAIL"
    assert "O_EXCL does not hold: one file was created up to 2 times" in finding.text


class WithAnother:
    """Rank 0, and another rank that tells what it is given to tell."""

    rank = 0
    size = 2

    def __init__(self, *told: Any):
        self.told = iter(told)

    def barrier(self) -> None: ...

    def all_json(self, value: Any) -> list[Any]:
        return [value, next(self.told)]

    def broadcast_json(self, value: Any) -> Any:
        return value


def test_ranks_that_do_not_share_the_directory(tmp_path: Path) -> None:
    finding = examined(tmp_path, WithAnother(False))
    assert finding.level == "FAIL"
    assert "ranks [1] do not see what rank 0 has made there" in finding.text


def test_two_ranks_that_both_created_a_file(tmp_path: Path) -> None:
    finding = examined(tmp_path, WithAnother(True, ["", 0.0, 0, [0] * 19 + [1]]))
    assert finding.level == "FAIL"
    assert "one file was created up to 2 times" in finding.text
    assert "2 ranks see the same" in examined(tmp_path, WithAnother(True, ["", 0.0, 0, [0] * 20])).text


def test_the_file_system_is_that_of_the_mount_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    lines = ["/dev/a / ext4 rw 0 0", f"server {tmp_path} nfs4 rw 0 0", f"b {tmp_path}/x tmpfs rw 0 0", f"c {tmp_path}/x lustre rw 0 0"]  # fmt: skip # noqa: E501
    mounts.write_text("\n".join(lines))
    monkeypatch.setattr(probe, "MOUNTS", mounts)
    assert probe.file_system(tmp_path / "xy") == "nfs4"
    assert probe.file_system(tmp_path / "x" / "y") == "lustre"
    assert probe.file_system(Path("/")) == "ext4"
    monkeypatch.setattr(probe, "MOUNTS", tmp_path / "gone")
    assert probe.file_system(tmp_path) == ""
