"""The close look at the end of a run, against plain modules that are filled from its checkpoint."""

from itertools import permutations

import h5py
import numpy as np
import pytest
import torch
from mpi4py import MPI
from real_runs import differences, train
from sklearn.metrics import average_precision_score, f1_score
from sklearn.metrics.pairwise import cosine_similarity
from small_jobs import make_trainer, write_dataset, write_job

from parse_mpi.agents.samples import Inputs
from parse_mpi.data.dataset import TEST, VALIDATION
from parse_mpi.data.sources import load_dataset
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import load_job
from parse_mpi.measures.classification import calibration_error
from parse_mpi.plan import make_plan
from parse_mpi.population import Agent
from parse_mpi.run import crossmodal
from parse_mpi.run.crossmodal import MOST_PAIRS, Pair, pairs_of
from parse_mpi.run.final import close_look, gradient_steps
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.session import Request, agree_on_scaling, run_job
from parse_mpi.storage.checkpoint import load_newest
from parse_mpi.storage.metrics import read_metrics

KINDS = (["a"], ["b", "c"], ["b"], ["a", "b", "c"], ["a"])
ABC = {
    "mode": "exact",
    "agents": [{"modalities": kind, "count": 2} for kind in KINDS],
    "topology": {"kind": "complete"},
    "train": {"rounds": 7, "local_steps": 2, "batch_size": 16},
    "events": [
        {"kind": "leave", "round": 4, "agents": [1]},
        {"kind": "lose", "round": 5, "agents": [7], "modality": "c"},
    ],
}

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the log, which stays open


def run(path, out, stop_after=None):
    """A launch on one rank, in this process."""
    run_job(World(MPI.COMM_SELF), Request(load_job(path), out, False, stop_after, ["test"]), StopRequest())


def poor(data):
    """The data with noisy sensors; samples that are missing would be ties, which rounding breaks."""
    sensors = [{"agents": [0], "modality": "a", "noise": 1.0}, {"agents": [3, 6], "modality": "b", "noise": 0.5}]
    return {"source": {"hdf5": str(data)}, "poor": sensors}


def table(out):
    """Data sets and attributes of the table `final` of a run."""
    metrics = read_metrics(out)
    arrays = {name: values for name, values in metrics.arrays.items() if name.startswith("final/")}
    return arrays, {name: own for name, own in metrics.attributes.items() if name.startswith("final")}


class Plain:
    """Every agent of a finished run as a module of its own, on samples as its sensors deliver them."""

    def __init__(self, path, out):
        jobfile = load_job(path)
        self.dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
        whole = make_plan(jobfile, self.dataset, 1)
        self.inputs = Inputs(whole, self.dataset, agree_on_scaling(World(MPI.COMM_SELF), whole, self.dataset))
        self.plan = whole.eras[-1]
        checkpoint, _ = load_newest(out)
        self.networks = {}
        for agent in self.plan.agents:
            if agent.modalities:
                values = {}
                for spec in self.plan.slices:
                    if agent.id in spec.holders:
                        row = torch.from_numpy(
                            checkpoint.read(f"slices/{spec.name}/parameters", np.array([agent.id]))[0]
                        )
                        spans = self.plan.layouts[spec.name].spans
                        values |= {span.name: row[span.start : span.stop].view(span.shape) for span in spans}
                self.networks[agent.id] = self.plan.network(agent, seed=0)
                self.networks[agent.id].load_state_dict(values)

    @torch.no_grad()
    def output(self, agent, index):
        x = {m: self.inputs.seen(np.full(len(index), agent.id), m, index) for m in agent.modalities}
        return self.networks[agent.id]({m: torch.from_numpy(values) for m, values in x.items()})


def test_the_table_is_what_plain_modules_give_and_the_same_on_any_number_of_ranks(tmp_path):
    path = write_job(tmp_path, ABC | {"data": poor(write_dataset(tmp_path / "abc.h5", count=700))})
    run(path, tmp_path / "on-1")
    for ranks in (2, 3):
        train(path, tmp_path / f"on-{ranks}", ranks)
    made, attributes = table(tmp_path / "on-1")
    for ranks in (2, 3):
        arrays, others = table(tmp_path / f"on-{ranks}")
        assert differences(made, arrays) == []
        np.testing.assert_equal(others, attributes)

    plain = Plain(path, tmp_path / "on-1")
    latent = {}
    for split, index in enumerate((plain.dataset.indices(VALIDATION), plain.dataset.indices(TEST))):
        label, n = plain.dataset.labels[index], len(index)
        np.testing.assert_array_equal(made["final/sample"][split, :n], index)
        np.testing.assert_array_equal(made["final/label"][split, :n], label)
        for name in ("sample", "label"):
            assert (made[f"final/{name}"][split, n:] == -1).all()
        for agent in plain.plan.agents:
            predicted, confidence = (made[f"final/{name}"][agent.id, split] for name in ("predicted", "confidence"))
            assert (predicted[n:] == -1).all()
            assert np.isnan(confidence[n:]).all()
            scores = [made[f"final/{name}"][agent.id, split] for name in ("macro_f1", "calibration_error")]
            if not agent.modalities:
                assert (predicted == -1).all()
                assert np.isnan([*confidence, *scores]).all()
                continue
            output = plain.output(agent, index)
            ensemble = plain.plan.method.predictions(output, agent.modalities)["ensemble"].softmax(-1)
            np.testing.assert_array_equal(predicted[:n], ensemble.argmax(-1))
            np.testing.assert_allclose(confidence[:n], ensemble.amax(-1), rtol=1e-4)
            f1 = f1_score(label, ensemble.argmax(-1), labels=np.unique(label), average="macro", zero_division=0)
            assert scores[0] == pytest.approx(f1)
            assert scores[1] == calibration_error(predicted[:n] == label, confidence[:n])
            for m, z in zip(agent.modalities, output.z["redundant"].numpy(), strict=True):
                latent[agent.id, m] = z

    columns = [
        attributes["final/retrieval"][f"{end}_{what}"] for what in ("agent", "modality") for end in ("query", "gallery")
    ]
    pairs = [Pair(int(q), int(g), str(asks), str(answers)) for q, g, asks, answers in zip(*columns, strict=True)]
    assert pairs == pairs_of(plain.plan.agents)
    for (query, gallery, asks, answers), row in zip(pairs, made["final/retrieval"], strict=True):
        similarity = cosine_similarity(latent[query, asks], latent[gallery, answers])
        place = (similarity > similarity.diagonal()[:, None]).sum(1)
        precision = np.mean(
            [average_precision_score(label == own, s) for own, s in zip(label, similarity, strict=True)]
        )
        np.testing.assert_allclose(row, [*((place < k).mean() for k in (1, 5, 10)), precision], atol=3e-3)

    steps = np.full(10, 14)
    steps[1] = 8
    np.testing.assert_array_equal(made["final/gradient_steps"], steps)
    assert attributes["final"]["round"] == 7


def test_the_table_is_written_once_by_the_launch_that_gets_to_the_end(tmp_path, capsys):
    path, out = write_job(tmp_path, {"mode": "exact"}), tmp_path / "run"
    run(path, tmp_path / "whole")
    run(path, out, stop_after=7)
    assert table(out) == ({}, {})
    run(path, out)
    assert differences(table(tmp_path / "whole")[0], table(out)[0]) == []
    written = (out / "metrics" / "table-final.h5").stat().st_mtime_ns
    capsys.readouterr()
    run(path, out)
    assert "macro-F1" in capsys.readouterr().out
    assert (out / "metrics" / "table-final.h5").stat().st_mtime_ns == written

    longer = write_job(tmp_path, {"mode": "exact", "train": {"rounds": 14}})
    run(longer, out, stop_after=13)
    told = capsys.readouterr().out
    assert "Test accuracy after round 13" in told
    assert "macro-F1" not in told  # that of round 12
    assert table(out)[1]["final"]["round"] == 12


def poisoned(path):
    """A copy of a data file with other labels and samples in the test split."""
    copy = path.with_name("poisoned.h5")
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        test = file["split"][:] == 2
        file["labels"][:] = (file["labels"][:] + test) % 4
        for values in file["modalities"].values():
            values[:] = np.where(test.reshape(-1, *(1,) * (values.ndim - 1)), 100.0, values[:])
    return copy


@pytest.mark.parametrize("reading", ["memory", "lazy"])
def test_without_the_test_split_nothing_of_it_is_seen(tmp_path, reading):
    data = write_dataset(tmp_path / "abc.h5")
    seen = []
    for file in (data, poisoned(data)):
        source = {"source": {"hdf5": str(file), "reading": reading}}
        trainer, plan, _ = make_trainer(tmp_path, ABC | {"events": [], "data": source, "evaluate": {"test": False}})
        losses, _ = trainer.train_round(0)
        told = trainer.evaluate(1, losses)
        accuracy = trainer.now.evaluator.accuracy()
        assert told == pytest.approx((float(losses[:, 0].mean()), accuracy[:, 0, 0, 0].mean()))
        assert np.isnan(accuracy[:, 1]).all()
        assert not np.isnan(accuracy[:, 0, :, 0]).any()
        arrays, _ = close_look(trainer.world, plan, trainer.now, 1)
        assert (arrays["final/label"][1] == -1).all()
        assert (arrays["final/predicted"][:, 1] == -1).all()
        assert np.isnan(arrays["final/macro_f1"][:, 1]).all()
        assert "final/retrieval" not in arrays
        seen.append(arrays | {"accuracy": accuracy, "losses": losses.detach().numpy()})
    assert differences(*seen) == []


def test_a_run_without_the_test_split_tells_of_validation(tmp_path, capsys):
    run(write_job(tmp_path, {"evaluate": {"test": False}}), tmp_path / "run")
    log = capsys.readouterr().out
    assert "Validation accuracy after round 12" in log
    assert "validation accuracy 0." in log
    assert "macro-F1" in log
    assert "test accuracy" not in log
    assert "nan" not in log.lower()


def test_the_engines_agree_and_predictions_are_what_accuracy_counts(tmp_path):
    found = []
    for engine in ("loop", "stacked"):
        trainer, plan, _ = make_trainer(tmp_path, {"engine": engine, "dtype": "float64"})
        trainer.train_round(0)
        arrays, _ = close_look(trainer.world, plan, trainer.now, 1)
        order = np.argsort(trainer.now.group.ids)
        right = [
            (arrays["final/predicted"][:, split] == label)[:, label >= 0].mean(1)
            for split, label in enumerate(arrays["final/label"])
        ]
        np.testing.assert_allclose(np.stack(right, 1), trainer.now.evaluator.accuracy()[order, :, 0, 0], rtol=1e-12)
        found.append(arrays)
    loop, stacked = found
    np.testing.assert_array_equal(loop["final/predicted"], stacked["final/predicted"])
    np.testing.assert_allclose(loop["final/confidence"], stacked["final/confidence"], rtol=1e-5)
    np.testing.assert_allclose(loop["final/retrieval"], stacked["final/retrieval"], rtol=1e-9)


def test_predictions_can_be_left_out(tmp_path):
    trainer, plan, _ = make_trainer(tmp_path)
    whole, _ = close_look(trainer.world, plan, trainer.now, 1)
    trainer, plan, _ = make_trainer(tmp_path, {"evaluate": {"predictions": False}})
    short, _ = close_look(trainer.world, plan, trainer.now, 1)
    assert whole.keys() - short.keys() == {"final/predicted", "final/confidence"}
    assert differences({name: whole[name] for name in short}, short) == []


def test_of_a_large_test_split_samples_at_equal_distances_are_retrieved(tmp_path, monkeypatch):
    trainer, _, dataset = make_trainer(tmp_path)
    monkeypatch.setattr(crossmodal, "MOST_SAMPLES", 100)  # of 359: every fourth
    given = []
    monkeypatch.setattr(crossmodal, "retrieval", lambda *arguments: given.append(arguments) or np.zeros(4))
    crossmodal.cross_modal(trainer.world, trainer.now)
    for query, gallery, label in given:
        assert query.shape == gallery.shape == (90, 8)
        np.testing.assert_array_equal(label, dataset.labels[dataset.indices(TEST)][::4])
    chosen = trainer.now.evaluator.index[1][::4]
    trainer.now.evaluator.index[1] = chosen  # a test split of these alone
    trainer.now.evaluator.x[1] = {m: x[::4] for m, x in trainer.now.evaluator.x[1].items()}
    every, given = given, []
    monkeypatch.setattr(crossmodal, "retrieval", lambda *arguments: given.append(arguments) or np.zeros(4))
    crossmodal.cross_modal(trainer.world, trainer.now)
    for expected, made in zip(every, given, strict=True):
        for first, second in zip(expected, made, strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-5)


def test_agents_are_paired_by_their_order_and_no_more_than_so_many():
    def agent(number, *modalities):
        return Agent(number, modalities, ("encoder",) * len(modalities))

    few = [agent(0, "a"), agent(1, "a", "b"), agent(2, "b"), agent(3), agent(4, "a"), agent(5, "b"), agent(6, "a")]
    expected = [
        (1, 1, "a", "b"),
        (1, 1, "b", "a"),
        (0, 2, "a", "b"),
        (4, 5, "a", "b"),
        (2, 0, "b", "a"),
        (5, 4, "b", "a"),
    ]
    assert pairs_of(few) == expected
    kinds = [("a",), ("b",), ("a", "b"), ("a", "b", "c")]
    many = [agent(k, *kinds[k % 4]) for k in range(400)]
    counted = [(pair.asks, pair.answers, pair.query == pair.gallery) for pair in pairs_of(many)]
    for asks, answers in permutations("abc", 2):
        assert counted.count((asks, answers, True)) == MOST_PAIRS
        assert counted.count((asks, answers, False)) == (0 if "c" in asks + answers else MOST_PAIRS)


def test_gradient_steps_count_the_rounds_that_an_agent_took_part_in(tmp_path):
    changes = ABC | {"data": {"source": {"hdf5": str(write_dataset(tmp_path / "abc.h5"))}}}
    events = [{"kind": "leave", "round": 2, "agents": [0]}, {"kind": "join", "round": 6, "agents": [0, 5]}]
    _, plan, _ = make_trainer(tmp_path, changes | {"events": events})
    for rounds, steps in ((1, (2, 0, 2)), (4, (4, 0, 8)), (7, (6, 2, 14))):
        made = gradient_steps(plan, rounds)
        assert (made[0], made[5], made[1]) == steps
