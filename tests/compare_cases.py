"""Small studies for tests, and launches inside this process, which need no seconds to start."""

import csv
import logging
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import yaml
from small_jobs import merged, write_job

from parse_mpi.cli import main
from parse_mpi.compare import pool

JOB = {
    "agents": [{"modalities": ["top"], "count": 1}, {"modalities": ["top", "bottom"], "count": 2}],
    "topology": {"kind": "complete"},
    "method": {"name": "parse", "slices": None},
    "train": {"rounds": 2},
    "evaluate": {"every": 1},
}
STUDY = {
    "name": "small",
    "cells": {
        "data": {"digits": {"job": "job.yaml"}},
        "method": {"parse": {"method": {"name": "parse"}}, "local": {"method": {"name": "local"}}},
    },
    "seeds": [100, 101],
    "launch": {"at_once": 2},
}
LOCAL = {"cells": {"method": {"parse": None}}}
FAILING = {"cells": {"rate": {"fine": {}, "wild": {"train.optimiser.lr": 1000.0, "train.rounds": 30}}}}
TUNING = {"configurations": 2, "seeds": [1], "space": {"all": {"train.optimiser.lr": {"log-uniform": [0.001, 0.5]}}}}


def write_study(folder: Path, changes=None, job=None) -> Path:
    """A study file with STUDY and the changes, beside its job."""
    write_job(folder, merged(JOB, job or {}))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(merged(STUDY, changes or {}), sort_keys=False))
    return path


class InProcess:
    """In the place of a Launch: the command has ended by the time that this is made."""

    started: list[list[str]] = []  # noqa: RUF012 (for tests to look at)

    def __init__(self, command, ranks, threads, limit_s, log, template=None, options=()):
        assert command[:3] == [sys.executable, "-m", "parse_mpi"]
        self.started.append(command[3:])
        log.parent.mkdir(parents=True, exist_ok=True)
        begun, before = (
            time.monotonic(),
            {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)},
        )
        with open(log, "w") as output, redirect_stdout(output), redirect_stderr(output):
            try:
                self.code = main(command[3:])
            except SystemExit as error:
                self.code = error.code
        for handler in logging.getLogger("parse_mpi.rank-0000").handlers:
            handler.close()
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        self.log, self.seconds = log, time.monotonic() - begun

    def poll(self):
        return self.code

    def output(self):
        return self.log.read_text()

    def ask_to_stop(self): ...

    def kill(self): ...


class NoTemplate:
    """In the place of a Template, which nothing is forked from."""

    def __init__(self, environment): ...

    def close(self): ...


def in_process(monkeypatch) -> list[list[str]]:
    """Have studies launch inside this process; returns the commands that were launched, as they come."""
    monkeypatch.setattr(pool, "Launch", InProcess)
    monkeypatch.setattr(pool, "Template", NoTemplate)
    monkeypatch.setattr(InProcess, "started", [])
    return InProcess.started


def ledger(out):
    """The lines of a study's ledger."""
    with open(out / "ledger.csv", newline="") as file:
        return list(csv.DictReader(file))


def values(command, key):
    """What a command sets a key to, in order."""
    return [json[len(key) + 1 :] for json in command if json.startswith(f"{key}=")]
