"""Inside ranks: whatever makes agents diverge, only finite values are sent and saved, and runs go on without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from event_cases import CASES as EVENT_CASES
from mpi4py import MPI
from ranks_events import differing, one_round, state
from small_jobs import ADAPTIVE, Quiet, merged, saved, write_job

from parse_mpi.agents.group import AgentGroup
from parse_mpi.agents.samples import AgentSamples
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import NonFiniteError
from parse_mpi.exchange.flight import Flight
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.session import build_trainer
from parse_mpi.run.trainer import Trainer
from parse_mpi.storage.checkpoint import load_newest, open_checkpoint
from parse_mpi.storage.saver import Saver

WORLD = World(MPI.COMM_WORLD.Dup())
ALONE = World(MPI.COMM_SELF)
BAD = 7  # an agent with both modalities

pytestmark = pytest.mark.mpi

RING, LAZY = {"kind": "ring"}, {"kind": "ring", "lazy": True}
CASES: dict[str, dict[str, Any]] = {
    "sgd, 3 local steps": {"train": {"local_steps": 3, "optimiser": {"momentum": 0.0}}},
    "nesterov, stacked": {"engine": "stacked", "train": {"optimiser": {"momentum": 0.9, "nesterov": True}}},
    "heavy ball, consensus, adaptive widths": {
        "train": {"order": "consensus", "optimiser": {"weight_decay": 0.1}},
        "method": {"slices": ADAPTIVE},
    },
    "adamw, consensus, budget, adaptive weight": {
        "engine": "stacked",
        "train": {"order": "consensus", "local_steps": 2, "optimiser": {"name": "adamw", "lr": 0.01}},
        "exchange": {"budget_bytes_per_link": 2000, "turns": "priority", "reweigh_every": 1},
        "method": {"fusion": "gated", "beta_schedule": {"kind": "adaptive", "every": 1}},
    },
    "qg-dsgdm, 2 local steps": {"train": {"local_steps": 2, "optimiser": {"name": "qg-dsgdm"}}},
    "gradient tracking": {"train": {"order": "consensus", "optimiser": {"name": "gradient-tracking"}}},
    "d2": {"engine": "stacked", "topology": LAZY, "train": {"optimiser": {"name": "d2"}}},
}


def nan_loss(group: AgentGroup, losses: torch.Tensor, k: int) -> None:
    losses[k, 1] = torch.nan


def no_gradient(group: AgentGroup, losses: torch.Tensor, k: int) -> None:
    losses[k] = 1.0
    for rows in group.slices.values():
        rows.gradients[rows.agents == group.ids[k]] = 0.0


def set_gradient(value: float) -> Callable[[AgentGroup, torch.Tensor, int], None]:
    def spoil(group: AgentGroup, losses: torch.Tensor, k: int) -> None:
        rows = group.slices["redundant_head"]
        rows.gradients[rows.agents.tolist().index(int(group.ids[k])), 5] = value

    return spoil


def huge_parameter(group: AgentGroup, losses: torch.Tensor, k: int) -> None:
    rows = group.slices["redundant_head"]
    rows.local[rows.agents.tolist().index(int(group.ids[k])), 3] = -2e18


FAULTS = {
    "loss": nan_loss,
    "gradient nan": set_gradient(float("nan")),
    "gradient -inf": set_gradient(-float("inf")),
    "gradient 1e30": set_gradient(1e30),
    "parameter": huge_parameter,
}


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """inject(fault, agents by local step): what then happens to the losses and gradients of these agents."""
    whole = AgentGroup._gradients

    def inject(fault: Callable[..., None], when: dict[int, list[int]]) -> None:
        def gradients(self: AgentGroup, step: int, poll: Callable[[], None]) -> torch.Tensor:
            losses = whole(self, step, poll)
            for k in np.flatnonzero(np.isin(self.ids, when.get(step, []))).tolist():
                fault(self, losses, k)
            return losses

        monkeypatch.setattr(AgentGroup, "_gradients", gradients)

    return inject


@pytest.fixture(autouse=True)
def sent_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many numbers this rank sent in each message; none that is not finite."""
    pack, sizes = Flight.pack, []

    def checked(self: Flight) -> tuple[np.ndarray, np.ndarray]:
        send, receive = pack(self)
        assert np.isfinite(send).all()
        sizes.append(send.size)
        return send, receive

    monkeypatch.setattr(Flight, "pack", checked)
    yield sizes
    assert WORLD.size == 1 or sum(sizes) > 0


def start(world: World, path: Path, out: Path, done: int = 0, listener: Any = None) -> Trainer:
    jobfile = load_job(path)
    dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
    plan = make_plan(jobfile, dataset, world.size)
    out.mkdir(exist_ok=True)
    saver = Saver(world, out, jobfile.job.checkpoint.keep)
    return build_trainer(world, plan, dataset, saver, torch.device("cpu"), listener or Quiet(), done)


def all_finite(trainer: Trainer) -> bool:
    group = trainer.now.group
    live = [m for rows in group.slices.values() for m in (rows.source, *rows.matrices().values())]
    return all(bool(torch.isfinite(m).all()) for m in (*live, *group.alignment.state.values()))


def small(folder: Path, changes: dict[str, Any]) -> Path:
    basis = {
        "engine": "loop",
        "train": {"batch_size": 16, "rounds": 5},
        "checkpoint": {"every": 1},
        "evaluate": {"every": 2},
    }
    return write_job(folder, merged(basis, changes))


# Two kinds of faults for every case, and every kind in several cases; test_optimisers.py has all optimisers with all.
EVERY_FAULT = [*FAULTS, "samples"]
PAIRS = [(case, fault) for k, case in enumerate(CASES) for fault in EVERY_FAULT[k % 3 :: 3]]


@pytest.mark.parametrize(("case", "fault"), PAIRS)
def test_what_diverges_is_never_sent_or_saved(
    case: str, fault: str, tmp_path: Path, inject: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shared = small(tmp_path, CASES[case]), Path(WORLD.broadcast_json(str(tmp_path)))
    trainer = start(WORLD, path, shared / "run")
    first = 2 * trainer.plan.job.train.local_steps  # the first local step of the third round, and no later one
    if fault == "samples":
        poison_samples(monkeypatch, range(first, first + 1))
    else:
        inject(FAULTS[fault], {first: [BAD]})
    home = trainer.plan.rank_of[BAD]
    with pytest.raises(
        NonFiniteError, match=rf"round 3: not finite: agent {BAD} \(top\+bottom, rank {home}\): "
    ) as found:
        trainer.train(0, 5, StopRequest())
    terms = {"loss": "loss ensemble", "samples": "loss ensemble, heads"}
    assert terms.get(fault, "gradient or parameters") in str(found.value)
    assert "--fresh" in str(found.value)
    assert ("on_nonfinite=isolate" in str(found.value)) == (case not in ("gradient tracking", "d2"))
    assert all_finite(trainer)
    assert trainer.saved == 2
    checkpoint, rejected = load_newest(shared / "run")
    assert checkpoint is not None
    assert (checkpoint.round_index, rejected) == (2, [])
    for name in checkpoint.names():
        assert np.isfinite(checkpoint.read(name, checkpoint.agents_of(name))).all(), name
    trainer.close()


def poison_samples(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """NaN in all samples that the agent sees in these local steps."""
    step, gather = AgentGroup.local_step, AgentSamples.gather
    active: list[AgentGroup] = []

    def local_step(self: AgentGroup, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        active[:] = [self] if self.steps in steps else []
        return step(self, *arguments)

    def poisoned(self: AgentSamples, agents: torch.Tensor, *arguments: Any) -> Any:
        x, y = gather(self, agents, *arguments)
        if active:
            bad = torch.from_numpy(active[0].ids == BAD)[agents]
            x = {
                m: torch.where(bad.reshape(*agents.shape, *[1] * (v.dim() - agents.dim())), torch.nan, v)
                for m, v in x.items()
            }
        return x, y

    monkeypatch.setattr(AgentGroup, "local_step", local_step)
    monkeypatch.setattr(AgentSamples, "gather", poisoned)


@pytest.mark.parametrize(
    "case", ["sgd, 3 local steps", "nesterov, stacked", "adamw, consensus, budget, adaptive weight"]
)
def test_parameters_that_no_loss_feels_don_t_overflow(case: str, tmp_path: Path, inject: Callable[..., None]) -> None:
    """Weight decay alone makes them 999 times as large in every step, with finite losses and gradients."""
    optimiser = {"lr": 1e3, "weight_decay": 1.0, "betas": [0.0, 0.0] if "adamw" in case else None}
    changes = merged(CASES[case], {"train": {"optimiser": optimiser}})
    shared = Path(WORLD.broadcast_json(str(tmp_path)))
    trainer = start(WORLD, small(tmp_path, changes), shared / "run")
    inject(no_gradient, {step: list(range(10)) for step in range(100)})
    with pytest.raises(NonFiniteError, match="gradient or parameters"):
        trainer.train(0, 20, StopRequest())
    assert trainer.saved > 0
    assert all_finite(trainer)
    trainer.close()


# -- going on without them -------------------------------------------------------------------------------------------


class Loud(Quiet):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


ROUNDS = 8
LOST = {3: [6, 1], 5: [8]}  # agents that diverge in the round that ends as so many
GOING_ON = {
    "ring": {"mode": "exact", "topology": RING, "train": {"batch_size": 16}},
    "everything else at once": EVENT_CASES["everything else at once"],
}


@pytest.mark.parametrize("case", GOING_ON)
def test_every_round_and_every_restart_without_them_gives_the_same_bits(
    case: str, tmp_path: Path, inject: Callable[..., None]
) -> None:
    """Later events concern agents that are cut off, and no longer do anything to them."""
    path = write_job(
        tmp_path, merged(GOING_ON[case], {"train": {"on_nonfinite": "isolate"}, "checkpoint": {"keep": 99}})
    )
    shared = Path(WORLD.broadcast_json(str(tmp_path)))
    folders = {WORLD: shared / "all", ALONE: tmp_path / "one"}
    voice, after = Loud(), {}
    together, alone = (
        start(WORLD, path, folders[WORLD], listener=voice),
        start(ALONE, path, folders[ALONE], listener=Loud()),
    )
    steps = alone.plan.job.train.local_steps
    inject(nan_loss, {done * steps - 1: agents for done, agents in LOST.items()})
    gone: set[int] = set()
    for done in range(1, ROUNDS + 1):
        for trainer in (together, alone):
            one_round(trainer, done - 1)
            saved(trainer, done)
        after[done] = state(alone)
        assert differing(state(together), after[done]) == [], f"round {done}"
        assert gone.isdisjoint(alone.now.group.ids.tolist())
        gone |= set(LOST.get(done, []))
    assert [text[:31] for text in voice.warnings if "CUT OFF" in text] == [
        "round 3: not finite: agent 1 (t", "round 5: not finite: agent 8 (t"
    ]  # fmt: skip
    together.close()
    alone.close()
    for done in range(2, ROUNDS - 1):  # by turns on all ranks from what one has saved, and the other way round
        world, written = ((WORLD, shared / "one"), (ALONE, shared / "all"))[done % 2]
        again = start(world, path, folders[world], done, Loud())
        again.restore(open_checkpoint(written, done))
        for more in range(done, min(done + 2, ROUNDS)):
            one_round(again, more)
            assert differing(state(again), after[more + 1]) == [], f"round {more + 1} after a restart at {done}"
        again.close()


def test_who_is_cut_off_is_like_one_that_leaves_after_a_round_without_a_step(
    tmp_path: Path, inject: Callable[..., None]
) -> None:
    """A zero gradient and an event at that time are the same to everybody else."""
    plain = {"mode": "exact", "train": {"batch_size": 16, "optimiser": {"momentum": 0.0}, "on_nonfinite": "isolate"}}
    leave = {"events": [{"kind": "leave", "round": 3, "agents": [BAD]}]}
    folders = [tmp_path / "lost", tmp_path / "leaves"]
    found = []
    for folder, changes, fault in zip(folders, (plain, plain | leave), (nan_loss, no_gradient), strict=True):
        folder.mkdir()
        inject(fault, {2: [BAD]})
        trainer = start(WORLD, write_job(folder, changes), folder, listener=Loud())
        for done in range(6):
            one_round(trainer, done)
        found.append(state(trainer))
        trainer.close()
    assert found[0] == found[1]
