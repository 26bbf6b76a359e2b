"""The directory of a study, and what lies in it.

DIR/study.yaml    the study as it was started last       DIR/cells/<cell>/            run directories
DIR/tuning.yaml   what tuning has frozen                 DIR/tuning/<trial>/          likewise
DIR/ledger.csv    every launch that was ever made        DIR/calibration/<trial>/     likewise, a few rounds each
DIR/study.h5      all results                            DIR/logs/                    what launches have printed
"""

from __future__ import annotations

from pathlib import Path

from parse_mpi.errors import JobError, StorageError
from parse_mpi.storage.write import storage_errors, write_text
from parse_mpi.yamlfile import read_yaml

RECORD = "study.yaml"
RESULT = "study.h5"


def make_directory(name: str, text: str, out: Path) -> None:
    """Make the directory, or take up one of the same study. Raises StorageError where it holds something else.

    text: of the study file.
    """
    record = out / RECORD
    with storage_errors(out, "can't be made"):
        out.mkdir(parents=True, exist_ok=True)
        found = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
    if found and RECORD not in found:
        raise StorageError(f"{out}: holds something else than a study; choose an empty or a new directory")
    if found and (earlier := _name_in(record)) != name:
        raise StorageError(f"{out}: holds the study {earlier}, not {name}; choose another --out")
    write_shared(record, text)


def write_shared(path: Path, text: str) -> None:
    """Write a file that other compares may be writing at this moment, as array tasks do. Raises StorageError."""
    try:
        if _text_of(path) != text:
            write_text(path, text)
    except StorageError:
        if _text_of(path) != text:  # of two writers at once, one fails; both meant the same
            raise


def _text_of(path: Path) -> str | None:
    with storage_errors(path, "can't be read"):
        return path.read_text("utf-8", "replace") if path.exists() else None


def _name_in(record: Path) -> str:
    try:
        value = read_yaml(record).value
    except JobError:
        value = None
    return str(value.get("name")) if isinstance(value, dict) else "of an unreadable study.yaml"
