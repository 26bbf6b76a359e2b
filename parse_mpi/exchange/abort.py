"""Ending a whole launch from one rank. Imports MPI and nothing else, so that it works where any other import fails."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import NoReturn

from mpi4py import MPI

PATIENCE_S = 1.0


def abort(message: str, code: int) -> NoReturn:
    """Print the message and end this process, and with it all ranks of the launch; does not return.

    Rank 0 speaks first: an error that all ranks share is then printed once, and another rank's own error still is.
    """
    world = MPI.COMM_WORLD
    if world.rank:
        time.sleep(PATIENCE_S)
        message = f"rank {world.rank}: {message}"
    with suppress(OSError):  # nobody reads it any more, or it is a file on a full disk
        print(message, file=sys.stderr, flush=True)
    flush_output()
    if world.size > 1:
        world.Abort(code)
    sys.exit(code)


def flush_output() -> None:
    """Flush standard output, or drop what it does not take: the interpreter would try again, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
