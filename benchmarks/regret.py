"""Is one value of a setting good for all data sets? Regret of the choice that the other data sets would make.

    PARSE_MPI_DATA=FOLDER .venv/bin/parse-mpi compare jobs/studies/beta.yaml --out runs/beta
    .venv/bin/python benchmarks/regret.py runs/beta --axis beta --without 8

For every data set: the level that is best on its own validation data, the one that is best on validation over all other
data sets, and what the second loses against the first on test; accuracies in percent, means over seeds and agents after
the last round. A level that lacks a seed anywhere, because a cell failed, can't be chosen there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from parse_mpi.compare.schema import DATA, METHOD
from parse_mpi.compare.studyfile import Study, load_study
from parse_mpi.studies.scores import mean_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="directory of a finished study")
    parser.add_argument("--axis", required=True, help="axis whose levels are chosen from")
    parser.add_argument("--without", nargs="*", default=[], metavar="LEVEL", help="levels that are shown, never chosen")
    options = parser.parse_args()
    study = load_study(options.study / "study.h5")
    if set(study.axes) != {DATA, METHOD, options.axis} or len(study.axes[METHOD]) != 1 or len(study.axes[DATA]) < 2:
        parser.error(f"{study.name} must have several data sets, one method, and no other axis than {options.axis}")
    levels, data = study.axes[options.axis], study.axes[DATA]
    if unknown := set(options.without) - set(levels):
        parser.error(f"{options.axis} has no level {', '.join(sorted(unknown))}; it has {', '.join(levels)}")
    test, validation = table(study, options.axis, "test"), table(study, options.axis, "validation")
    validation[:, np.isin(levels, options.without)] = np.nan
    print("| data | " + " | ".join(levels) + " | best alone | best elsewhere | regret |")
    print("|---" * (len(levels) + 4) + "|")
    for row, name in enumerate(data):
        own = int(np.nanargmax(validation[row]))
        elsewhere = int(np.nanargmax(np.delete(validation, row, axis=0).mean(0)))
        cells = ["–" if np.isnan(value) else f"{value:.1f}" for value in test[row]]
        regret = test[row, own] - test[row, elsewhere]
        print(f"| {name} | {' | '.join(cells)} | {levels[own]} | {levels[elsewhere]} | {regret:.1f} |")


def table(study: Study, axis: str, split: str) -> np.ndarray:
    """Accuracy (%) [data, level], mean over agents and seeds; nan where a seed is missing."""
    score = mean_accuracy(split=split)

    def mean(name: str, level: str) -> float:
        scores = [score(cell) for cell in study.select(**{DATA: name, axis: level})]
        values = [float(found.value[0]) for found in scores if found is not None]
        return 100 * float(np.mean(values)) if len(values) == len(study.seeds) else np.nan

    return np.array([[mean(name, level) for level in study.axes[axis]] for name in study.axes[DATA]])


if __name__ == "__main__":
    main()
