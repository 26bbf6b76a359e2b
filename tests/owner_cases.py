"""A run directory, launches that claim it, and owners that are no more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from parse_mpi.errors import StorageError
from parse_mpi.storage import owner as owner_module
from parse_mpi.storage.owner import Owner
from parse_mpi.storage.rundir import RunDirectory


class Voice(list[str]):
    """Collects what the user is told."""

    def say(self, text: str) -> None:
        self.append(text)

    def warn(self, text: str) -> None:
        self.append(f"WARNING {text}")


def new_run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.job_path.write_text("name: x\n")
    return run


def beat_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats, and patience with those of others, in tenths of a second."""
    monkeypatch.setattr(owner_module, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(owner_module, "WATCH_S", 0.2)
    monkeypatch.setattr(owner_module, "POLL_S", 0.02)


def claim(run: RunDirectory, voice: Voice | None = None) -> Owner:
    voice = Voice() if voice is None else voice
    return Owner.claim(run, voice.say, voice.warn)


def try_to_claim(run: RunDirectory) -> Owner | None:
    """None where it is somebody else's."""
    try:
        return claim(run)
    except StorageError as error:
        if "another launch is at work there" not in str(error):
            raise
        return None


def content(run: RunDirectory) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run.owner_path.read_text())
    return values


def leave_behind(run: RunDirectory, **changes: Any) -> None:
    """The file of an owner that was killed: this process, but for the changes."""
    record = owner_module._this_process().model_dump() | changes
    run.owner_path.write_text(json.dumps(record))


def dead_pid() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def names(run: RunDirectory) -> set[str]:
    return {entry.name for entry in run.path.iterdir()} - {"checkpoints", "metrics", "log", "job.yaml"}
