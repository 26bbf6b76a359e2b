"""Commands that make many launches: compare, scaling."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping

from parse_mpi.errors import (
    EXIT_OK,
    EXIT_TO_BE_CONTINUED,
    CellError,
    ParseMpiError,
    counted,
)


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
    if ended.aside is not None:
        print(
            f"{ended.aside}: the study.h5 before this one, which holds results that the study has no cell for any more"
        )
    if ended.result is not None:
        from parse_mpi.studies.comparison import write_comparison

        for path in (ended.result, *write_comparison(options.out)):
            print(path)
    failed = sum(cell.status == "failed" for cell in comparison.kept.cells) if comparison.kept else 0
    if failed and not ended.failed:
        print(f"{counted(failed, 'cell')} failed in an earlier call; study.md says why")
    if ended.open:
        print(f"{counted(ended.open, 'cell')} not run yet, or at work elsewhere; the same command collects them later")
    return _exit_code(ended.failed, ended.open, options.report)


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
    return _exit_code(ended.failed, ended.open, options.report)


def _exit_code(failed: Mapping[str, str], left: int, only_report: bool) -> int:
    """How a study ended. Raises CellError where launches failed; failed: name -> reason."""
    if failed:
        told = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise CellError(f"{counted(len(failed), 'failure')}; the same command tries again:\n{told}")
    return EXIT_OK if only_report or not left else EXIT_TO_BE_CONTINUED
