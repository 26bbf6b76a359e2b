"""Tuning: for every pair of data and method some configurations on a few seeds; the best on validation is frozen.

No launch of it evaluates the test split (`evaluate.test: false`), and its seeds are none that methods are compared on.
The choice, and all scores that led to it, stand in DIR/tuning.yaml; as long as the study asks for the same launches,
the choice stays.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parse_mpi.compare.choices import Choice, Pair, Tried
from parse_mpi.compare.reading import StudyFile
from parse_mpi.compare.schema import ALL_METHODS, DATA, METHOD, Settings
from parse_mpi.compare.search import draw_settings
from parse_mpi.compare.standing import is_finished, run_of, validation_score
from parse_mpi.compare.trials import Levels, Resolver, Trial

UNSEEN: Settings = {"evaluate.test": False, "evaluate.predictions": False}
DRAWS = 20  # per configuration wanted, until a space counts as exhausted


@dataclass(frozen=True)
class Configuration:
    """Settings that are tried, and a trial for each tuning seed."""

    settings: Settings
    trials: tuple[Trial, ...]


def configurations(study: StudyFile, resolver: Resolver) -> dict[Pair, list[Configuration]]:
    """What is tried for every pair: first the job as it is, then what the seed draws, no job twice.

    Where a space has fewer different jobs, there are fewer. Problems of the jobs are left with the resolver.
    """
    return {
        (data, method): _configurations(study, resolver, data, method)
        for data in study.spec.cells[DATA]
        for method in study.spec.cells[METHOD]
    }


def key_of(tried: Iterable[Configuration]) -> str:
    """sha256 of what decides the scores: another key means another search."""
    jobs = [trial for configuration in tried for trial in configuration.trials]
    told = [(trial.digest, trial.job.train.rounds, trial.job.evaluate.every) for trial in jobs]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def missing(tried: Mapping[Pair, Sequence[Configuration]], frozen: Mapping[Pair, Choice]) -> list[Trial]:
    """The trials of all pairs that no frozen choice is for."""
    return [
        trial
        for pair, tries in tried.items()
        if pair not in frozen or frozen[pair].key != key_of(tries)
        for configuration in tries
        for trial in configuration.trials
    ]


def choose(study_dir: Path, tries: Sequence[Configuration]) -> Choice:
    """The configuration with the highest mean score over all seeds, the first of equals."""
    tried = tuple(
        Tried(configuration.settings, tuple(_score(study_dir, trial) for trial in configuration.trials))
        for configuration in tries
    )
    scores = np.array([one.score for one in tried])
    return Choice(key_of(tries), tried, None if np.isnan(scores).all() else int(np.nanargmax(scores)))


def _configurations(study: StudyFile, resolver: Resolver, data: str, method: str) -> list[Configuration]:
    tuning = study.spec.tuning
    assert tuning is not None
    space = {**tuning.space.get(ALL_METHODS, {}), **tuning.space.get(method, {})}
    levels = tuning_levels(study, data, method)
    found, seen, number = list[Configuration](), set[tuple[str, str, str]](), 0
    while len(found) < tuning.configurations and number < DRAWS * tuning.configurations:
        settings = draw_settings(space, tuning.seed, data, method, number) if number else {}
        number += 1
        trials = resolver.trials("tuning", f"{data},{method},{len(found)}", levels, tuning.seeds, settings, UNSEEN)
        if not trials:
            break  # the resolver knows what is wrong
        job = trials[0].job
        launched = trials[0].digest, job.train.model_dump_json(), job.evaluate.model_dump_json()
        if launched not in seen:
            seen.add(launched)
            found.append(Configuration(settings, tuple(trials)))
    return found


def tuning_levels(study: StudyFile, data: str, method: str) -> Levels:
    """The levels at which a pair is tuned, by axis in the order of the study."""
    at = {**study.spec.tuning.at, DATA: data, METHOD: method} if study.spec.tuning else {DATA: data, METHOD: method}
    return {axis: at.get(axis, next(iter(levels))) for axis, levels in study.spec.cells.items()}


def _score(study_dir: Path, trial: Trial) -> float:
    return validation_score(run_of(study_dir, trial)) if is_finished(study_dir, trial) else math.nan
