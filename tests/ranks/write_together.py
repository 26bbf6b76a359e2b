"""Inside ranks of an MPI that h5py was built with: one file written by all, over placements and planted failures.

It needs NumPy, h5py, mpi4py and pydantic alone, so that it runs where PyTorch is missing. It leaves a
run directory OUT/<placement> with a checkpoint for each placement to test_parallel_hdf5.py.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from parse_mpi.exchange.world import World
from parse_mpi.storage import parallel
from parse_mpi.storage.manifest import ShardReport
from parse_mpi.storage.parallel import require_parallel_hdf5, write_single
from parse_mpi.storage.saver import Saver
from parse_mpi.storage.shard import AgentArray

ROUND = 12
AGENTS = 7
LIMIT_BYTES = 1 << 20
# Name, agents that have it, a row's shape, dtype: rows of several reads, of odd sizes and of no bytes.
STATE: tuple[tuple[str, tuple[int, ...], tuple[int, ...], str], ...] = (
    ("slices/encoder[top]/parameters", (0, 2, 3, 5, 6), (222_222,), "<f4"),
    ("slices/encoder[top]/momentum", (0, 2, 3, 5, 6), (222_222,), "<f4"),
    ("slices/gate/parameters", (0, 1, 2, 3, 4, 5, 6), (2, 3), "<f8"),
    ("slices/rare/parameters", (4,), (5,), "<f4"),
    ("slices/nothing/parameters", (1, 2), (0,), "<f4"),
    ("agents/steps", (0, 1, 2, 3, 4, 5, 6), (), "<i8"),
)


def placements(ranks: int) -> dict[str, list[int]]:
    """Rank of every agent: in blocks, dealt in turn, and all on the last rank."""
    return {
        "blocks": [agent * ranks // AGENTS for agent in range(AGENTS)],
        "dealt": [agent % ranks for agent in range(AGENTS)],
        "last": [ranks - 1] * AGENTS,
    }


def rows_of(agents: list[int]) -> list[AgentArray]:
    """The state of these agents; arrays of which none of them has a row are left out."""
    arrays = []
    for number, (name, holders, shape, dtype) in enumerate(STATE):
        whole = (100 * np.random.default_rng(number).normal(size=(AGENTS, *shape))).astype(dtype)
        if held := [agent for agent in agents if agent in holders]:
            arrays.append(AgentArray(name, np.array(held), whole[held]))
    return arrays


def write(world: World, directory: Path, arrays: list[AgentArray]) -> ShardReport:
    """Every rank comes back; the report, on rank 0."""
    report = write_single(world, directory, ROUND, arrays)
    assert world.rank == 0 or report == ShardReport()
    world.barrier()
    return report


def own_rows(world: World) -> list[AgentArray]:
    return rows_of(list(range(world.rank, AGENTS, world.size)))


# -- what fails on one rank ------------------------------------------------------------------------------------------


@contextmanager
def limited_files() -> Iterator[None]:
    """The system refuses to let this process write past a limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def limited_while_writing() -> AbstractContextManager[Any]:
    """The same, but only once there is room for all: the collective write itself fails.

    Where one rank writes for several, Open MPI 4.1 drops that error, and only reading back shows it.
    """
    whole = parallel._write_own

    def limited(*arguments: Any) -> None:
        with limited_files():
            whole(*arguments)

    return patch.object(parallel, "_write_own", limited)


def refused_to_open() -> AbstractContextManager[Any]:
    """This rank may not open the file that rank 0 has made."""
    whole = os.open

    def refused(path: Any, flags: int, *mode: int) -> int:
        if flags == os.O_RDWR:
            raise PermissionError(13, "planted")
        return whole(path, flags, *mode)

    return patch("os.open", refused)


def damaged_afterwards() -> AbstractContextManager[Any]:
    """A bit of the largest array changes on the way to the device."""
    whole = parallel._sync

    def damaged(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(3_000_000)
            bits = file.read(1)[0]
            file.seek(3_000_000)
            file.write(bytes([bits ^ 16]))
        whole(path)

    return patch.object(parallel, "_sync", damaged)


def fail_everywhere(world: World, out: Path) -> None:
    """Whatever fails on whichever rank is told by rank 0, no rank waits for ever, and the next save succeeds."""
    for wrong in {0, world.size - 1}:
        here = world.rank == wrong
        faults = {
            f"rank {wrong}: .*shard-0000.h5: can't be written: planted. Mend": refused_to_open(),
            "rank .: .*what was read back of /slices/encoder.top./(parameters|momentum) is not": damaged_afterwards(),
        }
        if wrong == 0:
            faults["rank .: .*: can't be written: (/slices|what was read back of /slices)"] = limited_while_writing()
        for pattern, fault in faults.items():
            with fault if here else nullcontext():
                expect(world, out, own_rows(world), pattern)
        rows = own_rows(world)
        if here:
            next(array for array in rows if array.name == "slices/gate/parameters").values[0] = np.nan
        expect(world, out, rows, f"rank {wrong}: agent {wrong}: slices/gate/parameters is not finite")
    expect(world, out / "no" / "run", own_rows(world), "rank 0: .*: can't be made: No such file or directory")
    if world.size > 1:
        expect(world, out, rows_of([0]), "agent 0 has a row on more than one rank")
    assert not write(world, out / "afterwards", own_rows(world)).failure


def expect(world: World, out: Path, arrays: list[AgentArray], pattern: str) -> None:
    directory = out / f"failure-{len(list(out.glob('failure-*')))}"
    world.barrier()
    failure = write(world, directory, arrays).failure
    if world.rank == 0:
        print(failure, flush=True)
        assert re.search(pattern, failure), f"{failure!r} instead of {pattern!r}"


def main(out: Path) -> None:
    world = World.connect()
    require_parallel_hdf5(world)
    for name, rank_of in placements(world.size).items():
        rows = rows_of([agent for agent in range(AGENTS) if rank_of[agent] == world.rank])
        save(world, out / name, rows)
    fail_everywhere(world, out)


def save(world: World, run_dir: Path, rows: list[AgentArray]) -> None:
    """A checkpoint as a run writes it: first one that is abandoned on all ranks, then one that is committed."""
    if world.rank == 0:
        run_dir.mkdir()
    saver = Saver(world, run_dir, keep=2, single=True)
    for full in (True, False):
        with limited_files() if full and world.rank == 0 else nullcontext():
            saver.begin(ROUND, lambda: rows, {}, segment=lambda: None)
            record = saver.finish()
        assert record is not None
        assert record.committed != full, record
        assert ("File too large" in record.reason) == full, record
    saver.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
