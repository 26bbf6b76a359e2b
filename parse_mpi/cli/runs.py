"""Commands about a run directory, and about this environment."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from parse_mpi.errors import (
    EXIT_OK,
    EXIT_TO_BE_CONTINUED,
    LaunchError,
    StorageError,
    counted,
)

if TYPE_CHECKING:
    from parse_mpi.storage.owner import Sighting
    from parse_mpi.storage.rundir import RunDirectory


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
    from parse_mpi.slurm import slurm_restarts
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
    from parse_mpi.compare.directory import RESULT
    from parse_mpi.studies.comparison import write_comparison
    from parse_mpi.studies.report import draw_report
    from parse_mpi.studies.scaling import RESULT as SCALING_RESULT
    from parse_mpi.studies.scaling import write_scaling_report

    writers = {RESULT: write_comparison, SCALING_RESULT: write_scaling_report}
    write = next((writers[name] for name in writers if (options.run / name).exists()), draw_report)
    for path in write(options.run):
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
