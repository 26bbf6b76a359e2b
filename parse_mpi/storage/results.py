"""Reads what a command has derived from runs and can derive anew: study.h5 and scaling.h5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from parse_mpi.errors import StorageError
from parse_mpi.storage.read import Content, read_hdf5

Result = TypeVar("Result")


def read_result(path: Path, form: str, version: int, command: str, build: Callable[[Content], Result]) -> Result:
    """What `build` makes of a sealed file of this form, of any format version up to `version`.

    command: of parse-mpi, that writes such files. Raises StorageError where there is no such file, or it is damaged, or
    of a newer version.
    """
    content = read_hdf5(path)
    root = content.attributes.get("", {})
    found = root.get("format_version")
    if root.get("format") != form or not isinstance(found, int):
        raise StorageError(
            f"{path}: no result of parse-mpi {command}: format {root.get('format')!r}, version {found!r}"
        )
    if found > version or not content.is_sealed:
        what = f"format version {found}" if found > version else "without its seal, so damaged or edited"
        raise StorageError(f"{path}: {what}; parse-mpi {command} with --report writes it anew")
    try:
        return build(content)
    except (KeyError, ValueError, TypeError) as error:
        raise StorageError(f"{path}: not what parse-mpi {command} writes: {error!r}") from error
