"""The command line: parse-mpi COMMAND, with the commands and options that `make_parser` lists.

Every command reads the same job files. Heavy libraries are imported by the command that needs them, so that the light
ones answer at once on a login node without a GPU or an MPI launcher.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from parse_mpi import __version__
from parse_mpi.errors import (
    EXIT_CLOSED_PIPE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TO_BE_CONTINUED,
    EXIT_UNEXPECTED,
    CellError,
    DataError,
    JobError,
    LaunchError,
    ParseMpiError,
    Problem,
    StorageError,
    counted,
)

if TYPE_CHECKING:
    from parse_mpi.data.dataset import Dataset
    from parse_mpi.jobfile import JobFile, Provisional
    from parse_mpi.plan import Plan
    from parse_mpi.storage.owner import Sighting
    from parse_mpi.storage.rundir import RunDirectory

INTERRUPTED_RUN = "interrupted; to go on from the newest checkpoint, start the same command again"
DESCRIPTION = """\
Train many decentralised multimodal agents with PARSE on MPI ranks.

  parse-mpi check  jobs/quickstart.yaml                         is the job sound? all errors at once
  parse-mpi plan   jobs/quickstart.yaml -n 4                    who runs where, what travels, how much memory
  mpiexec -n 4 parse-mpi run jobs/quickstart.yaml --out RUN     train; the same command resumes
  parse-mpi compare jobs/studies/quick-compare.yaml --out DIR   many runs for one question: tables with intervals
  parse-mpi scaling jobs/scaling/quickstart.yaml --out DIR      how fast on more ranks, nodes, agents
  parse-mpi status RUN                                          how far it is (exit 75: to be continued)
  parse-mpi verify RUN                                          is all that it wrote still what it wrote?
  parse-mpi inspect RUN                                         what its newest checkpoint holds
  parse-mpi report RUN                                          pictures of a run
  parse-mpi export RUN --csv                                    its metrics as tables for pandas and R
  parse-mpi predict RUN --agent 25                              what one agent makes of the test samples
  parse-mpi sbatch JOB --out RUN --nodes 4 --submit             the same on a Slurm cluster, requeued until it is done
"""

COMPARE = """\
Run every cell of a study: all combinations of its axes (data, method, ...) on all its seeds, each a launch of its own,
with settings that are tuned first on validation data and other seeds if the study says so.

  parse-mpi compare STUDY --out DIR --plan     how many launches, how many hours; starts no cell
  parse-mpi compare STUDY --out DIR            run what is not finished, then DIR/study.h5 and tables
  parse-mpi compare STUDY --out DIR --report   the same of what has finished so far; starts nothing

The same command goes on after a stop: finished cells are kept, unfinished ones continued, and cells whose job has
changed run anew. A failed cell is reported and does not stop the others. DIR/ledger.csv lists every launch that was
ever made. In a Slurm array of N tasks each runs its share, and the plain command collects the results afterwards:

  parse-mpi compare STUDY --out DIR --task $SLURM_ARRAY_TASK_ID --tasks N

Exit codes: 0 done, 7 cells failed, 75 cells are left (run elsewhere, or not yet), 2 the study is wrong.
"""

SBATCH = """\
Print the Slurm script of a job or a study, or submit it. What the cluster is like stands in a site file: copy
slurm/site.yaml, fill it in, and name it by --site or in $PARSE_MPI_SITE. The job is checked for its ranks first.

  parse-mpi sbatch JOB --out RUN --nodes 4 --submit               a run on four nodes, requeued until it is done
  parse-mpi sbatch JOB --out 'runs/{index}' --set 'seed={index}' --array 1-10      a run for each index
  parse-mpi sbatch STUDY --out DIR --array 1-20 --submit          a share of the study's cells in each task
"""


SCALING = """\
Measure a job along curves: the same agents on more ranks (strong), the same agents on each rank (weak), more agents on
one rank (group). Every point is launched several times, one launch at a time; the first rounds of each do not count.

  parse-mpi scaling STUDY --out DIR            run what is not finished, then DIR/scaling.h5, tables and pictures
  parse-mpi scaling STUDY --out DIR --plan     a command for each point that is not finished, to be run elsewhere
  parse-mpi scaling STUDY --out DIR --report   the results of what has finished so far, wherever it ran

The same command goes on after a stop. DIR/scaling.h5 also feeds `parse-mpi plan JOB --predict NODES --costs FILE`.

Exit codes: 0 done, 7 points failed, 75 points are left, 2 the study is wrong.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except ParseMpiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE


def make_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = argparse.ArgumentParser(
        "parse-mpi", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = _add(commands, "check", check_job, "report every error of a job at once, as file:line")
    _add_job(check)
    check.add_argument("-n", "--ranks", type=int, default=1, help="ranks that it is to run on (default 1)")

    plan = _add(commands, "plan", plan_job, "show agents, ranks, slices, graphs, traffic and memory; starts nothing")
    _add_job(plan)
    plan.add_argument("-n", "--ranks", type=int, default=1, help="ranks that it is to run on (default 1)")
    plan.add_argument("--agents", action="store_true", help="list every agent, however many there are")
    plan.add_argument(
        "--ranks-per-node", type=_count, metavar="N", help="ranks on each node (default: all on one node)"
    )
    ahead = plan.add_argument_group("predictions", "how long a round takes on more nodes; prints these tables alone")
    ahead.add_argument("--predict", type=_count, metavar="NODES", help="on 1, 2, 4, ... up to so many nodes")
    ahead.add_argument("--costs", type=Path, metavar="FILE", help="scaling.h5 of `parse-mpi scaling`: what costs what")
    ahead.add_argument("--site", type=Path, metavar="FILE", help="site file: its `network`, where it was not measured")

    run = _add(commands, "run", run_job, "train, or go on where the last launch stopped; under mpiexec or srun")
    _add_job(run)
    run.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory, made if it is not there")
    run.add_argument("--fresh", action="store_true", help="start over; an earlier run moves aside to RUN.previous-K")
    run.add_argument("--stop-after", type=_round, metavar="ROUND", help="write a checkpoint after this round and leave")
    run.add_argument(
        "--time-limit",
        type=_seconds,
        metavar="TIME",
        help="write a checkpoint and leave in time: MM, MM:SS, HH:MM:SS or D-HH[:MM[:SS]], as Slurm's --time, counted "
        "from the start of this command (default: until the Slurm job ends, if $SLURM_JOB_END_TIME tells)",
    )

    compare = _add(commands, "compare", compare_methods, "run all cells of a study, and say what they show")
    compare.description = COMPARE
    compare.formatter_class = argparse.RawDescriptionHelpFormatter
    compare.add_argument("study", type=Path, metavar="STUDY", help="study file: jobs/studies/quick-compare.yaml")
    compare.add_argument("--out", type=Path, required=True, metavar="DIR", help="made if it is not there")
    instead = compare.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="show launches and hours; starts no cell")
    instead.add_argument("--report", action="store_true", help="only collect what has finished; starts nothing")
    compare.add_argument("--only", type=_levels, default={}, metavar="AXIS=LEVEL,...", help="only these cells")
    compare.add_argument("--task", type=int, metavar="K", help="run share K of the launches, from 1 on ...")
    compare.add_argument("--tasks", type=int, metavar="N", help="... of N shares: for job arrays")

    scaling = _add(commands, "scaling", measure_scaling, "measure a job on more ranks, nodes or agents")
    scaling.description = SCALING
    scaling.formatter_class = argparse.RawDescriptionHelpFormatter
    scaling.add_argument("study", type=Path, metavar="STUDY", help="study file: jobs/scaling/quickstart.yaml")
    scaling.add_argument("--out", type=Path, required=True, metavar="DIR", help="made if it is not there")
    instead = scaling.add_mutually_exclusive_group()
    instead.add_argument(
        "--plan", action="store_true", help="print a command for each unfinished point; starts nothing"
    )
    instead.add_argument("--report", action="store_true", help="only collect what has finished; starts nothing")

    status = _add(commands, "status", show_status, "how far a run is; exit 75 when it is to be continued")
    status.add_argument("run", type=Path, metavar="RUN")
    status.add_argument(
        "--restarts",
        type=_count,
        metavar="K",
        help="for batch scripts, after every launch: exit 4 once K launches in a row have got no further",
    )

    verify = _add(commands, "verify", verify_run, "check every digest of a run; exit 5 when something is damaged")
    verify.add_argument("run", type=Path, metavar="RUN")

    inspect = _add(commands, "inspect", inspect_checkpoint, "show what a checkpoint holds: slices, shapes, norms")
    inspect.add_argument("checkpoint", type=Path, metavar="CKPT", help="its directory, or a run: the newest sound one")
    inspect.add_argument("--agents", action="store_true", help="list every agent with the norms of its slices")

    report = _add(commands, "report", write_report, "draw accuracy, losses, consensus, graphs and class histograms")
    report.add_argument("run", type=Path, metavar="RUN")

    export = _add(commands, "export", export_metrics, "write the metrics of a run, finished or under way, as tables")
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("--csv", action="store_true", required=True, help="as CSV files, a row for each observation")
    export.add_argument("--out", type=Path, metavar="DIR", help="where to (default RUN/csv)")
    export.epilog = (
        "Then, in Python: pandas.read_csv('RUN/csv/evaluations.csv'). docs/file-formats.md lists the columns."
    )

    predict = _add(commands, "predict", predict_samples, "write as CSV what an agent of a run predicts for samples")
    predict.add_argument("run", type=Path, metavar="RUN")
    predict.add_argument(
        "--agent", type=int, required=True, metavar="ID", help="its id; parse-mpi inspect RUN --agents"
    )
    predict.add_argument(
        "--round", type=_round, metavar="ROUND", help="of the checkpoint (default: the newest sound one)"
    )
    predict.add_argument(
        "--data", type=Path, metavar="FILE.h5", help="samples to predict (default: the data that the run learnt from)"
    )
    predict.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="of these (default test)"
    )
    predict.add_argument("--csv", type=Path, metavar="OUT", help="the file to write (default: print)")
    predict.epilog = (
        "Samples are standardised as in the run; a poor sensor that its job gave to the agent is left out. "
        "In Python: parse_mpi.load_agent(RUN, ID).predict(samples)."
    )

    sbatch = _add(commands, "sbatch", make_batch_script, "print or submit a Slurm script for a job or a study")
    sbatch.description = SBATCH
    sbatch.formatter_class = argparse.RawDescriptionHelpFormatter
    sbatch.add_argument("file", type=Path, metavar="JOB|STUDY", help="a job file, or a study of `compare`")
    sbatch.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the job; {index} as below"
    )
    sbatch.add_argument("--out", required=True, metavar="RUN", help="run or study directory; {index} as below")
    sbatch.add_argument("--nodes", type=_count, default=1, metavar="N", help="nodes of each launch (default 1)")
    sbatch.add_argument("--ranks-per-node", type=_count, metavar="R", help="(default: GPUs or NUMA domains of a node)")
    sbatch.add_argument("--time", metavar="TIME", help="as Slurm's --time (default: that of the site file)")
    sbatch.add_argument(
        "--array", default="", metavar="INDICES", help="a task for each index, as 1-10; {index} stands for it"
    )
    sbatch.add_argument("--site", type=Path, metavar="FILE", help="site file (default $PARSE_MPI_SITE, else defaults)")
    sbatch.add_argument("--submit", action="store_true", help="hand the script to sbatch instead of printing it")

    doctor = _add(commands, "doctor", examine, "is this environment fit to run? start it alone or under mpiexec / srun")
    doctor.add_argument("--out", type=Path, metavar="DIR", help="also try whether a run's files would be safe there")
    return parser


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


def compare_methods(options: argparse.Namespace) -> int:
    from parse_mpi.compare.runner import ALL, Comparison, Share

    share = ALL
    if (options.task, options.tasks) != (None, None):
        if not 1 <= (options.task or 0) <= (options.tasks or 0):
            raise ParseMpiError("--task K and --tasks N belong together, and K is 1 to N")
        share = Share(options.task, options.tasks)
    comparison = Comparison(options.study, options.out, options.only)
    if options.plan:
        from parse_mpi.studies.comparisonplan import print_comparison_plan

        print_comparison_plan(comparison)
        return EXIT_OK
    ended = comparison.report() if options.report else comparison.run(share)
    if ended.result is not None:
        from parse_mpi.studies.comparison import write_comparison

        for path in (ended.result, *write_comparison(options.out)):
            print(path)
    if ended.open:
        print(f"{counted(ended.open, 'cell')} not run yet, or at work elsewhere; the same command collects them later")
    if ended.failed:
        told = "\n".join(f"  {name}: {reason}" for name, reason in ended.failed.items())
        raise CellError(f"{counted(len(ended.failed), 'failure')}; the same command tries again:\n{told}")
    return EXIT_OK if options.report or not ended.open else EXIT_TO_BE_CONTINUED


def measure_scaling(options: argparse.Namespace) -> int:
    from parse_mpi.scaling.runner import ScalingStudy

    study = ScalingStudy(options.study, options.out)
    elsewhere = study.study.spec.launch.by == "slurm"  # each point in an allocation of its own
    left = study.unfinished()
    if options.plan or (elsewhere and left and not options.report):
        for point in left:
            print(
                f"# {counted(point.ranks, 'rank')} on {counted(point.nodes, 'node')}: srun or mpiexec -n {point.ranks}"
            )
            print(shlex.join(study.command(point)))
        return EXIT_OK if options.plan else EXIT_TO_BE_CONTINUED
    ended = study.collect() if options.report or elsewhere else study.run()
    from parse_mpi.studies.scaling import write_scaling_report

    for path in (ended.result, *write_scaling_report(options.out)):
        print(path)
    if ended.open:
        print(f"{counted(ended.open, 'run')} left; the same command goes on")
    if ended.failed:
        told = "\n".join(f"  {name}: {reason}" for name, reason in ended.failed.items())
        raise CellError(f"{counted(len(ended.failed), 'failure')}; the same command tries again:\n{told}")
    return EXIT_OK if options.report or not ended.open else EXIT_TO_BE_CONTINUED


def show_status(options: argparse.Namespace) -> int:
    from parse_mpi.storage.owner import look
    from parse_mpi.storage.rundir import RunDirectory

    run = RunDirectory(options.run)
    run.require()
    state, owner = run.read_state(), look(run)
    if state is None:
        print(f"{run.path}: started, but no state has been written; {_launch(owner)}")
        if options.restarts is not None:
            _require_progress(run, 0, options.restarts)
        return EXIT_TO_BE_CONTINUED
    because = f" ({state.reason})" if state.reason else ""
    if state.status == "running":
        seconds = (_now() - datetime.fromisoformat(state.time)).total_seconds()
        because = f", last written {_age(seconds)} ago ({state.time})"
    if state.status == "running" or owner is not None:
        because += f"; {_launch(owner)}"
    print(f"{run.path}: {state.status} at round {state.round} of {state.rounds}{because}")
    if state.status == "finished":
        return EXIT_OK
    if state.status == "failed" and state.exit_code:
        return state.exit_code
    if options.restarts is not None:
        _require_progress(run, state.round, options.restarts)
    return EXIT_TO_BE_CONTINUED


def _require_progress(run: RunDirectory, done: int, allowed: int) -> None:
    """Raises LaunchError where so many launches in a row of this Slurm job have ended at the same round."""
    from parse_mpi.run.slurm import slurm_restarts
    from parse_mpi.storage.restarts import count_ended_launch

    in_vain = count_ended_launch(run, done, first=not slurm_restarts(os.environ))
    if in_vain >= allowed:
        raise LaunchError(
            f"no launch got past round {done}, {in_vain} in a row: not worth another. Why stands above and in "
            f"{run.log_dir}; once it is mended, submit the same script again"
        )


def verify_run(options: argparse.Namespace) -> int:
    from parse_mpi.studies.verify import verify_run as verify

    return EXIT_OK if verify(options.run) else StorageError.exit_code


def inspect_checkpoint(options: argparse.Namespace) -> int:
    from parse_mpi.studies.checkpointview import print_checkpoint

    print_checkpoint(options.checkpoint, options.agents)
    return EXIT_OK


def write_report(options: argparse.Namespace) -> int:
    from parse_mpi.studies.report import draw_report

    for path in draw_report(options.run):
        print(path)
    return EXIT_OK


def export_metrics(options: argparse.Namespace) -> int:
    from parse_mpi.studies.export import export_csv

    for path in export_csv(options.run, options.out):
        print(path)
    return EXIT_OK


def predict_samples(options: argparse.Namespace) -> int:
    from parse_mpi.studies.predict import Wanted, write_predictions

    wanted = Wanted(options.run, options.agent, options.round, options.data, options.split, options.csv)
    told = write_predictions(wanted)
    print(told, file=sys.stderr if options.csv is None else sys.stdout)
    return EXIT_OK


def make_batch_script(options: argparse.Namespace) -> int:
    from parse_mpi.batch.script import INDEX, allocation, first_index, study_script, train_script
    from parse_mpi.batch.site import find_site, read_site
    from parse_mpi.batch.submit import is_study, submit

    site = read_site(find_site(options.site))
    wanted = allocation(site, options.nodes, options.ranks_per_node, options.time, options.array)
    if is_study(options.file):
        from parse_mpi.compare.reading import read_study

        script = study_script(site, wanted, options.file, read_study(options.file).spec.name, options.out)
    else:
        settings, index = options.set, first_index(wanted)
        options.job, options.ranks = options.file, wanted.ranks
        options.set = [setting.replace(INDEX, index) for setting in settings]
        jobfile, _, _ = _load_plan(options)
        script = train_script(site, wanted, options.file, jobfile.job.name, options.out, settings)
    print(submit(script, options.out) if options.submit else script, end="")
    return EXIT_OK


def examine(options: argparse.Namespace) -> int:
    from parse_mpi.run.doctor import examine as examine_environment

    return examine_environment(options.out)


def _launch(owner: Sighting | None) -> str:
    """What is known of the launch that works in a run directory, and what to do where none does."""
    go_on = "start the same command again to go on"
    if owner is None:
        return f"no launch is at work; {go_on}"
    if owner.verdict == "gone":
        return f"the launch on {owner.record} is gone; {go_on}"
    heartbeat = f"heartbeat {_age(owner.age_s)} ago"
    if owner.verdict == "alive":
        return f"running on {owner.record}, {heartbeat}"
    who = owner.record or "an unknown host (owner.json is damaged)"
    return f"running on {who}, {heartbeat}; if it is gone, {go_on}"


def _age(seconds: float) -> str:
    """A time that has passed, in its largest whole unit."""
    passed_s = max(0, int(seconds))
    sizes = {"day": 86_400, "hour": 3600, "minute": 60, "second": 1}
    unit = next((unit for unit, size in sizes.items() if passed_s >= size), "second")
    return counted(passed_s // sizes[unit], unit)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _levels(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(axis and level for axis, _, level in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names no levels; write data=digits,method=parse")
    levels = {axis: level for axis, _, level in pairs}
    if len(levels) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names two levels of an axis; start one command for each")
    return levels


def _round(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a round; rounds count from 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _seconds(text: str) -> int:
    from parse_mpi.run.preemption import seconds_of

    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; leave --time-limit out to run without one") from None


def _add(commands, name: str, command, text: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help="job file, for example jobs/quickstart.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: --set train.optimiser.lr=0.05"
    )


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


if __name__ == "__main__":
    sys.exit(main())
