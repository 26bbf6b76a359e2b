"""Work done under strace: which system calls it makes on some files, and a fault put at any one of them.

A forked child waits until strace holds it and then works in a new thread, so that strace counts that thread's calls
from the first one on: the K-th call of a name is the same call every time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CRASHED = 99  # exit code of a child whose work raised
_CALL = re.compile(r"^([0-9]+) +([a-z0-9_]+)\((.*)")
_RETURNED = re.compile(r" = (-?[0-9]+)")


@dataclass(frozen=True)
class Call:
    """The `number`-th call of this name in its thread, from 1 on. returned: its value, -1 where there was none."""

    name: str
    number: int
    returned: int
    text: str


@dataclass(frozen=True)
class Ending:
    """How a child ended: by itself with this code, or killed (code None). crash: what its work raised, and where."""

    code: int | None
    crash: str


def why_not() -> str:
    """Why nothing can be traced here; "" where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    try:
        _under_strace(lambda: 0, ["-e", "trace=close"])
    except OSError as error:
        return f"strace may not attach to a process here: {error}"
    return ""


def calls_on(path: Path, work: Callable[[], int], log: Path) -> list[Call]:
    """All system calls of `work` that name this directory or a file in it, by path or by descriptor."""
    ending = _under_strace(work, ["-y", "-s", "400", "-e", "trace=%file,%desc", "-o", str(log)])
    assert ending.code == 0, ending
    counts: Counter[tuple[str, str]] = Counter()
    calls = []
    for line in log.read_text("utf-8", "replace").splitlines():
        if match := _CALL.match(line):
            thread, name, text = match.groups()
            counts[thread, name] += 1
            if str(path) in text:
                returned = _RETURNED.findall(text)
                calls.append(Call(name, counts[thread, name], int(returned[-1]) if returned else -1, text))
    return calls


def with_fault(path: Path, work: Callable[[], int], call: Call, fault: str, log: Path) -> Ending:
    """Do the work again with this call replaced: "signal=SIGKILL", "error=ENOSPC", "retval=17" (that and no effect).

    Raises AssertionError where the fault did not hit a call on `path`, so that no fault is counted that was none.
    """
    options = ["-y", "-s", "400", "-e", f"trace={call.name}", "-e", f"inject={call.name}:{fault}:when={call.number}"]
    ending = _under_strace(work, [*options, "-o", str(log)])
    assert str(path) in (hit := _hit(log)), (call, fault, hit)
    return ending


def _hit(log: Path) -> str:
    """The line of the call that was replaced; "" where there was none."""
    begun: dict[str, str] = {}
    for line in log.read_text("utf-8", "replace").splitlines():
        if match := _CALL.match(line):
            begun[match[1]] = line  # its end may come in a later line of the same thread
        if line.endswith(("(INJECTED)", " = ?")):
            return begun[line.split()[0]]
    return ""


def _under_strace(work: Callable[[], int], options: Sequence[str]) -> Ending:
    """Raises OSError where strace can't attach."""
    said_read, said_write = os.pipe()
    # The child waits for a signal, not in a call that a fault could be meant for.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    child = os.fork()
    if child == 0:
        _work_and_exit(work, said_write)
    os.close(said_write)
    command = ["strace", "-f", "-p", str(child), *options]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    assert tracer.stderr is not None
    # Said once the tracer stops the child, which therefore can't make a call that is not counted.
    refused = "" if "attached" in (line := tracer.stderr.readline()) else line.strip() or "no reason given"
    os.kill(child, signal.SIGKILL if refused else signal.SIGUSR1)
    with os.fdopen(said_read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    tracer.communicate()
    if refused:
        raise OSError(refused)
    return Ending(None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), said)


def _work_and_exit(work: Callable[[], int], said: int) -> None:
    codes = [CRASHED]

    def run() -> None:
        try:
            codes[0] = work()
        except BaseException as error:
            where = [
                f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
            ]
            os.write(said, f"{error!r} in {' '.join(where)}".encode())

    try:
        signal.sigwait({signal.SIGUSR1})
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        os._exit(codes[0])
