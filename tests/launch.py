"""Start a command on several ranks: with a time limit, a log per rank, and nothing left running afterwards.

The launcher is the mpiexec of this environment. Each rank writes into its own file, since launchers mix and cut lines.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parse_mpi.compare.launch import OF_LAUNCHERS, find_mpiexec

ROOT = Path(__file__).parent.parent
RANK_ENTRY = Path(__file__).with_name("rank_entry.py")
MARK = "PARSE_MPI_TEST_LAUNCH"
GRACE_S = 2.0  # for a launcher to end its ranks by itself
POLL_S = 0.02


@dataclass(frozen=True)
class Outcome:
    """How a launch ended. code: of the launcher; logs: what each rank wrote; console: what the launcher wrote."""

    code: int
    timed_out: bool
    seconds: float
    console: str
    logs: tuple[str, ...]

    def __str__(self) -> str:
        end = "ran past its time limit" if self.timed_out else f"ended with code {self.code}"
        parts = [f"{len(self.logs)} ranks {end} after {self.seconds:.1f} s", self.console]
        parts += [f"--- rank {rank} ---\n{log}" for rank, log in enumerate(self.logs)]
        return "\n".join(parts)


def run(
    ranks: int,
    command: Sequence[str],
    log_dir: Path,
    limit_s: float = 60.0,
    environment: Mapping[str, str] | None = None,
    mpiexec: str | None = None,
) -> Outcome:
    """Run a command, whose first word is a path, on all ranks and wait for it. mpiexec: of another MPI than usual."""
    with Launch(ranks, command, log_dir, environment, mpiexec) as launch:
        return launch.wait(limit_s)


class Launch:
    """A running launch; leaving the context ends whatever of it still runs."""

    def __init__(
        self,
        ranks: int,
        command: Sequence[str],
        log_dir: Path,
        environment: Mapping[str, str] | None = None,
        mpiexec: str | None = None,
    ):
        log_dir.mkdir(parents=True, exist_ok=True)
        self.ranks = ranks
        self.log_dir = log_dir
        self.token = uuid.uuid4().hex
        self._start = time.monotonic()
        with open(log_dir / "console.log", "wb") as console:
            self.process = subprocess.Popen(
                [mpiexec or find_mpiexec(), "-n", str(ranks), sys.executable, "-IS", RANK_ENTRY, log_dir, *command],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT,
                env=child_environment() | dict(environment or {}) | {MARK: self.token},
            )  # fmt: skip

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, limit_s: float) -> Outcome:
        """Until the launcher ends, at most `limit_s` seconds after the start; then everything is ended."""
        try:
            self.process.wait(max(0.0, self._start + limit_s - time.monotonic()))
            timed_out = False
        except subprocess.TimeoutExpired:
            timed_out = True
        seconds = time.monotonic() - self._start
        self.stop()
        logs = tuple(self.log(rank) for rank in range(self.ranks))
        return Outcome(self.process.returncode, timed_out, seconds, _read(self.log_dir / "console.log"), logs)

    def wait_until(self, happened: Callable[[], object], limit_s: float) -> None:
        """Until `happened()` is true; AssertionError with all logs when it does not come, or the launch ends."""
        until = time.monotonic() + limit_s
        while not happened():
            if time.monotonic() > until or self.process.poll() is not None:
                raise AssertionError(f"what was waited for did not come: {self.wait(0)}")
            time.sleep(POLL_S)

    def log(self, rank: int) -> str:
        """What a rank has written so far, its standard output and error in one."""
        return _read(self.log_dir / f"rank-{rank}.log")

    def pids(self) -> list[int]:
        """Process ids of the ranks that have started, by rank."""
        texts = [_read(self.log_dir / f"rank-{rank}.pid") for rank in range(self.ranks)]
        return [int(text) for text in texts if text.endswith("\n")]

    def stop(self) -> None:
        """End the launcher, then whatever is left of its ranks: they may have left its process group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(GRACE_S)
        until = time.monotonic() + GRACE_S
        while (left := self.left_running()) and time.monotonic() < until:
            time.sleep(POLL_S)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left_running(self) -> list[int]:
        """Processes of this launch, found by the mark in their environment."""
        mark = f"{MARK}={self.token}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found


def child_environment() -> dict[str, str]:
    """This environment without traces of another launcher, set up for more ranks than cores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""
