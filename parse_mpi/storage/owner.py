"""Who writes in a run directory: one launch at a time, which says so in RUN/owner.json.

Locks of parallel file systems can't be relied on, so that all rests on two things that every one of them does: a file
that must not be there yet is made by one process only, and a rename replaces a file in one step.

    RUN/owner.json              who owns the directory; renewed every HEARTBEAT_S with a counter in it
    RUN/.owner.<token>.tmp      who comes after the owner with this token; to be renamed over owner.json

Nobody but the one who made the successor's file replaces or removes the owner's, the owner itself included. Whoever is
killed in between leaves a successor that is judged like an owner: the last of this chain is who owns the directory.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parse_mpi.errors import EvictedError, StorageError
from parse_mpi.slurm import slurm_restarts
from parse_mpi.storage.read import require_plain_file
from parse_mpi.storage.rundir import RunDirectory, utc_now
from parse_mpi.storage.write import storage_errors, write_all

HEARTBEAT_S = 5.0
WATCH_S = 6 * HEARTBEAT_S  # a heartbeat may be late: the file system is shared, and so are the cores
POLL_S = 0.5
_READ_BYTES = 1 << 16

Verdict = Literal["alive", "gone", "unknown"]


class Record(BaseModel):
    """The content of owner.json. boot, pid_namespace and process_start tell processes of one id apart; "" or None: no
    /proc. restart: how often Slurm has requeued the job. since: UTC, ISO 8601. heartbeat: counts up."""

    model_config = ConfigDict(frozen=True, strict=True)

    host: str
    pid: int = Field(ge=1, lt=1 << 31)
    process_start: int | None
    boot: str
    pid_namespace: str
    job: str
    restart: int
    token: str = Field(pattern=r"^[0-9a-f]{16}$")
    since: str
    heartbeat: int

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"host {self.host}, pid {self.pid}{job}, since {self.since}"


@dataclass(frozen=True)
class Sighting:
    """What is known of an owner from outside. record: None where its file is damaged. age_s: of the last heartbeat, as
    far as the clocks of this machine and of the file system agree."""

    record: Record | None
    verdict: Verdict
    age_s: float


@dataclass(frozen=True)
class _Found:
    """A file that names an owner."""

    path: Path
    content: bytes

    @property
    def record(self) -> Record | None:
        try:
            return Record.model_validate_json(self.content)
        except ValidationError:
            return None

    @property
    def successor(self) -> Path:
        """The file of the one who comes after it."""
        unique = self.path.name.encode() + self.content
        key = self.record.token if self.record else hashlib.sha256(unique).hexdigest()[:16]
        return self.path.with_name(f".owner.{key}.tmp")

    def __str__(self) -> str:
        return str(self.record or f"unknown, {self.path} is damaged")


class Owner:
    """This launch as the owner of a run directory, from `claim` to `release`. Rank 0 alone has one."""

    def __init__(self, run: RunDirectory, record: Record, on_lost: Callable[[str], object]):
        """For `claim`, which has made the file."""
        self.run = run
        self.lost = ""
        self._record = record
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="owner", daemon=True)
        self._thread.start()

    @classmethod
    def claim(
        cls,
        run: RunDirectory,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        on_lost: Callable[[str], object] = lambda reason: None,
    ) -> Owner:
        """Become the owner of a directory that is there: at once where nobody owns it or the owner is provably gone.

        Where that can't be told, because the owner runs on another host or its file is damaged, the heartbeat is
        watched for WATCH_S. Raises StorageError when the owner is alive. say and warn: get lines for the user.
        on_lost: told, by another thread, that this launch must not write there any more.
        """
        record = _this_process()
        while True:
            chain = _chain(run)
            if not chain:
                # Whoever saw the file half written, for as long as it is watched, may have replaced it.
                if _make(run.owner_path, record) and _chain(run) == [_Found(run.owner_path, _encode(record))]:
                    break
                continue
            proven = _wait_until_gone(run, chain, record, say)
            if _replace(run, chain, record):
                how = "is gone and did not end in order" if proven else f"did not stir for {WATCH_S:.0f} s"
                (say if proven else warn)(f"{run.path}: taken over from a launch that {how} ({chain[-1]})")
                break
        with suppress(OSError):  # they are in nobody's way
            for leftover in run.path.glob(".owner.*.tmp"):
                leftover.unlink(missing_ok=True)  # others of the crowd remove theirs
        return cls(run, record, on_lost)

    def require(self) -> None:
        """Renew the heartbeat. Raises EvictedError where the directory is another launch's by now, and StorageError
        where it is not there or can't be written to."""
        with self._lock:
            if not self.lost:
                with storage_errors(self.run.owner_path, "can't be renewed"):
                    self._renew()
        if self.lost:
            raise EvictedError(f"{self.run.path}: {self.lost}. This launch stops and writes nothing more there.")

    def move_in(self, previous: Path) -> None:
        """Own the directory that stands in the place of the one that moved to `previous`. Raises StorageError."""
        with self._lock:
            if not _make(self.run.owner_path, self._record):
                raise StorageError(
                    f"{self.run.path}: another launch began there while the earlier run moved to {previous}. "
                    "Wait for that launch, or choose another --out."
                )
            (previous / self.run.owner_path.name).unlink(missing_ok=True)

    def release(self) -> None:
        """Leave the directory to whoever comes next. What is lost, or not there, is left alone."""
        self._ended.set()
        self._thread.join()
        with suppress(StorageError, OSError):
            self.require()
            mine = _Found(self.run.owner_path, _encode(self._record))
            if _make(mine.successor, _this_process()):
                self.run.owner_path.unlink()
                mine.successor.unlink()

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self.require()
            except EvictedError as error:
                self._on_lost(str(error))
                return
            except StorageError:
                pass  # the next save meets the same and says so

    def _renew(self) -> None:
        try:
            descriptor = os.open(self.run.owner_path, os.O_RDWR)
        except FileNotFoundError:
            if not self.run.exists():
                raise  # the whole directory has moved away, and may come back
            self.lost = "its owner.json was removed, by hand or by a launch that took over and has ended"
            return
        try:
            found = _Found(self.run.owner_path, os.read(descriptor, _READ_BYTES))
            if found.record is None or found.record.token != self._record.token:
                self.lost = f"another launch took over ({found})"
                return
            self._record = self._record.model_copy(update={"heartbeat": self._record.heartbeat + 1})
            # In place and never by a rename, which might replace the file of a launch that takes over right now.
            write_all(descriptor, memoryview(_encode(self._record)), 0)
        finally:
            os.close(descriptor)


def look(run: RunDirectory) -> Sighting | None:
    """The owner of a run directory, None where there is none. Raises StorageError where that can't be read."""
    chain = _chain(run)
    if not chain:
        return None
    with storage_errors(run.owner_path, "can't be read"):
        age_s = max(0.0, time.time() - run.owner_path.stat().st_mtime)
    record = chain[-1].record
    return Sighting(record, _judge(record, _this_process()) if record else "unknown", age_s)


# -- judging an owner ------------------------------------------------------------------------------------------------


def _wait_until_gone(run: RunDirectory, chain: list[_Found], me: Record, say: Callable[[str], None]) -> bool:
    """Return when the owner may be replaced, or its files have changed so that it must be judged anew.

    True where it is proven that it is gone. Raises StorageError when it is alive.
    """
    owner = chain[-1]
    verdict = _judge(owner.record, me) if owner.record else "unknown"
    if verdict == "unknown":
        say(f"{run.path} is owned by another launch ({owner}); watching its heartbeat for {WATCH_S:.0f} s")
        # Only whether it changes counts: the clocks of two machines differ.
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(POLL_S)
            now = _chain(run)
            if now and now != chain and now[-1].successor == owner.successor:
                verdict = "alive"
            if now != chain:
                break
    if verdict == "alive":
        raise StorageError(
            f"{run.path}: another launch is at work there ({owner}). Wait until it has ended, stop it, or choose "
            f"another --out; to see how far it is: parse-mpi status {run.path}"
        )
    return verdict == "gone"


def _judge(found: Record, me: Record) -> Verdict:
    """Whether an owner lives, as far as this process can prove it."""
    if found.job and found.job == me.job and found.restart < me.restart:
        return "gone"  # Slurm has ended what it requeued
    if not me.boot or (found.boot, found.pid_namespace) != (me.boot, me.pid_namespace):
        return "unknown"
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:
        pass  # it is somebody else's
    start = _process_start(found.pid)
    if start is None:
        return "unknown"
    return "alive" if start == found.process_start else "gone"


def _this_process() -> Record:
    return Record(
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start=_process_start(os.getpid()),
        boot=_boot(),
        pid_namespace=_pid_namespace(),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restart=slurm_restarts(os.environ),
        token=secrets.token_hex(8),
        since=utc_now(),
        heartbeat=0,
    )


def _process_start(pid: int) -> int | None:
    """When a process started, in clock ticks after the boot; -1 when it has ended but nobody has asked how.

    None: this system does not tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    """A name of this start of this machine; "" where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """A name of what gives pids their meaning: in each container they may count from 1."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


# -- files -----------------------------------------------------------------------------------------------------------


def _chain(run: RunDirectory) -> list[_Found]:
    """The owner's file, then that of its successor, and so on; empty where there is no owner. Raises StorageError."""
    chain: list[_Found] = []
    path = run.owner_path
    while True:
        with storage_errors(path, "can't be read"):
            try:
                require_plain_file(path)
                with open(path, "rb", buffering=0) as file:
                    chain.append(_Found(path, file.read(_READ_BYTES)))
            except FileNotFoundError:
                return chain
        path = chain[-1].successor


def _replace(run: RunDirectory, chain: list[_Found], record: Record) -> bool:
    """Take the place of an owner that was judged to be gone; False where the files changed meanwhile."""
    mine = chain[-1].successor
    if not _make(mine, record):
        return False
    with storage_errors(run.owner_path, "can't be replaced"):
        if _chain(run) == [*chain, _Found(mine, _encode(record))]:
            os.rename(mine, run.owner_path)
            return True
        mine.unlink(missing_ok=True)
    return False


def _make(path: Path, record: Record) -> bool:
    """Make a file that is not there yet; False where it is. Raises StorageError."""
    with storage_errors(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            write_all(descriptor, memoryview(_encode(record)), 0)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
    return True


def _encode(record: Record) -> bytes:
    return f"{record.model_dump_json(indent=2)}\n".encode()
