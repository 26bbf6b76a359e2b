"""Is one value of a setting good for all data sets? Regret of the choice that the other data sets would make.

    PARSE_MPI_DATA=FOLDER .venv/bin/parse-mpi compare jobs/studies/beta.yaml --out runs/beta
    .venv/bin/python benchmarks/regret.py runs/beta --axis beta

For every data set: the level that is best on its own validation data, the one that is best on validation over all other
data sets, and what the second loses against the first on test; accuracies in percent, means over seeds and agents after
the last round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from parse_mpi.compare.studyfile import Study, load_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="directory of a finished study")
    parser.add_argument("--axis", required=True, help="axis whose levels are chosen from")
    options = parser.parse_args()
    study = load_study(options.study / "study.h5")
    levels, data = study.axes[options.axis], study.axes["data"]
    validation, test = (table(study, options.axis, split) for split in ("validation", "test"))
    print("| data | " + " | ".join(levels) + " | best alone | best elsewhere | regret |")
    print("|---" * (len(levels) + 4) + "|")
    for row, name in enumerate(data):
        own = int(validation[row].argmax())
        elsewhere = int(np.delete(validation, row, axis=0).mean(0).argmax())
        regret = test[row, own] - test[row, elsewhere]
        cells = [f"{value:.1f}" for value in test[row]]
        print(f"| {name} | {' | '.join(cells)} | {levels[own]} | {levels[elsewhere]} | {regret:.1f} |")


def table(study: Study, axis: str, split: str) -> np.ndarray:
    """Accuracy (%) [data, level], mean over agents and seeds."""
    return np.array(
        [
            [
                100 * np.mean([np.nanmean(cell.result.accuracy(split=split)) for cell in cells if cell.result])
                for cells in (study.select(data=name, **{axis: level}) for level in study.axes[axis])
            ]
            for name in study.axes["data"]
        ]
    )


if __name__ == "__main__":
    main()
