"""restarts.json: how many launches in a row of a requeued job have ended where the one before did.

A batch script that puts itself back into the queue must not do so for ever: whatever ends its launches before they get
further (a bad node, too little memory, a time limit shorter than a round) would end the next one too.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parse_mpi.storage.read import read_small_file
from parse_mpi.storage.rundir import LARGEST_STATE_BYTES, RunDirectory
from parse_mpi.storage.write import storage_errors, write_text


class Restarts(BaseModel):
    """round: where the run was when a launch last ended. in_vain: launches in a row, that one included, that found and
    left it there."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    round: int = Field(ge=0)
    in_vain: int = Field(ge=0)


def count_ended_launch(run: RunDirectory, done: int, first: bool) -> int:
    """To be told once after every launch of a job: at which round the run is. Returns launches in a row in vain.

    first: of this job, so that what earlier jobs did no longer counts. Raises StorageError where the file can't be
    written.
    """
    before = None if first else _read(run)
    known = before or Restarts(round=0, in_vain=0)
    now = Restarts(round=done, in_vain=0 if done > known.round else known.in_vain + 1)
    write_text(run.restarts_path, now.model_dump_json() + "\n")
    return now.in_vain


def _read(run: RunDirectory) -> Restarts | None:
    """What was written last; None where there is nothing, or nothing that can be understood: then counting begins."""
    with storage_errors(run.restarts_path, "can't be read"):
        try:
            return Restarts.model_validate_json(read_small_file(run.restarts_path, LARGEST_STATE_BYTES))
        except (FileNotFoundError, ValidationError):
            return None
