"""pytest plugin inside ranks: writes what happens to each test at once, and ends a rank whose test hangs.

Loaded with `-p rank_log` by rank_tests.py. Each line of $RANK_EVENTS is an event and what it is about.
"""

from __future__ import annotations

import json
import os
import signal

import pytest

AFTER_DUMP_S = 1.0  # the ranks of a hanging test write where they are before the first of them is ended


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hang-s", type=float, help="seconds after which a test hangs")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RankLog(config.getoption("--hang-s")))


class RankLog:
    """The default action of SIGALRM ends the process, also while it is blocked inside an MPI call."""

    def __init__(self, hang_s: float):
        self.hang_s = hang_s
        self._events = open(os.environ["RANK_EVENTS"], "a", encoding="utf-8")  # noqa: SIM115 (for the whole session)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("failed", report.nodeid)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("started", nodeid)
        signal.setitimer(signal.ITIMER_REAL, self.hang_s + AFTER_DUMP_S)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._write("failed", report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._write("finished", nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._write("ended", str(int(exitstatus)))

    def _write(self, event: str, about: str) -> None:
        self._events.write(json.dumps([event, about]) + "\n")
        self._events.flush()
