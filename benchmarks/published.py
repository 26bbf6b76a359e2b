"""Results of a study small enough for a repository, and back into a study directory.

    .venv/bin/python benchmarks/published.py pack runs/headline docs/studies/headline.h5.xz
    .venv/bin/python benchmarks/published.py unpack docs/studies/headline.h5.xz runs/headline
    .venv/bin/parse-mpi report runs/headline

The ledger of all launches lies beside the results, as headline.ledger.csv.xz. What is left out: predictions on
validation samples, how sure agents were of theirs, and in which folder the study lay. Tables, pictures and verdicts
need none of it: `parse-mpi report` and `benchmarks/claims.py` work on what was unpacked, and `parse-mpi compare` goes
on from there.
"""

from __future__ import annotations

import argparse
import lzma
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from parse_mpi.compare.directory import RECORD, RESULT
from parse_mpi.compare.studyfile import SPLITS, Result, load_study, write_study

LEDGER = "ledger.csv"


def slim(result: Result | None) -> Result | None:
    """The same without what compresses badly."""
    if result is None or result.final is None:
        return result
    final, tested = result.final, SPLITS.index("test")
    predicted = np.full_like(final.predicted, -1)
    predicted[:, tested] = final.predicted[:, tested]
    return replace(result, final=replace(final, predicted=predicted, confidence=np.full_like(final.confidence, np.nan)))


def portable(command: str) -> str:
    """A command without the folders of one machine."""
    return " ".join(Path(word).name if word.startswith("/") else word for word in command.split())


def packed_ledger(packed: Path) -> Path:
    """Where the ledger lies: beside the results."""
    return packed.with_name(packed.name.removesuffix(".h5.xz") + f".{LEDGER}.xz")


def pack(directory: Path, packed: Path) -> None:
    study = load_study(directory / RESULT)
    cells = tuple(replace(cell, result=slim(cell.result)) for cell in study.cells)
    told = {**study.provenance, "command": portable(study.provenance["command"])}
    small = replace(study, cells=cells, provenance=told)
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder) / RESULT, small)
        packed.parent.mkdir(parents=True, exist_ok=True)
        packed.write_bytes(lzma.compress((Path(folder) / RESULT).read_bytes(), preset=9))
    packed_ledger(packed).write_bytes(lzma.compress((directory / LEDGER).read_bytes(), preset=9))


def unpack(packed: Path, directory: Path) -> None:
    if (directory / RESULT).exists():
        raise SystemExit(f"{directory / RESULT} is there already; unpack into another directory")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULT).write_bytes(lzma.decompress(packed.read_bytes()))
    (directory / LEDGER).write_bytes(lzma.decompress(packed_ledger(packed).read_bytes()))
    (directory / RECORD).write_text(load_study(directory / RESULT).provenance["study"], encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    {"pack": pack, "unpack": unpack}[options.what](options.source, options.target)


if __name__ == "__main__":
    main()
