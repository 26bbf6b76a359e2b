"""The ready studies: each reads, and every cell of it, on one seed, is a sound job."""

import os
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import yaml

from parse_mpi.compare.reading import read_study
from parse_mpi.compare.schema import DATA
from parse_mpi.compare.trials import Resolver
from parse_mpi.compare.tuning import configurations

STUDIES = sorted((Path(__file__).parents[2] / "jobs" / "studies").glob("*.yaml"))
FEW = 2  # configurations: that the space of every method can be drawn from


def is_there(job: Path) -> bool:
    """Whether the data of a job are: built in or generated, or in the folder that PARSE_MPI_DATA names."""
    source = yaml.safe_load(job.read_text())["data"]["source"]
    return "PARSE_MPI_DATA" in os.environ or "hdf5" not in source


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_is_a_sound_job(path):
    study = read_study(path)
    data = {level: keys for level, keys in study.spec.cells[DATA].items() if is_there(study.base_job(level))}
    if not data:
        pytest.skip("its data are not here: PARSE_MPI_DATA names no folder")
    tuning = study.spec.tuning and study.spec.tuning.model_copy(update={"configurations": FEW})
    cells = {**study.spec.cells, DATA: data}
    changes = {"cells": cells, "seeds": study.spec.seeds[:1], "tuning": tuning}
    resolver = Resolver(replace(study, spec=study.spec.model_copy(update=changes)))
    resolver.check(resolver.cells(lambda *_: {}))
    tried = configurations(resolver.study, resolver) if tuning else {}
    resolver.require_sound()
    assert all(tried.values())


def test_they_are_all_there():
    assert len(STUDIES) >= 20


def test_the_headline_keeps_to_its_protocol():
    """Ten seeds or more, all methods tuned alike on two others, and a split of its own for every seed."""
    study = read_study(next(path for path in STUDIES if path.stem == "headline"))
    spec = study.spec
    assert len(spec.seeds) >= 10
    assert (spec.tuning.configurations, len(spec.tuning.seeds)) == (12, 2)
    assert not set(spec.tuning.seeds) & set(spec.seeds)
    rate = spec.tuning.space["all"]["train.optimiser.lr"]
    assert all(space.get("train.optimiser.lr", rate) == rate for space in spec.tuning.space.values())
    assert spec.budget.gradient_steps == 200
    methods = set(spec.cells["method"])
    assert set(chain(*spec.compare.baselines.values())) == methods - {
        "parse", "local", "fedavg", "centralised", "centralised+heads"  # floors, ceilings, and a mean no graph gives
    }  # fmt: skip
    for level in spec.cells[DATA]:
        source = yaml.safe_load(study.base_job(level).read_text())["data"]["source"]
        is_by_people = level == "utd-mhad"
        assert "digits" in source or is_by_people or source["split"] == "fresh", level
