"""The MPI world of a run: checked at the start, asked for agreement, and summed over by agent id."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from parse_mpi.errors import LaunchError

# Variables by which a launcher tells how many ranks it started, the most specific first: Slurm's PMI sets PMI_SIZE for
# the daemons that an Open MPI launcher starts by srun, and its ranks inherit that.
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS")
JSON = Any


class World:
    """A communicator with the few collective questions that a run asks. Nothing is pickled: JSON and arrays only."""

    def __init__(self, comm: MPI.Intracomm):
        self.comm = comm
        self.rank = comm.rank
        self.size = comm.size

    @staticmethod
    def connect() -> World:
        """All ranks of this launch; raises LaunchError when MPI did not join what the launcher started."""
        check_size(MPI.COMM_WORLD.size, dict(os.environ), MPI.Get_library_version())
        return World(MPI.COMM_WORLD.Dup())

    def on_host(self) -> World:
        """The ranks that share this rank's host, itself included, as a world; all ranks call it together."""
        return World(cast(MPI.Intracomm, self.comm.Split_type(MPI.COMM_TYPE_SHARED)))

    def free(self) -> None:
        """Give the communicator back; all its ranks call it together."""
        self.comm.Free()

    def ranks_on_host(self) -> int:
        """How many ranks share this rank's host, itself included."""
        host = self.on_host()
        host.free()
        return host.size

    def nodes(self) -> list[int]:
        """The host of every rank, 0, 1, ... in the order of their first ranks; equal on all ranks."""
        host = self.on_host()
        first = min(host.all_json(self.rank))
        host.free()
        firsts = self.all_json(first)
        return [sorted(set(firsts)).index(rank) for rank in firsts]

    # -- agreement ---------------------------------------------------------------------------------------------------

    def barrier(self) -> None:
        self.comm.Barrier()

    def all_agree(self, ok: bool) -> bool:
        """True where every rank says so."""
        return not self.any_of([not ok])[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Element by element, whether any rank raised the flag."""
        return self.start_any_of(flags)()

    def start_any_of(self, flags: Sequence[bool]) -> Callable[[], list[bool]]:
        """Post one Iallreduce of the flags; calling what is returned waits for the answer, equal on all ranks."""
        raised = np.array(flags, np.uint8)
        request = self.comm.Iallreduce(MPI.IN_PLACE, raised, op=MPI.MAX)

        def answer() -> list[bool]:
            request.Wait()
            return [bool(flag) for flag in raised]

        return answer

    def require_equal(self, what: str, value: str) -> None:
        """Raise LaunchError on every rank unless all ranks have the same value."""
        values = self.all_json(value)
        odd = [f"rank {r}: {v}" for r, v in enumerate(values) if v != values[0]]
        if odd:
            listed = "; ".join(odd[:4]) + (f"; and {len(odd) - 4} more" if len(odd) > 4 else "")
            raise LaunchError(
                f"ranks disagree about {what}. Rank 0: {values[0]}; {listed}.\n"
                "Start all ranks with the same command, environment and files (is a shared file system stale?)."
            )

    def gather_json(self, value: JSON) -> list[JSON] | None:
        """Values of all ranks in rank order on rank 0, None elsewhere."""
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = np.empty(self.size, np.int64)
        self.comm.Allgather(np.array([data.size], np.int64), sizes)
        everything = np.empty(int(sizes.sum()), np.uint8) if self.rank == 0 else None
        self.comm.Gatherv(data, None if everything is None else [everything, sizes.tolist()])
        if everything is None:
            return None
        return [json.loads(part.tobytes()) for part in np.split(everything, np.cumsum(sizes)[:-1])]

    def all_json(self, value: JSON) -> list[JSON]:
        """Values of all ranks in rank order, on every rank."""
        values: list[JSON] = self.broadcast_json(self.gather_json(value))
        return values

    def broadcast_json(self, value: JSON) -> JSON:
        """Rank 0's value on every rank."""
        data = np.frombuffer(json.dumps(value).encode(), np.uint8) if self.rank == 0 else np.empty(0, np.uint8)
        size = np.array([data.size], np.int64)
        self.comm.Bcast(size)
        data = data.copy() if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        self.comm.Bcast(data)
        return json.loads(data.tobytes())

    def slowest(self, seconds: Sequence[float]) -> float:
        """Median of trials that all ranks took part in, each as long as its slowest rank took."""
        longest = np.array(seconds, np.float64)
        self.comm.Allreduce(MPI.IN_PLACE, longest, op=MPI.MAX)
        return float(np.median(longest))

    # -- agents ------------------------------------------------------------------------------------------------------

    def gather_agents(self, ids: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
        """Rows of all agents on every rank, in ascending id: values [A_local, ...] to [A, ...].

        ids: the agents that the local rows belong to, in any order.
        """
        counts, all_ids = self._all_ids(ids)
        rows = np.empty((len(all_ids), *values.shape[1:]), values.dtype)
        if row := _row_type(values):
            self.comm.Allgatherv([np.ascontiguousarray(values), len(values), row], [rows, counts, None, row])
            row.Free()
        return rows[np.argsort(all_ids, kind="stable")]

    def collect_agents(
        self, ids: NDArray[np.int64], values: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[Any]] | None:
        """Ids of all agents, ascending, and their rows [A, ...] on rank 0, which alone needs memory for them; None
        elsewhere. Arguments as of `gather_agents`."""
        counts, all_ids = self._all_ids(ids)
        first = self.rank == 0
        rows = np.empty((len(all_ids) if first else 0, *values.shape[1:]), values.dtype)
        if row := _row_type(values):
            mine = [np.ascontiguousarray(values), len(values), row]
            self.comm.Gatherv(mine, [rows, counts, None, row] if first else None)
            row.Free()
        order = np.argsort(all_ids, kind="stable")
        return (all_ids[order], rows[order]) if first else None

    def _all_ids(self, ids: NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
        """How many agents every rank has, and the ids of all of them in rank order."""
        counts = np.empty(self.size, np.int64)
        self.comm.Allgather(np.array([len(ids)], np.int64), counts)
        all_ids = np.empty(int(counts.sum()), np.int64)
        self.comm.Allgatherv(np.ascontiguousarray(ids), [all_ids, counts.tolist()])
        return counts.tolist(), all_ids

    def sum_over_agents(self, ids: NDArray[np.int64], values: NDArray[np.float64], exact: bool) -> NDArray[np.float64]:
        """Sum over all agents of all ranks: values float64 [A_local, ...] to [...], equal on every rank.

        The one way to sum across agents. exact: rows are gathered and added in ascending id, the same bits on any
        rank count. Otherwise a float Allreduce, whose last bits depend on the ranks.
        """
        if exact:
            return _sum_rows(self.gather_agents(ids, values))
        total = _sum_rows(values)
        self.comm.Allreduce(MPI.IN_PLACE, total, op=MPI.SUM)
        return total


def _row_type(values: NDArray[Any]) -> MPI.Datatype | None:
    """A row of `values` as one item, so that counts in rows can't overflow an int; None where a row has no bytes."""
    row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    return MPI.BYTE.Create_contiguous(row_bytes).Commit() if row_bytes else None


def _sum_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row after row, so that the order of additions is the order of rows whatever their width."""
    total = np.zeros(rows.shape[1:])
    for row in rows:
        total += row
    return total


def expected_size(environment: dict[str, str]) -> tuple[str, int] | None:
    """How many ranks the launcher says it started, and the variable that says so; None without a launcher."""
    for variable in SIZE_VARIABLES:
        if variable == "SLURM_STEP_NUM_TASKS" and "SLURM_STEP_ID" not in environment:
            continue  # inside sbatch or salloc, but not started by srun
        if environment.get(variable, "").isdigit():
            return variable, int(environment[variable])
    return None


def check_size(size: int, environment: dict[str, str], library: str) -> None:
    """Raise LaunchError when the world is not as large as the launcher says: N worlds of size 1 must not start."""
    expected = expected_size(environment)
    if expected is None or expected[1] == size:
        return
    variable, count = expected
    name = library.strip().splitlines()[0].strip("\0 ")
    if "SLURM_STEP_ID" in environment:
        speaks = "pmix" if "Open MPI" in name else "pmi2"
        used = environment.get("SLURM_MPI_TYPE", "")
        mend = (
            f"This library speaks {speaks}{f', srun was told --mpi={used}' if used else ''}. Use srun --mpi={speaks}, "
            f"which is `mpi: {speaks}` in the site file of `parse-mpi sbatch` "
            "(`srun --mpi=list` shows what this Slurm has)."
        )
    else:
        mend = (
            "The launcher belongs to another MPI than the library. Use the mpiexec of this environment (its bin "
            "folder, see `parse-mpi doctor`), or under Slurm srun."
        )
    raise LaunchError(
        f"the launcher started {count} ranks ({variable}={count}), but MPI sees a world of {size}.\n"
        f"mpi4py is linked to: {name}\n{mend}"
    )
