"""All commands with their options, and what their help says."""

from __future__ import annotations

import argparse
from pathlib import Path

from parse_mpi import __version__
from parse_mpi.cli.jobs import check_job, make_batch_script, plan_job, run_job
from parse_mpi.cli.runs import (
    examine,
    export_metrics,
    inspect_checkpoint,
    predict_samples,
    show_status,
    verify_run,
    write_report,
)
from parse_mpi.cli.studies import compare_methods, measure_scaling

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
Print the Slurm scripts of a job or a study, or submit them. What the cluster is like stands in a site file: copy
slurm/site.yaml, fill it in, and name it by --site or in $PARSE_MPI_SITE. The job is checked for its ranks first.

  parse-mpi sbatch JOB --out RUN --nodes 4 --submit               a run on four nodes, requeued until it is done
  parse-mpi sbatch JOB --out 'runs/{index}' --set 'seed={index}' --array 1-10      a run for each index
  parse-mpi sbatch STUDY --out DIR --array 1-20 --submit          a share of the study's cells in each task
  parse-mpi sbatch SCALING --out DIR --submit                     a job for each point of a scaling study
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
    _ask_study(compare, COMPARE, "jobs/studies/quick-compare.yaml", "show launches and hours; starts no cell")
    compare.add_argument("--only", type=_levels, default={}, metavar="AXIS=LEVEL,...", help="only these cells")
    compare.add_argument("--task", type=int, metavar="K", help="run share K of the launches, from 1 on ...")
    compare.add_argument("--tasks", type=int, metavar="N", help="... of N shares: for job arrays")

    scaling = _add(commands, "scaling", measure_scaling, "measure a job on more ranks, nodes or agents")
    by_hand = "print a command for each unfinished point; starts nothing"
    _ask_study(scaling, SCALING, "jobs/scaling/quickstart.yaml", by_hand)

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
    report.epilog = "Of a study's directory: its tables and pictures, from its study.h5 or scaling.h5 alone."

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

    sbatch = _add(commands, "sbatch", make_batch_script, "print or submit Slurm scripts for a job or a study")
    sbatch.description = SBATCH
    sbatch.formatter_class = argparse.RawDescriptionHelpFormatter
    sbatch.add_argument("file", type=Path, metavar="JOB|STUDY", help="a job, or a study of `compare` or `scaling`")
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


def _ask_study(parser: argparse.ArgumentParser, text: str, example: str, plan: str) -> None:
    """What `compare` and `scaling` have in common. text: what --help teaches; plan: what --plan does."""
    parser.description = text
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("study", type=Path, metavar="STUDY", help=f"study file: {example}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="made if it is not there")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help=plan)
    instead.add_argument("--report", action="store_true", help="only collect what has finished; starts nothing")
