"""Which HDF5 this process is linked to."""

from __future__ import annotations

import h5py


def is_parallel() -> bool:
    """Whether h5py was built with MPI, so that ranks can write one file together."""
    return bool(h5py.get_config().mpi)


def hdf5_library() -> str:
    """Versions in one line, for example `HDF5 2.0.0, h5py 3.16.0, serial`."""
    kind = "parallel" if is_parallel() else "serial"
    return f"HDF5 {h5py.version.hdf5_version}, h5py {h5py.version.version}, {kind}"
