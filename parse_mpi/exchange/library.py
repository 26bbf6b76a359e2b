"""Which MPI this process is linked to."""

from __future__ import annotations

from mpi4py import MPI


def mpi_library() -> str:
    """Vendor and version in one line, for example `MPICH 5.0.2`."""
    vendor, version = MPI.get_vendor()
    return f"{vendor} {'.'.join(map(str, version))}"
