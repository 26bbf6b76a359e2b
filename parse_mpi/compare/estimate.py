"""How long a study will take: from cells that are finished, otherwise from a launch of a few rounds for each pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parse_mpi.compare.choices import Pair
from parse_mpi.compare.ledger import Ledger
from parse_mpi.compare.reading import StudyFile
from parse_mpi.compare.standing import is_finished, run_of
from parse_mpi.compare.trials import Resolver, Trial, pair_of
from parse_mpi.compare.tuning import tuning_levels
from parse_mpi.job import Job
from parse_mpi.storage.metrics import Metrics, read_metrics

CALIBRATION_ROUNDS = 6
RARE = ("evaluate", "checkpoint")  # phases that most rounds do not have


@dataclass(frozen=True)
class Cost:
    """Seconds of a launch of some pair: start_s + round_s for each round + evaluation_s for each evaluation.

    source: what this was measured on, in words.
    """

    start_s: float
    round_s: float
    evaluation_s: float
    source: str

    def of(self, job: Job) -> float:
        evaluations = math.ceil(job.train.rounds / job.evaluate.every)
        return self.start_s + job.train.rounds * self.round_s + evaluations * self.evaluation_s


def measured_costs(study_dir: Path, trials: Sequence[Trial]) -> dict[Pair, Cost]:
    """Of pairs with finished cells, whose launches the ledger has timed: everything by the round."""
    seconds = Ledger(study_dir / "ledger.csv").seconds()
    found: dict[Pair, list[tuple[float, int]]] = {}
    for trial in trials:
        took = seconds.get((trial.purpose, trial.name), 0.0)
        if took and is_finished(study_dir, trial):
            found.setdefault(pair_of(trial), []).append((took, trial.job.train.rounds))
    return {
        pair: Cost(0.0, sum(s for s, _ in timed) / sum(n for _, n in timed), 0.0, f"measured on {len(timed)} finished")
        for pair, timed in found.items()
    }


def calibrations(study: StudyFile, resolver: Resolver, pairs: Sequence[Pair]) -> list[Trial]:
    """A short launch for each pair, at the levels where it is tuned; it evaluates once."""
    extra = {"train.rounds": CALIBRATION_ROUNDS, "evaluate.every": CALIBRATION_ROUNDS}
    return [
        trial
        for pair in pairs
        for trial in resolver.trials(
            "calibration", ",".join(pair), tuning_levels(study, *pair), study.spec.seeds[:1], {}, dict(extra)
        )
    ]


def calibrated_costs(study_dir: Path, trials: Sequence[Trial]) -> Mapping[Pair, Cost]:
    """What finished calibrations took. Raises StorageError where their metrics can't be read."""
    seconds = Ledger(study_dir / "ledger.csv").seconds()
    return {
        pair_of(trial): _calibrated(
            read_metrics(run_of(study_dir, trial).path), seconds.get((trial.purpose, trial.name), 0.0)
        )
        for trial in trials
        if is_finished(study_dir, trial)
    }


def _calibrated(metrics: Metrics, wall_s: float) -> Cost:
    """wall_s: of the whole launch. A round is the median of all but the first, which also warms up."""
    phases = list(np.atleast_1d(np.asarray(metrics.attributes["ranks/seconds"]["phase"])))
    by_round = np.nanmax(metrics["ranks/seconds"], axis=1)  # [R, phase] of the slowest rank
    rare = [phases.index(name) for name in RARE]
    rounds = np.delete(by_round, rare, axis=1).sum(1)
    round_s = float(np.median(rounds[1:]))
    evaluation_s = float(by_round[:, phases.index("evaluate")].sum()) / len(metrics["evaluations/round"])
    start_s = max(0.0, wall_s - len(rounds) * round_s - len(metrics["evaluations/round"]) * evaluation_s)
    return Cost(start_s, round_s, evaluation_s, f"extrapolated from {len(rounds)} rounds")
