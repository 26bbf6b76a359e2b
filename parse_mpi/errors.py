"""Every error that a user can meet, each with the exit code that a script can act on.

A message says what is wrong, where (file:line, agent, rank, round) and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130  # Ctrl-C, as a shell tells it: 128 + SIGINT
EXIT_CLOSED_PIPE = 141  # nobody reads the output, as of `parse-mpi verify RUN | head`: 128 + SIGPIPE
EXIT_TO_BE_CONTINUED = 75  # EX_TEMPFAIL: `parse-mpi status` of a run that stopped before its last round


def counted(count: int, thing: str) -> str:
    """`1 agent`, `2 agents`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


class ParseMpiError(Exception):
    """Base of all errors that are the user's to mend; printed without a traceback."""

    exit_code = EXIT_UNEXPECTED


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job: `where` is file:line (or a key path), `hint` the next step."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n    {self.hint}" if self.hint else "")


class JobError(ParseMpiError):
    """The job file is wrong; carries all problems at once."""

    exit_code = 2
    whole = "job"

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        head = f"{counted(len(self.problems), 'problem')} in the {self.whole}:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class StudyError(JobError):
    """The study file is wrong, or a job that it makes; carries all problems at once."""

    whole = "study"


class BatchError(JobError):
    """A site file or a request to Slurm is wrong; carries all problems at once."""

    whole = "batch script"


class DataError(ParseMpiError):
    """A data file breaks its layout: names file, data set and row."""

    exit_code = 3


class LaunchError(ParseMpiError):
    """The MPI world is not the one that was asked for, or its ranks disagree."""

    exit_code = 4


class StorageError(ParseMpiError):
    """A run directory, checkpoint or metrics file can't be written or trusted."""

    exit_code = 5


class EvictedError(StorageError):
    """The run directory belongs to another launch now."""


class NonFiniteError(ParseMpiError):
    """Training produced NaN or infinity; names agent, round and term."""

    exit_code = 6


class CellError(ParseMpiError):
    """Cells of a study failed; all others have their results."""

    exit_code = 7
