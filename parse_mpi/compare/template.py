"""A process that has imported what a run needs and forks for every launch on one rank.

Imports are half of a launch that takes seconds. What is forked is a process like any other, in a session of its own.

Protocol: one JSON value a line and an answer to each. A list is a command, `python -m MODULE ARGUMENTS`, behind the log
that takes its output, and is answered by a process id; a process id, by its exit code, null as long as it runs.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from parse_mpi.errors import LaunchError

# Not exchange/: importing mpi4py starts MPI, which every launch has to do for itself.
IMPORTS = (
    "parse_mpi.cli",
    "parse_mpi.agents.group",
    "parse_mpi.data.sources",
    "parse_mpi.storage.parallel",
    "rich.live",
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Forked:
    """A launch that a template has forked, with the methods of a subprocess.Popen."""

    def __init__(self, template: Template, pid: int):
        self.pid = pid
        self._template = template
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, below 0 where a signal ended it; None while it runs. Raises LaunchError."""
        if self._code is None:
            self._code = self._template.ask(self.pid)
        return self._code

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class Template:
    """The process, started with this environment."""

    def __init__(self, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
            start_new_session=True,
        )  # fmt: skip

    def fork(self, command: Sequence[str], log: Path) -> Forked:
        """Start `python -m MODULE ARGUMENTS`, its output appended to a log. Raises LaunchError."""
        python, option, *rest = command
        if (python, option) != (sys.executable, "-m"):
            raise ValueError(f"not a module of this interpreter: {command}")
        pid = self.ask([str(log), *rest])
        assert pid is not None
        return Forked(self, pid)

    def ask(self, request: list[str] | int) -> int | None:
        """The answer to a request. Raises LaunchError where the process is no more."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: int | None = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise LaunchError(
                f"the process that starts launches has ended (exit code {self._process.wait()}); launches that are "
                "under way go on, and the same command takes up what is left"
            ) from error
        return answer

    def close(self) -> None:
        """End it. What it has forked and still runs goes on."""
        self._process.communicate()


def ignore_signals() -> None:
    """Slurm sends a signal to every process of a step; this one ends when the study closes its pipe."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def serve() -> list[str] | None:
    """Answer requests until there are no more. In a process that was forked: return the words of its command."""
    for line in sys.stdin:
        request: list[str] | int = json.loads(line)
        if isinstance(request, int):
            pid, status = os.waitpid(request, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            log, *words = request
            answer = os.fork()
            if not answer:
                _settle(log)
                return words
        print(json.dumps(answer), flush=True)
    return None


def _settle(log: str) -> None:
    """In a process just forked: a session of its own, signals as at a start, nothing to read, output to the log."""
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for target, source in enumerate((nothing, output, output)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)


if __name__ == "__main__":
    ignore_signals()
    for name in IMPORTS:
        importlib.import_module(name)
    words = serve()
    if words:
        module, *arguments = words
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
