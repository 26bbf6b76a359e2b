"""Progress: no MPI moves a large message by itself while its process computes; somebody has to ask.

thread: a Python thread tests the requests every 0.1 ms. poll: the agents' loop tests them between two units of work.
none: they wait until the end. Which one is fastest is measured on this machine at the start (`fastest_mode`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mpi4py import MPI

from parse_mpi.errors import LaunchError
from parse_mpi.exchange.neighbourhood import Exchange
from parse_mpi.exchange.world import World

MODES = ("thread", "poll", "none")
PAUSE_S = 1e-4
TRIALS = 5


class Progress:
    """Keeps requests moving while `during` is open; `poll` is for the work inside to call now and then.

    Raises LaunchError for a thread where MPI does not allow one beside the main thread.
    """

    def __init__(self, mode: str):
        if mode not in possible_modes():
            raise LaunchError(
                "exchange.progress: thread, but this MPI was started without MPI_THREAD_MULTIPLE.\n"
                "Say auto, poll or none, or use an MPI library that was built with threads."
            )
        self.mode = mode
        self.arrived_s = 0.0
        self._requests: list[MPI.Request] = []

    @contextmanager
    def during(self, exchanges: Sequence[Exchange]) -> Iterator[None]:
        """Work inside runs while rows travel; afterwards they may or may not have arrived.

        arrived_s: `time.perf_counter()` at which they were first seen to have arrived, 0.0 if they were not yet.
        """
        self._requests, self.arrived_s = [request for e in exchanges for request in e.requests], 0.0
        done = threading.Event()
        thread = threading.Thread(target=self._keep_testing, args=(done,), name="mpi-progress", daemon=True)
        threaded = self.mode == "thread" and bool(self._requests)
        if threaded:
            thread.start()
        try:
            yield
        finally:
            if threaded:
                done.set()
                thread.join()
            self._requests = []

    def poll(self) -> None:
        """Test once, in mode poll."""
        if self.mode == "poll":
            self._test()

    def _keep_testing(self, done: threading.Event) -> None:
        while not self._test() and not done.wait(PAUSE_S):
            pass

    def _test(self) -> bool:
        if not self._requests or self.arrived_s:
            return True
        if not MPI.Request.Testall(self._requests):
            return False
        self.arrived_s = time.perf_counter()
        return True


def possible_modes() -> list[str]:
    """The modes that this MPI allows."""
    return [mode for mode in MODES if mode != "thread" or MPI.Query_thread() == MPI.THREAD_MULTIPLE]


def fastest_mode(
    world: World, exchanges: Sequence[Exchange], work: Callable[[Callable[[], None]], None]
) -> tuple[str, dict[str, float]]:
    """The fastest mode for exchanges beside `work(poll)`, and the seconds that each mode took.

    Seconds are the slowest rank's, the median of a few trials, so that all ranks choose alike. Rows travel and are
    dropped; the live rows do not change.
    """
    modes = possible_modes()
    seconds = {mode: world.slowest([_trial(world, mode, exchanges, work) for _ in range(TRIALS)]) for mode in modes}
    return min(modes, key=seconds.__getitem__), seconds


def _trial(world: World, mode: str, exchanges: Sequence[Exchange], work: Callable[[Callable[[], None]], None]) -> float:
    progress = Progress(mode)
    world.barrier()
    start = time.perf_counter()
    for exchange in exchanges:
        exchange.start(0)
    with progress.during(exchanges):
        work(progress.poll)
    for exchange in exchanges:
        exchange.wait()
    return time.perf_counter() - start
