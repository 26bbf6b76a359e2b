"""Network namespaces as separate hosts: a name, an address and a network device each, and a launcher that spans them.

A process holds each host's namespaces and ends when this one closes its standard input, or dies: the kernel then takes
namespaces, devices and queues away, so that nothing is left behind. What hosts share is the file system and the cores.
Ranks of different hosts talk by TCP alone; those of one host by shared memory, as usual.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from launch import find_mpiexec, run

from parse_mpi.scaling.runner import ScalingStudy

Answer = dict[str, np.ndarray]
ROUNDS = Path(__file__).with_name("network_rounds.py")
FORWARDER = Path(__file__).with_name("tun_forwarder.py")
TUN = Path("/dev/net/tun")
DEVICE = "eth0"
QUEUE = 20_000  # packets that a device may hold back: latency is meant to delay them, not to lose them
HOLD = 'hostname "$0" && echo ready && exec cat'  # cat ends with its standard input
# UCX, which MPICH's wheel is built with, would see that the hosts are one machine and go round the network.
OVER_TCP = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": DEVICE}
END_S = 5.0


def why_not() -> str:
    """Why there can be no such hosts here; "" where there can."""
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install {package})"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    made = subprocess.run(
        ["unshare", "--net", "--uts", "ip", "link", "add", "port0", "type", "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    if not TUN.exists():
        return f"no latency between namespaces: there is no {TUN}"
    answer = subprocess.run([find_mpiexec(), "--version"], capture_output=True, text=True, check=False)
    return "" if "HYDRA" in answer.stdout else "the launcher of these hosts is MPICH's"


class Network:
    """Hosts `node0`, `node1`, … in one subnet.

    delay_s: one way, for every packet; 0 for pairs of devices on a bridge, as fast as the kernel is. rate_mbit: what
    each host may send in a second; None for no limit. folder: for two small scripts. Leaving the context ends it all.
    """

    def __init__(self, hosts: int, folder: Path, delay_s: float = 0.0, rate_mbit: float | None = None):
        self.addresses = [f"10.77.0.{k + 1}" for k in range(hosts)]
        self.folder = folder
        self.mpiexec = str(folder / "mpiexec")
        self._delay_s = delay_s
        self._rate_mbit = rate_mbit
        self._holders: list[int] = []
        self._carrier = 0
        self._held = ExitStack()

    def __enter__(self) -> Network:
        with ExitStack() as stack:
            self._holders = [_hold(stack, f"node{k}") for k in range(len(self.addresses))]
            if self._delay_s:
                command = [sys.executable, "-S", str(FORWARDER), str(self._delay_s), *map(str, self._holders)]
                self._carrier = _start(stack, command)
            else:
                self._carrier = _hold(stack, "switch")
                self._join_by_bridge(self._carrier)
            for pid, address in zip(self._holders, self.addresses, strict=True):
                self._raise_devices(pid, address)
            self._write_scripts()
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def sent_bytes(self) -> list[int]:
        """Bytes that each host has put on the wire so far, headers included."""
        return [sent_on_wire(pid) for pid in self._holders]

    def pids(self) -> list[int]:
        """Processes that hold the hosts, and the one between them."""
        return [*self._holders, self._carrier]

    def _join_by_bridge(self, switch: int) -> None:
        _inside(switch, "ip link add bridge type bridge")
        _inside(switch, "ip link set bridge up")
        for k, pid in enumerate(self._holders):
            _inside(switch, f"ip link add port{k} type veth peer name {DEVICE} netns {pid}")
            _inside(switch, f"ip link set port{k} master bridge up")

    def _raise_devices(self, pid: int, address: str) -> None:
        _inside(pid, "ip link set lo up")
        _inside(pid, f"ip address add {address}/24 dev {DEVICE}")
        _inside(pid, f"ip link set {DEVICE} up txqueuelen {QUEUE}")
        # Otherwise the first bytes after a pause, as local steps are one, would wait for many more round trips.
        _inside(pid, "sh -c 'echo 0 > /proc/sys/net/ipv4/tcp_slow_start_after_idle'")
        if self._rate_mbit:
            _inside(pid, f"tc qdisc add dev {DEVICE} root tbf rate {self._rate_mbit}mbit burst 64kb latency 200ms")

    def _write_scripts(self) -> None:
        """`mpiexec`, which starts ranks on all hosts in turn, and `reach`, by which it comes to them instead of ssh."""
        cases = [f"{a}) host={pid};;" for a, pid in zip(self.addresses, self._holders, strict=True)]
        reach = ['while [ "$1" = -x ]; do shift; done', 'case "$1" in', *cases, "esac", "shift"]
        _write_script(self.folder / "reach", [*reach, 'exec nsenter -t "$host" -n -u sh -c "$*"'])
        options = f"-launcher ssh -launcher-exec {shlex.quote(str(self.folder / 'reach'))} -iface {DEVICE}"
        start = f"{shlex.quote(find_mpiexec())} {options} -hosts {','.join(self.addresses)}"
        _write_script(self.folder / "mpiexec", [f'exec nsenter -t {self._holders[0]} -n -u {start} "$@"'])


def sent_on_wire(pid: int | str = "self") -> int:
    """Bytes that the host of a process has put on the wire so far."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    (counters,) = [line.split(":")[1].split() for line in lines if line.strip().startswith(f"{DEVICE}:")]
    return int(counters[8])


def ask(network: Network, questions: Sequence[Mapping[str, object]], log_dir: Path, limit_s: float) -> list[Answer]:
    """What network_rounds.py answers, with one rank on each host."""
    command = [sys.executable, "-m", "mpi4py", str(ROUNDS), json.dumps(questions)]
    outcome = run(len(network.addresses), command, log_dir, limit_s, OVER_TCP, network.mpiexec)
    assert outcome.code == 0, outcome
    answers = json.loads(outcome.logs[0].splitlines()[-1])
    return [{name: np.array(by_rank) for name, by_rank in answer.items()} for answer in answers]


def run_points(study: ScalingStudy, network: Network, log_dir: Path, limit_s: float) -> None:
    """Run what a scaling study has not measured yet: on all hosts in turn, or on none of them and by shared memory."""
    for point in study.unfinished():
        apart = point.nodes > 1
        assert point.nodes in (1, len(network.addresses))
        words = [sys.executable, "-m", "parse_mpi", *study.command(point)[1:]]
        way = (OVER_TCP, network.mpiexec) if apart else (None, None)
        outcome = run(point.ranks, words, log_dir / point.trial.name, limit_s, *way)
        assert outcome.code == 0, outcome


def _hold(stack: ExitStack, name: str) -> int:
    """Process id of what holds a new host."""
    return _start(stack, ["unshare", "--net", "--uts", "sh", "-c", HOLD, name])


def _start(stack: ExitStack, command: Sequence[str]) -> int:
    """Start a process that says when it is ready, and ends with its standard input at the end of `stack`."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(_end, process)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise OSError(f"could not start {' '.join(command)}")
    return process.pid


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _inside(pid: int, command: str) -> None:
    """Run a command on a host."""
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", "-u", *shlex.split(command)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"{command}: {done.stderr.strip()}")


def _write_script(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
