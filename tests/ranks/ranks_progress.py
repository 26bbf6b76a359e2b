"""Inside ranks: rows that travel while agents learn, whoever keeps them moving."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixing_cases import Case, Mixer, draw_cases
from mpi4py import MPI
from small_jobs import make_trainer, write_dataset

from parse_mpi.errors import LaunchError
from parse_mpi.exchange.progress import MODES, Progress, fastest_mode, possible_modes
from parse_mpi.exchange.world import World
from parse_mpi.job import Topology
from parse_mpi.run.trainer import Trainer
from parse_mpi.topology.slice_graph import slice_graph

WORLD = World(MPI.COMM_WORLD.Dup())
PATIENCE_S = 20.0

pytestmark = pytest.mark.mpi


def wide_case() -> Case:
    """Rows of 4 MB, which no MPI delivers by itself, on a complete graph with an agent or two a rank."""
    agents = WORLD.size + 1
    graph = slice_graph("graph", [range(agents)], Topology(kind="complete"), 0, agents)
    values = {"slice a": np.random.default_rng(0).normal(size=(agents, 1_000_000))}
    return Case(graph, {"slice a": 1_000_000}, np.arange(agents) % WORLD.size, values)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "mpi-progress"]


def test_this_mpi_allows_every_mode() -> None:
    assert possible_modes() == list(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_mixes_the_same(mode: str) -> None:
    for case in draw_cases(WORLD.size):
        mixer, reference = Mixer(WORLD, case, apart=True), Mixer(WORLD, case, apart=True)
        progress = Progress(mode)
        for r in range(3):
            reference.round(r)
            mixer.exchange.start(r)
            with progress.during([mixer.exchange]):
                for _ in range(5):
                    progress.poll()
            mixer.finish()
        for name, x in mixer.values().items():
            assert x.tobytes() == reference.values()[name].tobytes()
        mixer.exchange.free()
        reference.exchange.free()
    assert threads() == []


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("mode", ["thread", "poll"])
def test_rows_arrive_while_the_work_goes_on(mode: str) -> None:
    """Inside `during` nobody waits: the work ends because it sees that the rows have come.

    A thread ends when it has seen them, which may be before anyone looks.
    """
    mixer, progress = Mixer(WORLD, wide_case(), apart=True), Progress(mode)
    mixer.exchange.start(0)
    sent_s = time.perf_counter()
    with progress.during([mixer.exchange]):
        assert bool(threads() or progress.arrived_s) == (mode == "thread")
        while not progress.arrived_s and time.perf_counter() - sent_s < PATIENCE_S:
            progress.poll()
            time.sleep(1e-3)
    assert sent_s < progress.arrived_s < sent_s + PATIENCE_S
    WORLD.barrier()
    mixer.finish()
    assert threads() == []
    mixer.exchange.free()


@pytest.mark.mpi(min_size=2)
def test_without_progress_nothing_is_seen_to_arrive() -> None:
    mixer, progress = Mixer(WORLD, wide_case(), apart=True), Progress("none")
    mixer.exchange.start(0)
    with progress.during([mixer.exchange]):
        progress.poll()
    assert progress.arrived_s == 0.0
    mixer.finish()
    mixer.exchange.free()


@pytest.mark.parametrize("mode", MODES)
def test_an_error_in_the_work_comes_through_and_leaves_no_thread(mode: str) -> None:
    mixer, progress = Mixer(WORLD, wide_case(), apart=True), Progress(mode)
    mixer.exchange.start(0)
    with pytest.raises(ZeroDivisionError, match="planted"), progress.during([mixer.exchange]):
        raise ZeroDivisionError("planted")
    assert threads() == []
    mixer.finish()
    mixer.exchange.free()


def test_the_next_round_starts_with_nothing_arrived() -> None:
    mixer, progress = Mixer(WORLD, wide_case(), apart=True), Progress("thread")
    progress.arrived_s = 1.0
    with progress.during([mixer.exchange]):
        pass
    assert progress.arrived_s == 0.0
    mixer.exchange.free()


def test_a_thread_needs_an_mpi_that_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_FUNNELED)
    assert possible_modes() == ["poll", "none"]
    Progress("poll")
    with pytest.raises(LaunchError, match="MPI_THREAD_MULTIPLE"):
        Progress("thread")


def build(folder: Path, **exchange: object) -> Trainer:
    """A trainer of a small job in the order consensus, on these ranks."""
    changes: dict[str, Any] = {
        "data": {"source": {"hdf5": str(write_dataset(folder / "abc.h5"))}},
        "agents": [{"modalities": kind, "count": 2} for kind in (["a"], ["b"], ["a", "b"])],
        "mode": "exact",
        "train": {"order": "consensus", "local_steps": 2, "optimiser": {"name": "adamw", "lr": 0.01}},
        "exchange": exchange,
    }
    trainer, _, _ = make_trainer(folder, changes, world=WORLD)
    return trainer


def state(trainer: Trainer) -> dict[str, bytes]:
    """All that outlives a round, and the live rows."""
    found = {"steps": trainer.now.group.steps.to_bytes(8, "little")}
    for name, rows in trainer.now.group.slices.items():
        found |= {f"{name}/{key}": matrix.numpy().tobytes() for key, matrix in rows.matrices().items()}
        found[f"{name}/mixed"] = rows.mixed.numpy().tobytes()
    return found


def test_the_measurement_leaves_no_trace_and_all_ranks_choose_alike(tmp_path: Path) -> None:
    """Nor does it move the agents' stream of batches: the rounds that follow have the bits of those without it."""
    trainer, unmeasured = build(tmp_path, progress="auto"), build(tmp_path, progress="none")
    for r in range(2):
        assert_same_round(trainer, unmeasured, r)
    before = state(trainer)
    mode, seconds = fastest_mode(WORLD, trainer.now.exchanges, trainer.now.group.rehearse)
    assert state(trainer) == before
    assert seconds.keys() == set(MODES)
    assert seconds[mode] == min(seconds.values()) > 0
    told = WORLD.all_json([mode, seconds])
    assert all(answer == told[0] for answer in told)
    trainer.choose_progress()
    for r in range(2, 5):
        assert_same_round(trainer, unmeasured, r)
    assert threads() == []
    trainer.close()
    unmeasured.close()


def assert_same_round(first: Trainer, second: Trainer, round_index: int) -> None:
    losses = [trainer.train_round(round_index)[0] for trainer in (first, second)]
    assert torch.equal(*losses)
    assert state(first) == state(second)


@pytest.mark.parametrize("mode", ["thread", "poll"])
def test_progress_changes_no_bit_of_training(tmp_path: Path, mode: str) -> None:
    trainer, reference = build(tmp_path, progress=mode), build(tmp_path, progress="none")
    trainer.choose_progress()
    assert trainer.progress.mode == (mode if WORLD.size > 1 else "none")
    for r in range(3):
        assert_same_round(trainer, reference, r)
        assert WORLD.size == 1 or trainer.travel_s > 0
    trainer.close()
    reference.close()
