"""The run directory: where everything that belongs to one run lies, and what state the run is in.

RUN/job.yaml  provenance.yaml  state.json  owner.json  restarts.json  metrics.h5  metrics/  checkpoints/  log/
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from parse_mpi.errors import StorageError
from parse_mpi.storage.read import read_small_file
from parse_mpi.storage.write import storage_errors, sync_directory, write_text

LARGEST_STATE_BYTES = 1 << 20

_FOLDERS = ("checkpoints", "metrics", "log")
_FILES = ("job.yaml", "provenance.yaml", "state.json", "owner.json", "restarts.json", "metrics.h5")


def utc_now() -> str:
    """The time as files tell it: ISO 8601 with its zone. For people: clocks differ, and go backwards."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class RunState(BaseModel):
    """state.json: how far a run has come and why it is not running, if it is not. `time` is UTC, ISO 8601."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    round: int = Field(ge=0)
    rounds: int = Field(ge=0)
    status: Literal["running", "finished", "stopped", "failed"]
    reason: str = ""
    exit_code: int | None = Field(None, ge=0, le=255)
    time: str = Field(default_factory=utc_now)

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, time: str) -> str:
        if datetime.fromisoformat(time).tzinfo is None:
            raise ValueError("no time zone")
        return time


class RunDirectory:
    """The paths of one run. Nothing is made or read before a method is called."""

    def __init__(self, path: Path):
        self.path = Path(os.path.realpath(path))  # Path.resolve raises what is no OSError where links go in circles
        self.job_path = self.path / "job.yaml"
        self.provenance_path = self.path / "provenance.yaml"
        self.state_path = self.path / "state.json"
        self.owner_path = self.path / "owner.json"
        self.restarts_path = self.path / "restarts.json"
        self.metrics_path = self.path / "metrics.h5"
        self.log_dir = self.path / "log"

    def exists(self) -> bool:
        """Whether a run was started here. Raises StorageError where that can't be seen."""
        with storage_errors(self.path, "can't be read"):
            return self.job_path.is_file()

    def require(self) -> None:
        """Raise StorageError where no run was started here."""
        if self.exists():
            return
        what = "holds no run (no job.yaml)" if self.path.is_dir() else "there is no such directory"
        raise StorageError(
            f"{self.path}: {what}. Check the path, or start a run there: parse-mpi run JOB --out {self.path}"
        )

    def make(self) -> None:
        """Make the directory, where it is not there, and nothing in it.

        Raises StorageError where it is a file, or holds something else than a run.
        """
        with storage_errors(self.path, "can't be made"):
            self._refuse_strangers()
            self.path.mkdir(parents=True, exist_ok=True)
            sync_directory(self.path.parent)

    def create(self) -> None:
        """Make the directory and its folders; an existing run is left as it is.

        Raises StorageError like make(), and where a file stands in the place of a folder.
        """
        self.make()
        for folder in _FOLDERS:
            path = self.path / folder
            with storage_errors(path, "can't be made"):
                path.mkdir(exist_ok=True)
        with storage_errors(self.path):
            sync_directory(self.path)

    def fresh(self) -> Path | None:
        """Make room for a new run: what lies here moves aside to RUN.previous-K, K = 1, 2, ...; nothing is deleted.

        Returns where it went, None if there was nothing. Raises StorageError like create().
        """
        self.make()
        previous = None
        if any(entry != self.owner_path for entry in self.path.iterdir()):
            previous = self._first_free_name()
            with storage_errors(self.path, f"can't be moved to {previous}"):
                os.rename(self.path, previous)
        self.create()
        return previous

    def read_state(self) -> RunState | None:
        """The content of state.json, None before the first write.

        Raises StorageError where it can't be read or trusted.
        """
        try:
            return RunState.model_validate_json(read_small_file(self.state_path, LARGEST_STATE_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.state_path}: can't be read: {error.strerror}; check its permissions.") from error
        except ValidationError as error:
            raise StorageError(
                f"{self.state_path}: not the state of a run: it is damaged, or another version wrote it.\n"
                "Move it aside and start the same command again: the run goes on from its newest checkpoint."
            ) from error

    def write_state(self, state: RunState) -> None:
        """Replace state.json in one step. Raises StorageError."""
        write_text(self.state_path, state.model_dump_json(indent=2) + "\n")

    def _refuse_strangers(self) -> None:
        if not self.path.exists():
            return
        if self.exists():
            if not any((self.path / folder).exists() for folder in _FOLDERS):  # which are made before job.yaml
                raise StorageError(
                    f"{self.path}: holds no run but a job.yaml, which the run's would replace; "
                    "choose an empty or a new directory."
                )
            return
        if not self.path.is_dir():
            raise StorageError(f"{self.path}: is a file; choose a directory for the run.")
        known = {*_FOLDERS, *_FILES}
        strangers = sorted(e.name for e in self.path.iterdir() if e.name not in known and not _is_leftover(e))
        if strangers:
            listed = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
            raise StorageError(
                f"{self.path}: holds no run (no job.yaml) but {listed}; choose an empty or a new directory."
            )

    def _first_free_name(self) -> Path:
        number = 1
        while (candidate := self.path.with_name(f"{self.path.name}.previous-{number}")).exists():
            number += 1
        return candidate


def _is_leftover(path: Path) -> bool:
    """A temporary file of a write that was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")
