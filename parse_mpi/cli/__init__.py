"""The command line: parse-mpi COMMAND, with the commands and options that `make_parser` lists.

Every command reads the same job files. Heavy libraries are imported by the command that needs them, so that the light
ones answer at once on a login node without a GPU or an MPI launcher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from parse_mpi.cli.parser import make_parser
from parse_mpi.errors import EXIT_CLOSED_PIPE, EXIT_INTERRUPTED, ParseMpiError

__all__ = ["main", "make_parser"]


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
