"""Inside ranks: only parameters and named statistics leave an agent. Everything that a run hands to MPI is watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import ROOT
from mpi4py import MPI
from numpy.typing import NDArray
from small_jobs import write_dataset, write_job
from watched_comm import JSON_METHODS, Secrets, Watch, WatchedComm, is_small_json

from parse_mpi.agents.samples import Inputs, Standardisation
from parse_mpi.data.sources import load_dataset
from parse_mpi.exchange.flight import Flight
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan
from parse_mpi.run import session
from parse_mpi.run.evaluation import Evaluator
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.session import Request, run_job

COMM = MPI.COMM_WORLD.Dup()

# Every function that may hand something to MPI, and what that is. A new one must be listed, with its purpose.
PURPOSES = {
    "exchange.flight._post_collective": "rows of slices, to ranks whose agents mix with their owners",
    "exchange.flight._post_pairs": "the same by pairs of messages",
    "exchange.flight.__init__": "graph communicators",
    "exchange.flight.free": "graph communicators",
    "exchange.adoption.adopt": "a neighbour's row of a slice for an agent that gains it",
    "exchange.handshake._swap": "ids and modality bitmasks of neighbours",
    "exchange.handshake.shake_hands": "ids that two plans disagree about",
    "exchange.devices.take_seat": "host, device and threads of a rank",
    "exchange.progress.fastest_mode": "seconds",
    "exchange.progress._trial": "a barrier before seconds are taken",
    "run.session.run_job": "digests and versions; how many ranks share a host",
    "run.session.agree_on_scaling": "count, sum and sum of squares per feature over an agent's training samples",
    "run.session._end": "a barrier before the end",
    "run.resume.first_round": "where the launch begins",
    "run.resume._told_to_all": "what stands in the way of going on",
    "run.nonfinite.find_diverged": "which agents' values were not finite, and of which loss term",
    "run.snapshot.on_first_rank": "what a node's agents remember, for the shard of their node",
    "run.trainer.train": "why the ranks were asked to stop",
    "run.trainer.train_round": "flags: non-finite, asked to stop",
    "run.trainer.evaluate": "loss and test accuracy of every agent",
    "run.final.close_look": "what every agent predicts for the common evaluation samples, and scores of that",
    "run.crossmodal._gathered": "what agents with one modality make of the common test samples, in the latent space",
    "run.crossmodal._collected": "retrieval scores of pairs of agents",
    "run.consensus.total": "sums of parameters and of their squared differences",
    "run.recorder._gather": "seconds and bytes sent of every rank",
    "run.recorder._by_round": "loss terms and accuracies of every agent",
    "run.recorder._gather_links": "bytes sent from rank to rank",
    "run.recorder.write_ending": "seconds of every rank",
    "storage.saver.__init__": "a drawn name for what is not committed yet",
    "storage.saver.advance": "sizes and digests of shards, and whether a checkpoint was committed",
}
JOBS: dict[str, dict[str, Any]] = {
    "exact, events": {
        "mode": "exact",
        "data": {"poor": [{"agents": [0, 5], "modality": "a", "noise": 0.5, "missing": 0.2}], "labelled_fraction": 0.8},
        "topology": {"kind": "ring"},
        "exchange": {"via": "neighbour"},
        "events": [
            {"kind": "gain", "round": 3, "agents": [0], "modality": "b"},
            {"kind": "leave", "round": 6, "agents": [5]},
            {"kind": "join", "round": 8, "agents": [5]},
        ],
    },
    "fast, overlap, budget": {
        "data": {"stream": {"start": 0.5, "rounds": 6}},
        "topology": {"kind": "random-gossip"},
        "train": {"order": "consensus"},
        "exchange": {"budget_bytes_per_link": 4000, "turns": "priority", "reweigh_every": 2},
    },
}
KINDS = (["a"], ["b", "c"], ["a", "c"], ["a", "b", "c"])

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore::UserWarning")]


class Observed:
    """A run on these ranks, all that it handed to MPI, and what must not have been there."""

    def __init__(self, folder: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
        self.watch = Watch()
        self.world = World(WatchedComm(COMM, self.watch))  # type: ignore[arg-type]
        shared = Path(World(COMM).broadcast_json(str(folder)))
        if COMM.rank == 0:
            data = write_dataset(shared / "abc.h5")
            base = {"agents": [{"modalities": k, "count": 2} for k in KINDS], "evaluate": {"every": 3}}
            base |= {"train": {"rounds": 10, "batch_size": 16}, "checkpoint": {"every": 4}}
            source = {"data": {"source": {"hdf5": str(data)}, "partition": {"kind": "dirichlet", "alpha": 0.5}}}
            write_job(shared, merged(base | {"topology": {}}, source, job))
        COMM.Barrier()
        self.jobfile = load_job(shared / "job.yaml")
        self.out = shared / "run"
        scalings: list[Standardisation] = []
        monkeypatch.setattr(session, "agree_on_scaling", kept(session.agree_on_scaling, scalings))
        self.scalings = scalings

    def run(self, stop_after: int | None = None) -> None:
        request = Request(self.jobfile, self.out, fresh=False, stop_after=stop_after, command=["test"])
        run_job(self.world, request, StopRequest())

    def secrets(self) -> Secrets:
        """Every training sample as the file has it, standardised, and as each agent's sensor delivers it."""
        dataset = load_dataset(self.jobfile.job.data, self.jobfile.job.seed)
        plan = make_plan(self.jobfile, dataset, COMM.size)
        inputs = Inputs(plan, dataset, self.scalings[0])
        samples = [x.reshape(len(x), -1) for x in dataset.modalities.values()]
        for m in dataset.modalities:
            for i, own in enumerate(plan.samples):
                samples.append(inputs.seen(np.full(len(own), i), m, own).reshape(len(own), -1))
        labels = [dataset.labels[own] for own in plan.samples] + [inputs.labels(i) for i in range(len(plan.samples))]
        return Secrets(samples, labels)

    def leaks(self) -> set[str]:
        """What MPI was given that it should not have been, by caller, over all ranks."""
        secrets = self.secrets()
        mine = {f"{call.caller} sends {what}" for call in self.watch.calls if (what := secrets.found_in(call))}
        mine |= {f"{call.caller} is not listed" for call in self.watch.calls if call.caller not in PURPOSES}
        large = (call for call in self.watch.calls if call.via in JSON_METHODS and not is_small_json(call))
        mine |= {f"{call.caller} sends much text" for call in large}
        return {what for found in World(COMM).all_json(sorted(mine)) for what in found}


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Mappings laid over each other."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def kept(function: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
    """The function, whose results are kept."""

    def call(*arguments: Any) -> Any:
        results.append(function(*arguments))
        return results[-1]

    return call


@pytest.mark.parametrize("job", JOBS)
def test_only_parameters_and_named_statistics_are_handed_to_mpi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """A run with evaluation, checkpoints and all that its job asks for, stopped and resumed."""
    observed = Observed(tmp_path, JOBS[job], monkeypatch)
    observed.run(stop_after=5)
    observed.run()
    callers = {call.caller for call in observed.watch.calls if call.sent}
    assert {"run.session.agree_on_scaling", "run.trainer.evaluate", "storage.saver.advance"} <= callers
    assert observed.leaks() == set()
    rows = {"exchange.flight._post_collective", "exchange.flight._post_pairs"} & callers
    assert bool(rows) == (COMM.size > 1)


def test_the_list_of_purposes_names_functions_that_exist() -> None:
    for place in PURPOSES:
        module, _, function = place.rpartition(".")
        source = (ROOT / "parse_mpi" / (module.replace(".", "/") + ".py")).read_text()
        assert f"def {function}(" in source, place


def send_a_sample(flight: Flight) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As Flight.pack, but the first features of a sample take the place of parameters."""
    send, receive = pack(flight)
    if send.size:
        send[0, : len(SAMPLE)] = SAMPLE
    return send, receive


def tell_labels(evaluator: Evaluator) -> NDArray[np.float64]:
    """As Evaluator.accuracy, but the agents' labels are told beside it."""
    told = [evaluator.inputs.dataset.labels[evaluator.plan.samples[i]].tolist() for i in evaluator.group.ids]
    World(WatchedComm(COMM, WATCHES[-1])).all_json(told)  # type: ignore[arg-type]
    return accuracy(evaluator)


SAMPLE = np.zeros(3, np.float32)
WATCHES: list[Watch] = []
pack, accuracy = Flight.pack, Evaluator.accuracy


@pytest.mark.mpi(min_size=2)
def test_a_sample_among_the_rows_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observed = Observed(tmp_path, JOBS["exact, events"], monkeypatch)
    monkeypatch.setattr(Flight, "pack", send_a_sample)
    SAMPLE[:] = load_dataset(observed.jobfile.job.data, 0).modalities["c"][7, 1:4]
    observed.run(stop_after=1)
    assert observed.leaks() == {"exchange.flight._post_collective sends values of a sample"}


def test_labels_in_text_and_an_unknown_caller_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observed = Observed(tmp_path, JOBS["exact, events"], monkeypatch)
    WATCHES.append(observed.watch)
    monkeypatch.setattr(Evaluator, "accuracy", tell_labels)
    observed.run(stop_after=1)
    here = f"{__name__}.tell_labels"
    assert observed.leaks() == {f"{here} sends the labels of an agent", f"{here} is not listed"}


def test_a_pickled_object_is_refused() -> None:
    with pytest.raises(AssertionError, match="say in watched_comm what it sends"):
        WatchedComm(COMM, Watch()).bcast({"x": 1})


def test_sixty_changes_of_era_leave_no_communicators_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [{"kind": ("cut", "heal")[r % 2], "round": r + 1, "links": [[0, 1]]} for r in range(60)]
    job = {"mode": "exact", "topology": {"kind": "complete"}, "exchange": {"via": "neighbour"}, "events": events}
    job |= {"train": {"rounds": 62, "batch_size": 4}, "evaluate": {"every": 62}, "checkpoint": {"every": 62}}
    job |= {"agents": [{"modalities": ["a", "c"], "count": 4}]}
    observed = Observed(tmp_path, job, monkeypatch)
    observed.run()
    graphs = len(make_plan(observed.jobfile, load_dataset(observed.jobfile.job.data, 0), COMM.size).graphs)
    rebuilt = [call.method for call in observed.watch.calls if call.caller == "exchange.flight.__init__"]
    assert len(rebuilt) == (61 * graphs if COMM.size > 1 else 0)
    assert observed.watch.made == observed.watch.freed > 0
    assert observed.watch.most <= max(1, graphs)
