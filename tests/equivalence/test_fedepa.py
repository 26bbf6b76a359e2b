"""FedEPA against plain modules, its two limits, and what is recorded of weights (docs/method.md, section 4)."""

import numpy as np
import pytest
import torch
from plain_fedepa import PlainFedepa
from small_jobs import make_trainer, trainer_of, write_dataset, write_job

from parse_mpi.agents.personal import PersonalAggregation
from parse_mpi.run.consensus import mean_drifts
from parse_mpi.run.final import gradient_steps
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.snapshot import restore
from parse_mpi.storage.checkpoint import open_checkpoint
from parse_mpi.storage.metrics import read_metrics

SETS = (["a"], ["a", "b"], ["b", "c"], ["a", "b", "c"])
WIDTHS = {"unique": 2, "redundant": 3, "synergistic": 2}
LEARNT = {"rate": 300.0, "first_steps": 14, "steady": 0.02, "steps": 2}


def changes_of(tmp_path, method=None, data=None, **others):
    source = {"hdf5": str(write_dataset(tmp_path / "abc.h5", count=160))}
    named = {"name": "fedepa", "slices": WIDTHS, "weights": LEARNT, **(method or {})}
    return {
        "data": {"source": source, "partition": {"kind": "dirichlet", "alpha": 2}, **(data or {})},
        "agents": [{"modalities": held, "count": 2} for held in SETS],
        "topology": {"kind": "complete"},
        "method": named,
        "encoder": {"kind": "mlp", "hidden": [6]},
        "train": {"batch_size": 8},
        "dtype": "float64",
        **others,
    }


def rows_of(trainer):
    """Everything that agents have, by slice and matrix, in ascending id."""
    return {
        (name, key): matrix[np.argsort(rows.agents)].clone()
        for name, rows in trainer.now.group.slices.items()
        for key, matrix in rows.matrices().items()
    }


def rounds_of(tmp_path, rounds, method=None, **others):
    """A trainer after some rounds."""
    trainer, *_ = make_trainer(tmp_path, changes_of(tmp_path, method, **others))
    for k in range(rounds):
        trainer.enter_era(k)
        trainer.train_round(k)
    return trainer


CASES = {
    "learnt": {},
    "hsic, mean, a wide context": {"independence": {"kind": "hsic"}, "fusion": "mean", "aligned": 2},
    "no alignment": {"alignment": 0.0},
    "a whole mean": {"weights": 1.0},
    "half of it": {"weights": 0.5},
    "nothing of it": {"weights": 0.0},
    "one phase to its end": {"weights": {**LEARNT, "steady": 0.0}},
}


@pytest.mark.parametrize(("case", "engine"), [*((case, "stacked") for case in CASES), ("learnt", "loop")])
def test_rounds_equal_those_of_plain_modules(tmp_path, case, engine):
    trainer, plan, dataset = make_trainer(tmp_path, changes_of(tmp_path, CASES[case], engine=engine))
    plain = PlainFedepa(plan, dataset)
    for k in range(4):
        losses, _ = trainer.train_round(k)
        expected = plain.round(k)
        np.testing.assert_allclose(losses[np.argsort(trainer.now.group.ids), 0], expected, rtol=1e-7)
    for (name, key), mine in rows_of(trainer).items():
        spec = plan.specs[name]
        if key == "parameters":
            torch.testing.assert_close(mine.numpy(), plain.parameters(name), rtol=1e-6, atol=1e-9)
        elif key == "taken":
            names = [span.name for span in plan.layouts[name].spans]
            theirs = torch.stack([torch.cat([plain.taken[i][n].flatten() for n in names]) for i in spec.holders])
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
            assert mine.min() == 0 < mine.mean() < mine.max() == 1
    if case == "learnt":
        first = [steps for (_, index), steps in plain.steps_taken.items() if index == 1]
        assert min(first) < max(first) == LEARNT["first_steps"]


def test_encoders_are_shared_by_all_holders_and_classifiers_by_equal_sets(tmp_path):
    _, plan, _ = make_trainer(tmp_path, changes_of(tmp_path))
    groups = {name: spec.groups for name, spec in plan.specs.items()}
    assert groups == {
        "encoder[a]": ((0, 1, 2, 3, 6, 7),),
        "encoder[b]": ((2, 3, 4, 5, 6, 7),),
        "encoder[c]": ((4, 5, 6, 7),),
        "label_head[a]": ((0, 1),),
        "label_head[a+b]": ((2, 3),),
        "label_head[b+c]": ((4, 5),),
        "label_head[a+b+c]": ((6, 7),),
    }
    assert {name for name, spec in plan.specs.items() if spec.personal} == {"encoder[a]", "encoder[b]", "encoder[c]"}
    assert {kind: plan.alignment_weights[kind] > 0 for kind in plan.kinds} == {
        kind: len(kind) > 1 for kind in plan.kinds
    }


@pytest.mark.parametrize("order", ["adapt-then-combine", "consensus"])
def test_weights_that_stay_1_are_dsgd_to_the_bit(tmp_path, monkeypatch, order):
    train = {"batch_size": 8, "order": order}
    plain = rows_of(rounds_of(tmp_path, 5, {"weights": 1.0}, train=train))
    assert all(key != "taken" for _, key in plain)
    monkeypatch.setattr(PersonalAggregation, "_learn", lambda *_: None)
    held = rows_of(rounds_of(tmp_path, 5, train=train))
    assert {key for _, key in held} == {"parameters", "momentum", "taken"}
    assert all(torch.equal(held[where], matrix) for where, matrix in plain.items())


@pytest.mark.parametrize("order", ["adapt-then-combine", "consensus"])
def test_weights_of_0_leave_encoders_at_home_and_mix_the_classifier(tmp_path, order):
    method = {"weights": 0.0, "alignment": 0.0, "init": "per-agent"}
    trainer = rounds_of(tmp_path, 1, method, train={"batch_size": 8, "order": order})
    alone, *_ = make_trainer(tmp_path, changes_of(tmp_path, method))
    alone.now.group.local_step()
    mine, theirs = rows_of(trainer), rows_of(alone)
    for name, key in mine:
        same = torch.equal(mine[name, key], theirs[name, key])
        assert same == (name.startswith("encoder") or key == "momentum"), name


def test_events_keep_weights_and_a_newcomer_starts_with_the_whole_mean(tmp_path):
    events = [{"kind": "gain", "round": 4, "agents": [0], "modality": "c"}]
    trainer = rounds_of(tmp_path, 4, events=events)
    before = rows_of(trainer)["encoder[c]", "taken"]
    trainer.enter_era(4)
    after = rows_of(trainer)["encoder[c]", "taken"]
    assert torch.equal(after[1:], before)
    assert (after[0] == 1).all()
    assert (before < 1).any()
    trainer.train_round(4)
    assert (rows_of(trainer)["encoder[c]", "taken"][0] < 1).any()


def test_a_restart_goes_on_with_the_same_weights_and_records_the_same(tmp_path):
    changes = changes_of(tmp_path, data={"labelled_fraction": 0.4}, evaluate={"every": 2})
    ends, recorded = [], []
    for name, stops in (("whole", (6,)), ("parts", (2, 6))):
        out, start = tmp_path / name, 0
        out.mkdir()
        for stop in stops:
            trainer, *_ = trainer_of(write_job(tmp_path, changes), out)
            if start:
                restore(trainer.now.group, open_checkpoint(out, start))
            trainer.train(start, stop, StopRequest())
            start = stop
        ends.append(rows_of(trainer))
        recorded.append(read_metrics(out))
    assert all(torch.equal(ends[1][where], matrix) for where, matrix in ends[0].items())
    for name in ("weights_taken", "mean_drift"):
        np.testing.assert_array_equal(*(metrics[f"evaluations/{name}"] for metrics in recorded))
    taken, drift = (recorded[0][f"evaluations/{name}"] for name in ("weights_taken", "mean_drift"))
    attributes = recorded[0].attributes["evaluations/weights_taken"]
    assert list(attributes["slice"]) == ["encoder[a]", "encoder[b]", "encoder[c]"]
    assert list(attributes["statistic"]) == ["mean", "spread", "zeros", "ones"]
    last = ends[0]["encoder[b]", "taken"].numpy()
    expected = [last.mean(1), last.std(1), (last == 0).mean(1), (last == 1).mean(1)]
    np.testing.assert_allclose(taken[-1, 2:, 1], np.stack(expected, 1), rtol=1e-12)
    assert np.isnan(taken[:, :2, 1]).all()
    components = recorded[0].attributes["evaluations/mean_drift"]["component"]
    personal = np.array([name.startswith("encoder") for name in components])
    assert (drift[:, personal] > 0).all()
    assert np.isnan(drift[:, ~personal]).all()


def test_the_drift_is_how_far_the_mean_of_all_holders_moved(tmp_path):
    trainer = rounds_of(tmp_path, 2)
    group = trainer.now.group
    mixed = {name: group.personal.mixed(name).numpy() for name in ("encoder[a]", "encoder[b]")}
    drifts = {name: value for (name, _), value in mean_drifts(trainer.world, trainer.now.plan, group).items()}
    for name, before in mixed.items():
        moved = group.slices[name].local.numpy().mean(0) - before.mean(0)
        assert drifts[name] == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(before.mean(0)), rel=1e-12)
    assert drifts.keys() == {"encoder[a]", "encoder[b]", "encoder[c]"}


def test_weight_steps_count_as_gradient_steps(tmp_path):
    events = [{"kind": "leave", "round": 1, "agents": [0]}, {"kind": "join", "round": 3, "agents": [0]}]
    train = {"batch_size": 8, "local_steps": 3}
    _, plan, _ = make_trainer(tmp_path, changes_of(tmp_path, train=train, events=events))
    made = gradient_steps(plan, 5)
    assert made[1] == 5 * 3 + LEARNT["first_steps"] + 3 * LEARNT["steps"]
    assert made[0] == 3 * 3 + 2 * LEARNT["steps"]
    _, plan, _ = make_trainer(tmp_path, changes_of(tmp_path, {"weights": 0.5}, train=train))
    assert set(gradient_steps(plan, 5)) == {15}
