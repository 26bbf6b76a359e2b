"""DIR/ledger.csv: every launch that was ever made in a study, whatever came of it. Lines are only ever appended.

A launch has two lines with the same `launch`: one when it starts and one when it ends. Several compares may write at
the same time, array tasks for example.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from parse_mpi.compare.trials import Trial
from parse_mpi.storage.rundir import utc_now
from parse_mpi.storage.write import storage_errors

COLUMNS = (
    "time", "launch", "purpose", "name", "levels", "seed", "settings", "job_digest", "outcome", "seconds", "validation",
)  # fmt: skip
STARTED = "started"


@dataclass(frozen=True)
class Ledger:
    """The ledger of one study directory."""

    path: Path

    def add(self, launch: str, trial: Trial, outcome: str, seconds: float = 0.0, validation: float = math.nan) -> None:
        """Append one line. validation: mean ensemble accuracy on the validation split at the end, nan without it.

        Raises StorageError.
        """
        levels = ";".join(f"{axis}={level}" for axis, level in trial.levels.items())
        settings = json.dumps(trial.settings, sort_keys=True)
        score = "" if math.isnan(validation) else f"{validation:.6f}"
        row = (
            utc_now(), launch, trial.purpose, trial.name, levels, trial.seed, settings, trial.digest, outcome,
            f"{seconds:.2f}", score,
        )  # fmt: skip
        with storage_errors(self.path):
            self._begin()
            _append(self.path, row)

    def seconds(self) -> Mapping[tuple[str, str], float]:
        """(purpose, name) -> seconds of the launches that led to its last finish, together. Raises StorageError."""
        finished: dict[tuple[str, str], float] = {}
        so_far: dict[tuple[str, str], float] = {}
        for row in self._rows():
            key = (row["purpose"], row["name"])
            so_far[key] = so_far.get(key, 0.0) + float(row["seconds"])
            if row["outcome"] == "finished":
                finished[key] = so_far.pop(key)
        return finished

    def _rows(self) -> Iterator[Mapping[str, str]]:
        """All lines but those that a full disk has cut short, inside a quotation perhaps: no value spans two lines."""
        if self.path.exists():
            with storage_errors(self.path, "can't be read"), open(self.path, encoding="utf-8") as file:
                for line in islice(file, 1, None):
                    (values,) = csv.reader([line])
                    if len(values) == len(COLUMNS):
                        yield dict(zip(COLUMNS, values, strict=True))

    def _begin(self) -> None:
        """Make the file with its first line, once, whoever else does so at the same time."""
        if self.path.exists():
            return
        own = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            _append(own, COLUMNS)
            with suppress(FileExistsError):
                os.link(own, self.path)
        finally:
            own.unlink(missing_ok=True)


def _append(path: Path, row: tuple[object, ...]) -> None:
    """Write a line in one piece, so that those of several writers don't mix. Raises OSError."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        after_a_cut_line = size and os.pread(descriptor, 1, size - 1) != b"\n"
        line = b"\n" * after_a_cut_line + text.getvalue().encode()
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, "a line was cut short")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
