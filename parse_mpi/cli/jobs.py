"""Commands about one job before and while it runs: check, plan, run, sbatch."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from parse_mpi.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNEXPECTED,
    DataError,
    JobError,
    LaunchError,
    ParseMpiError,
    Problem,
)

if TYPE_CHECKING:
    from parse_mpi.batch.script import Allocation
    from parse_mpi.batch.site import Site
    from parse_mpi.data.dataset import Dataset
    from parse_mpi.jobfile import JobFile, Provisional
    from parse_mpi.plan import Plan


INTERRUPTED_RUN = "interrupted; to go on from the newest checkpoint, start the same command again"


def check_job(options: argparse.Namespace) -> int:
    _load_plan(options)
    print(f"{options.job}: sound")
    return EXIT_OK


def plan_job(options: argparse.Namespace) -> int:
    from parse_mpi.studies.planview import print_plan

    per_node = options.ranks_per_node
    nodes = [rank // per_node for rank in range(options.ranks)] if per_node else ()
    _, dataset, plan = _load_plan(options, nodes)
    if options.predict is not None:
        return _predict_rounds(options, dataset, plan)
    print_plan(plan, dataset, options.agents)
    return EXIT_OK


def _predict_rounds(options: argparse.Namespace, dataset: Dataset, plan: Plan) -> int:
    from parse_mpi.scaling.predict import outlooks, plans_by_topology, read_costs
    from parse_mpi.studies.predictionview import print_predictions

    if options.costs is None:
        raise ParseMpiError("--predict needs --costs FILE, the scaling.h5 that `parse-mpi scaling` writes")
    costs = read_costs(options.costs, options.site)
    per_node = options.ranks_per_node or max(1, costs.cores // costs.threads)
    plans, own, unfit = plans_by_topology(options.job, options.set, dataset, plan.job)
    found = list(outlooks(plans, own, costs, options.predict, per_node))
    print_predictions(plan, costs, options.predict, found, unfit)
    return EXIT_OK


def run_job(options: argparse.Namespace) -> int:
    """Train on all ranks. An error that all ranks share ends quietly everywhere; any other ends the whole launch.

    Once MPI is up, a rank must not just leave: the library would have it wait for the others at the exit.
    """
    from parse_mpi.run.preemption import StopRequest, find_deadline

    stop = StopRequest(find_deadline(options.time_limit, os.environ))
    stop.listen()
    try:
        from parse_mpi.exchange.abort import abort, flush_output
    except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError where it finds no library
        what = "; ".join(str(error).splitlines())
        raise LaunchError(f"MPI can't be used: {what}.\nTo see what is missing: parse-mpi doctor") from error
    stop.end_launch = partial(abort, INTERRUPTED_RUN, EXIT_INTERRUPTED)
    try:
        from parse_mpi.exchange.world import World
        from parse_mpi.run.session import Request
        from parse_mpi.run.session import run_job as run

        world = World.connect()
        stop.rank = world.rank
        request = Request(_load(options), options.out, options.fresh, options.stop_after, sys.argv)
        state = run(world, request, stop)
    except ParseMpiError as error:
        trace = traceback.format_exc() if os.environ.get("PARSE_MPI_TRACE") else ""
        abort(f"{trace}error: {error}", error.exit_code)
    except KeyboardInterrupt:
        abort(INTERRUPTED_RUN, EXIT_INTERRUPTED)
    except BaseException:
        abort(traceback.format_exc(), EXIT_UNEXPECTED)
    flush_output()
    stop.ignore()
    return state.exit_code or EXIT_OK


def make_batch_script(options: argparse.Namespace) -> int:
    from parse_mpi.batch.script import allocation
    from parse_mpi.batch.site import find_site, read_site
    from parse_mpi.batch.submit import submit, what_is

    site, kind = read_site(find_site(options.site)), what_is(options.file)
    if kind == "scaling":
        scripts = _point_scripts(options, site)
    else:
        wanted = allocation(site, options.nodes, options.ranks_per_node, options.time, options.array)
        make = _train_script if kind == "job" else _study_script
        scripts = [(options.out, make(options, site, wanted))]
    for out, script in scripts:
        print(submit(script, out) if options.submit else script, end="")
    return EXIT_OK


def _train_script(options: argparse.Namespace, site: Site, wanted: Allocation) -> str:
    """Once the job is known to be sound on so many ranks."""
    from parse_mpi.batch.script import INDEX, first_index, train_script

    settings, index = options.set, first_index(wanted)
    options.job, options.ranks = options.file, wanted.ranks
    options.set = [setting.replace(INDEX, index) for setting in settings]
    jobfile, _, _ = _load_plan(options)
    return train_script(site, wanted, options.file, jobfile.job.name, options.out, settings)


def _study_script(options: argparse.Namespace, site: Site, wanted: Allocation) -> str:
    from parse_mpi.batch.script import study_script
    from parse_mpi.compare.reading import read_study

    return study_script(site, wanted, options.file, read_study(options.file).spec.name, options.out)


def _point_scripts(options: argparse.Namespace, site: Site) -> Sequence[tuple[str, str]]:
    """For every point of a scaling study that is not finished: where its log goes, and its script."""
    from dataclasses import replace
    from pathlib import Path

    from parse_mpi.batch.script import allocation, point_script
    from parse_mpi.scaling.runner import ScalingStudy

    study, scripts = ScalingStudy(options.file, Path(options.out)), []
    launch = study.study.spec.launch
    for point in study.unfinished():
        wanted = allocation(site, point.nodes, -(-point.ranks // point.nodes), options.time or launch.time_limit)
        wanted = replace(wanted, cores=launch.threads)
        log, command = f"{options.out}/logs/{point.trial.name}", study.command(point)
        scripts.append((log, point_script(site, wanted, point.ranks, command, point.trial.name, log)))
    return scripts


def _load(options: argparse.Namespace) -> JobFile:
    from parse_mpi.jobfile import load_job

    return load_job(options.job, options.set)


def _load_plan(options: argparse.Namespace, nodes: Sequence[int] = ()) -> tuple[JobFile, Dataset, Plan]:
    """What check and plan share; nodes: of each rank. Raises one JobError with all that schema, data, graphs and ranks
    show together."""
    from parse_mpi.data.sources import load_dataset
    from parse_mpi.jobfile import UnsoundJobError, in_reading_order
    from parse_mpi.plan import make_plan

    try:
        jobfile = _load(options)
    except UnsoundJobError as error:
        further = _further_problems(error.provisional, options.ranks) if error.provisional else ()
        raise JobError(in_reading_order([*error.problems, *further])) from None
    dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
    return jobfile, dataset, make_plan(jobfile, dataset, options.ranks, nodes)


def _further_problems(provisional: Provisional, ranks: int) -> Sequence[Problem]:
    """Problems that would show once those of the job file itself are mended."""
    from parse_mpi.data.sources import load_dataset
    from parse_mpi.plan import make_plan

    jobfile = provisional.jobfile
    try:
        dataset = load_dataset(jobfile.job.data, jobfile.job.seed) if provisional.source_known else _stand_in(jobfile)
        make_plan(jobfile, dataset, ranks if provisional.agents_known else 1)
    except DataError as error:
        return [Problem(jobfile.where("data", "source"), str(error))]
    except JobError as error:
        return error.problems
    return ()


def _stand_in(jobfile: JobFile) -> Dataset:
    """Data that fit any agents: every modality that they name, and a sample for each of them."""
    import numpy as np

    from parse_mpi.data.dataset import Dataset

    agents = jobfile.job.agents
    count = sum(entry.count for entry in agents)
    modalities = {m: np.zeros((count, 1), np.float32) for entry in agents for m in entry.modalities}
    return Dataset("stand-in", modalities, np.zeros(count, np.int64), np.zeros(count, np.uint8), ("any",))
