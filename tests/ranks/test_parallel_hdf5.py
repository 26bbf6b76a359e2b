"""One file written by all ranks with parallel HDF5: as if one rank had written it, and a failure never hangs.

PyPI's h5py is serial, so this runs with Debian's: apt-get install python3-h5py-mpi python3-mpi4py openmpi-bin. What
Debian's Python lacks is taken from the packages of the tests.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from launch import child_environment, run
from write_together import AGENTS, ROUND, placements, rows_of

from parse_mpi.errors import LaunchError
from parse_mpi.storage.checkpoint import Checkpoint, open_checkpoint
from parse_mpi.storage.parallel import require_parallel_hdf5
from parse_mpi.storage.read import Content, read_hdf5
from parse_mpi.storage.shard import AgentArray, write_shard

PYTHON, MPIRUN = "/usr/bin/python3", "/usr/bin/mpirun.openmpi"
PACKAGES = sysconfig.get_path("platlib")
APPEND_PACKAGES = "import sys; sys.path.append(sys.argv.pop(1))\n"  # last, so that Debian's own are found first
RUN_SCRIPT = APPEND_PACKAGES + "from mpi4py.run import main; main()"  # which aborts all ranks when one raises
PROBE = APPEND_PACKAGES + "import h5py, mpi4py, pydantic\nassert h5py.get_config().mpi, 'its h5py is serial'"
PARALLEL = {"H5PY_ALWAYS_USE_MPI": "1"}  # Debian's h5py has two builds
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def debian() -> None:
    """Skips where there is no Python with parallel HDF5 that can also use what is installed for the tests."""
    if not (Path(PYTHON).exists() and Path(MPIRUN).exists()):
        pytest.skip(f"no {PYTHON} with {MPIRUN}: apt-get install python3-h5py-mpi python3-mpi4py openmpi-bin")
    environment = child_environment() | PARALLEL
    probe = subprocess.run([PYTHON, "-c", PROBE, PACKAGES], capture_output=True, text=True, env=environment, timeout=60)
    if probe.returncode:
        pytest.skip(f"{PYTHON} has no parallel HDF5 for these tests: {probe.stderr.strip().splitlines()[-1]}")


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_one_file_of_all_ranks_is_the_file_of_one_rank(ranks: int, tmp_path: Path) -> None:
    out, serial = tmp_path / "out", tmp_path / "serial"
    out.mkdir()
    serial.mkdir()
    script = str(Path(__file__).with_name("write_together.py"))
    environment = PARALLEL | {"OMPI_MCA_rmaps_base_oversubscribe": "1"}
    made = run(ranks, [PYTHON, "-c", RUN_SCRIPT, PACKAGES, script, str(out)], tmp_path, LIMIT_S, environment, MPIRUN)
    assert made.code == 0, made

    state = rows_of(list(range(AGENTS)))
    expected = write_shard(serial, 0, ROUND, state)
    alone = read_hdf5(serial / "shard-0000.h5")
    for name in placements(ranks):
        checkpoint = open_checkpoint(out / name, ROUND)
        assert checkpoint.manifest.arrays == expected.arrays  # digests among them
        checkpoint.verify()
        assert_same_content(read_hdf5(checkpoint.path / "shard-0000.h5"), alone)
        for readers in (1, 3):
            for reader in range(readers):
                assert_reads(checkpoint, state, [agent for agent in range(AGENTS) if agent % readers == reader])


def assert_same_content(file: Content, other: Content) -> None:
    """The same data sets, of the same types and numbers, and the same attributes."""
    assert file.attributes == other.attributes
    assert file.arrays.keys() == other.arrays.keys()
    for name, values in file.arrays.items():
        np.testing.assert_array_equal(values, other.arrays[name], strict=True)


def assert_reads(checkpoint: Checkpoint, state: list[AgentArray], agents: list[int]) -> None:
    """A rank that hosts these agents gets their rows."""
    for array in state:
        here = np.isin(array.agents, agents)
        rows = checkpoint.read(array.name, array.agents[here])
        np.testing.assert_array_equal(rows, array.values[here], strict=True)


class TwoRanks:
    """Rank 0 of a world whose other rank has a serial h5py."""

    rank, size, comm = 0, 2, None

    def all_json(self, value: str) -> list[str]:
        return [value, "HDF5 2.0.0, h5py 3.16.0, serial"]


def test_a_serial_h5py_on_any_rank_is_refused_with_the_next_step() -> None:
    with pytest.raises(LaunchError, match=r"rank . has HDF5 .* serial\.\nSet checkpoint\.shards: auto"):
        require_parallel_hdf5(TwoRanks())
