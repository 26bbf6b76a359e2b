"""The tables of `parse-mpi compare --plan`: how many launches a study has, and how long they will take."""

from __future__ import annotations

from collections.abc import Sequence

from parse_mpi.compare.choices import Pair
from parse_mpi.compare.estimate import Cost
from parse_mpi.compare.progress import clock
from parse_mpi.compare.runner import Comparison
from parse_mpi.compare.trials import Trial, pair_of
from parse_mpi.studies.tables import make_table, open_console

COLUMNS = ("data", "method", "rounds", "cells left", "tuning left", "each", "together", "how this is known")
UNKNOWN = "–"


def print_comparison_plan(comparison: Comparison) -> None:
    """Print both tables. Launches a few rounds of each pair of data and method of which nothing has finished."""
    spec, console = comparison.study.spec, open_console()
    axes = [[axis, str(len(levels)), ", ".join(levels)] for axis, levels in spec.cells.items()]
    axes.append(["seed", str(len(spec.seeds)), ", ".join(map(str, spec.seeds))])
    console.print(make_table(f"Study {spec.name}: axes", ("axis", "levels", "which"), ("axis", "which"), axes))
    cells, tuning = comparison.unfinished()
    costs = comparison.costs()
    pairs = dict.fromkeys(map(pair_of, (*cells, *tuning)))
    rows = [_row(pair, cells, tuning, costs.get(pair)) for pair in pairs]
    console.print(make_table("Launches left", COLUMNS, ("data", "method", "how this is known"), rows))
    total_s = sum(costs[pair_of(trial)].of(trial.job) for trial in (*cells, *tuning) if pair_of(trial) in costs)
    left = f"{len(cells)} cells and {len(tuning)} launches of tuning are left"
    at_once = spec.launch.at_once
    about = "about" if pairs.keys() <= costs.keys() else "more than"
    console.print(f"{left}: {about} {clock(total_s / at_once)} with {at_once} at a time")


def _row(pair: Pair, cells: Sequence[Trial], tuning: Sequence[Trial], cost: Cost | None) -> list[str]:
    own_cells, own_tuning = ([trial for trial in trials if pair_of(trial) == pair] for trials in (cells, tuning))
    jobs = [trial.job for trial in (*own_cells, *own_tuning)]
    lengths = sorted({job.train.rounds for job in jobs})
    numbers = [
        " to ".join(map(str, dict.fromkeys((lengths[0], lengths[-1])))),
        str(len(own_cells)),
        str(len(own_tuning)),
    ]
    if cost is None:
        return [*pair, *numbers, UNKNOWN, UNKNOWN, "unknown: its calibration failed"]
    seconds = [cost.of(job) for job in jobs]
    return [*pair, *numbers, clock(sum(seconds) / len(seconds)), clock(sum(seconds)), cost.source]
