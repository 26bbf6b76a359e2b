"""A Slurm cluster of virtual nodes on this machine: controller, node daemons and munge, all ended with the context.

Loopback only, no systemd, no cgroups, ports and keys of its own. Nodes of one host share its memory and its name, so
that what tests see is Slurm's own: steps over several nodes, signals, requeues, arrays.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from launch import child_environment

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged")
POLL_S = 0.1
CONFIGURATION = """\
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=20
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port={first}-{last} CPUs={cores} RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=NO
"""


def missing() -> str:
    """Which programs of Slurm this machine lacks; "" where none."""
    return ", ".join(name for name in PROGRAMS if shutil.which(name) is None)


class Cluster:
    """`nodes` nodes of `cores` cores each; to be used as a context."""

    def __init__(self, folder: Path, nodes: int, cores: int):
        self.folder, self.nodes, self.cores = folder, nodes, cores
        # Site settings of whoever runs the tests must not reach the jobs, nor an outer launcher's.
        outside = {k: v for k, v in child_environment().items() if not k.startswith(("SBATCH_", "PARSE_MPI_"))}
        self.environment: Mapping[str, str] = outside | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, *command: str | Path, limit_s: float = 60.0) -> str:
        """What a command writes to standard output; AssertionError with all it wrote where it fails."""
        done = subprocess.run(
            [str(word) for word in command], env=self.environment, capture_output=True, text=True, timeout=limit_s,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, or of one task of an array."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", number)))

    def wait_for(self, what: str, happened: Callable[[], object], limit_s: float = 120.0) -> None:
        """Until something has happened; AssertionError with the logs of all daemons and jobs where it does not."""
        until = time.monotonic() + limit_s
        while not happened():
            if time.monotonic() > until:
                logs = [f"--- {p}\n{p.read_text('utf-8', 'replace')[-3000:]}" for p in self.folder.rglob("*.log")]
                raise AssertionError(f"{what} did not come within {limit_s:.0f} s\n" + "\n".join(logs))
            time.sleep(POLL_S)

    def _start(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(parents=True, mode=0o700)
        (self.folder / "state").mkdir()
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        files = {name: munge / name for name in ("key", "socket", "pid", "log", "seed")}
        self.run(
            "munged", "--force", f"--key-file={files['key']}", f"--socket={files['socket']}",
            f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}",
        )  # fmt: skip
        port = random.SystemRandom().randrange(20_000, 30_000)
        settings = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0], user=self.run("id", "-un").strip(), folder=self.folder,
            port=port, first=port + 1, last=port + self.nodes, nodes=self.nodes, cores=self.cores,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(settings)
        self.run("slurmctld", "-c")
        for number in range(1, self.nodes + 1):
            (self.folder / f"spool-n{number}").mkdir()
            self.run("slurmd", "-N", f"n{number}")
        self.wait_for("all nodes idle", lambda: self.run("sinfo", "-h", "-o", "%T %D") == f"idle {self.nodes}\n", 60)

    def _stop(self) -> None:
        """End jobs, then the daemons that this cluster started, and wait for them."""
        with suppress(AssertionError, subprocess.TimeoutExpired, FileNotFoundError):
            self.run("scancel", "--signal=KILL", "--full", "--me", limit_s=10)
            self.run("scancel", "--me", limit_s=10)
            self.wait_for("no job", lambda: not self.run("squeue", "-h").strip(), 10)
        files = [*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid", self.folder / "munge" / "pid"]
        pids = [int(file.read_text()) for file in files if file.exists()]
        for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            for pid in filter(_is_alive, pids):
                os.kill(pid, number)
            until = time.monotonic() + patience_s
            while any(map(_is_alive, pids)) and time.monotonic() < until:
                time.sleep(POLL_S)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
