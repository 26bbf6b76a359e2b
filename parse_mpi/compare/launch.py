"""One launch of `parse-mpi run` as a process of its own, and the launcher that starts several ranks.

A launch has its own session, so that a Ctrl-C at the terminal reaches the study alone, and a mark in its environment
by which all its processes are found: ranks may leave the process group of their launcher.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from parse_mpi.compare.template import Forked, Template
from parse_mpi.errors import LaunchError
from parse_mpi.exchange.host import usable_cores
from parse_mpi.storage.write import storage_errors

# What an outer launch may have set for its ranks. A launch inside would take itself for one of them.
OF_LAUNCHERS = ("PMI_", "PMIX_", "SLURM_", "OMPI_", "PRTE_", "HYDI_", "MPI_LOCAL")
MARK = "PARSE_MPI_LAUNCH"
CROWDED = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}  # of MPICH: ranks that share cores must yield while they wait
KILL_POLL_S = 0.01
LATE_S = 60.0  # after its time limit, which a run keeps by itself, a launch is ended from outside


def find_mpiexec() -> str:
    """The mpiexec beside this interpreter, otherwise the one on PATH, which must belong to mpi4py's library then.

    Raises LaunchError where there is none.
    """
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("mpiexec")
    if found is None:
        raise LaunchError(
            f"no mpiexec beside {sys.executable} and none on PATH: install an MPI into this environment "
            "(pip install 'parse-mpi[mpich]') or load the site's MPI module"
        )
    return found


def clean_environment(threads: int) -> dict[str, str]:
    """This environment without traces of a launcher, for ranks of so many compute threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    return kept | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}


class Launch:
    """A command on some ranks, started at once, its output appended to a log.

    template: forks it where that is given, which takes one rank and `python -m MODULE ARGUMENTS`. options: for mpiexec.
    """

    def __init__(
        self,
        command: Sequence[str],
        ranks: int,
        threads: int,
        limit_s: float,
        log: Path,
        template: Template | None = None,
        options: Sequence[str] = (),
    ):
        """Raises LaunchError where there is no launcher, StorageError where the log can't be written."""
        whole = [find_mpiexec(), "-n", str(ranks), *options, *command] if ranks > 1 else list(command)
        self.log = log
        self._process: subprocess.Popen[bytes] | Forked
        self._mark = uuid.uuid4().hex
        self._start = time.monotonic()
        self._end = self._start + limit_s + LATE_S
        with storage_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as output:
                self._log_start = output.tell()
                if template is not None:
                    self._process = template.fork(command, log)
                    return
                environment = clean_environment(threads) | {MARK: self._mark}
                if ranks * threads > usable_cores():
                    environment |= CROWDED
                self._process = subprocess.Popen(
                    whole, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                    env=environment,
                )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def poll(self) -> int | None:
        """The exit code once it has ended, of itself or because it is late; then nothing of it is left running."""
        if time.monotonic() > self._end and self._process.poll() is None:
            self.kill()
            with storage_errors(self.log), open(self.log, "a", encoding="utf-8") as output:
                output.write(f"\nended from outside after {self.seconds:.0f} s, past its time limit\n")
        code = self._process.poll()
        if code is not None:
            self.kill()
        return code

    def ask_to_stop(self) -> None:
        """Let it end at the next round boundary, with a checkpoint."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End all of its processes, and wait until the launcher has ended."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            while self._process.poll() is None:
                time.sleep(KILL_POLL_S)
        for pid in marked(self._mark):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def output(self) -> str:
        """What it has written so far."""
        with storage_errors(self.log, "can't be read"), open(self.log, "rb") as file:
            file.seek(self._log_start)
            return file.read().decode("utf-8", "replace")


def marked(mark: str) -> list[int]:
    """Processes that were started with this mark; none where there is no /proc."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
