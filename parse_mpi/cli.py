"""The command line: parse-mpi check · plan · run · status · report · doctor.

Every command reads the same job files. Heavy libraries are imported by the command that needs them, so that the light
ones answer at once on a login node without a GPU or an MPI launcher.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from parse_mpi import __version__
from parse_mpi.errors import EXIT_OK, EXIT_TO_BE_CONTINUED, EXIT_UNEXPECTED, ParseMpiError

DESCRIPTION = """\
Train many decentralised multimodal agents with PARSE on MPI ranks.

  parse-mpi check  jobs/quickstart.yaml                         is the job sound? all errors at once
  parse-mpi plan   jobs/quickstart.yaml -n 4                    who runs where, what travels, how much memory
  mpiexec -n 4 parse-mpi run jobs/quickstart.yaml --out RUN     train; the same command resumes
  parse-mpi status RUN                                          how far it is (exit 75: to be continued)
  parse-mpi report RUN                                          pictures of a run
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        return code
    except ParseMpiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


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

    run = _add(commands, "run", run_job, "train, or go on where the last launch stopped; under mpiexec or srun")
    _add_job(run)
    run.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory, made if it is not there")
    run.add_argument("--fresh", action="store_true", help="start over; an earlier run moves aside to RUN.previous-K")
    run.add_argument("--stop-after", type=_round, metavar="ROUND", help="write a checkpoint after this round and leave")

    status = _add(commands, "status", show_status, "how far a run is; exit 75 when it is to be continued")
    status.add_argument("run", type=Path, metavar="RUN")

    report = _add(commands, "report", write_report, "draw accuracy, losses, consensus, graphs and class histograms")
    report.add_argument("run", type=Path, metavar="RUN")

    _add(commands, "doctor", examine, "is this environment fit to run? start it alone or under mpiexec / srun")
    return parser


def check_job(options: argparse.Namespace) -> int:
    from parse_mpi.data.sources import load_dataset
    from parse_mpi.plan import make_plan

    jobfile = _load(options)
    make_plan(jobfile, load_dataset(jobfile.job.data, jobfile.job.seed), options.ranks)
    print(f"{options.job}: sound")
    return EXIT_OK


def plan_job(options: argparse.Namespace) -> int:
    from parse_mpi.data.sources import load_dataset
    from parse_mpi.plan import make_plan
    from parse_mpi.studies.planview import print_plan

    jobfile = _load(options)
    dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
    print_plan(make_plan(jobfile, dataset, options.ranks), dataset, options.agents)
    return EXIT_OK


def run_job(options: argparse.Namespace) -> int:
    """Train on all ranks. An error that all ranks share ends quietly everywhere; any other ends the whole launch."""
    from parse_mpi.exchange.world import World, abort
    from parse_mpi.run.session import Request
    from parse_mpi.run.session import run_job as run

    try:
        world = World.connect()
        request = Request(_load(options), options.out, options.fresh, options.stop_after, sys.argv)
        state = run(world, request)
    except ParseMpiError as error:
        abort(f"error: {error}", error.exit_code)
    except BaseException:
        abort(traceback.format_exc(), EXIT_UNEXPECTED)
    return state.exit_code or EXIT_OK


def show_status(options: argparse.Namespace) -> int:
    from parse_mpi.storage.rundir import RunDirectory

    run = RunDirectory(options.run)
    state = run.read_state()
    if state is None:
        print(f"{run.path}: no run has started here")
        return EXIT_TO_BE_CONTINUED
    because = f" ({state.reason})" if state.reason else ""
    print(f"{run.path}: {state.status} at round {state.round} of {state.rounds}{because}")
    if state.status == "finished":
        return EXIT_OK
    return state.exit_code if state.status == "failed" and state.exit_code else EXIT_TO_BE_CONTINUED


def write_report(options: argparse.Namespace) -> int:
    from parse_mpi.studies.report import draw_report

    for path in draw_report(options.run):
        print(path)
    return EXIT_OK


def examine(options: argparse.Namespace) -> int:
    from parse_mpi.run.doctor import examine as examine_environment

    return examine_environment()


def _round(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a round; rounds count from 1")
    return int(text)


def _add(commands, name: str, command, text: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help="job file, for example jobs/quickstart.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: --set train.optimiser.lr=0.05"
    )


def _load(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from parse_mpi.jobfile import load_job

    return load_job(options.job, options.set)


if __name__ == "__main__":
    sys.exit(main())
