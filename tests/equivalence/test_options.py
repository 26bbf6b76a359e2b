"""Every option of the method in both engines against plain modules: three modalities, sets of all sizes."""

import numpy as np
import pytest
import torch
from plain_parse import largest_difference
from small_jobs import ADAPTIVE, make_trainer, trainer_of, write_dataset, write_job

from parse_mpi.run.consensus import consensus_distances
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.snapshot import restore
from parse_mpi.storage.checkpoint import open_checkpoint
from parse_mpi.storage.metrics import read_metrics

SETS = (["a"], ["a", "b"], ["b", "c"], ["a", "b", "c"])
UNEQUAL = {"unique": 3, "redundant": 6, "synergistic": 2}
OPTIONS = {
    "gated": {"fusion": "gated"},
    "gated, every third round": {"fusion": "gated", "gate_sync": 3},
    "gated, local": {"fusion": "gated", "gate_sync": "local"},
    "attention": {"fusion": "attention"},
    "gated by set": {"fusion": "gated", "synergy_scope": "set"},
    "concat by set": {"fusion": "concat", "synergy_scope": "set"},
    "projectors": {"slices": UNEQUAL},
    "rows of all": {"synergy_rows": "all"},
    "own initial values": {"init": "per-agent"},
    "warm-up": {"beta_schedule": {"kind": "warm-up", "rounds": 3}},
    "adaptive beta": {"beta_schedule": {"kind": "adaptive", "every": 2, "decay": 0.5}},
    "adaptive shares": {"modality_weighting": "adaptive", "pool": "each"},
    "adaptive shares, attention": {"modality_weighting": "adaptive", "fusion": "attention"},
    "adaptive widths": {"slices": ADAPTIVE},
    "adaptive widths, gated, rows of all": {"slices": ADAPTIVE, "fusion": "gated", "synergy_rows": "all"},
    "adaptive widths and shares, concat": {
        "slices": ADAPTIVE,
        "fusion": "concat",
        "synergy_scope": "set",
        "modality_weighting": "adaptive",
    },
    "adaptive widths and beta, attention": {
        "slices": ADAPTIVE,
        "fusion": "attention",
        "beta_schedule": {"kind": "adaptive", "every": 2},
    },
}


def changes_of(tmp_path, method, data=None, **others):
    source = {"hdf5": str(write_dataset(tmp_path / "abc.h5", count=160))}
    return {
        "data": {"source": source, "partition": {"kind": "dirichlet", "alpha": 2}, **(data or {})},
        "agents": [{"modalities": held, "count": 2} for held in SETS],
        "topology": {"kind": "complete"},
        "method": {"slices": {"unique": 4, "redundant": 4, "synergistic": 4}, **method},
        "encoder": {"kind": "mlp", "hidden": [6]},
        "train": {"batch_size": 8},
        "dtype": "float64",
        **others,
    }


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("option", OPTIONS)
def test_engine_equals_plain_modules(tmp_path, option, engine):
    assert largest_difference(tmp_path, changes_of(tmp_path, OPTIONS[option], engine=engine), rounds=4) <= 1e-10


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_in_single_precision(tmp_path, engine):
    method = {"fusion": "gated", "slices": UNEQUAL, "modality_weighting": "adaptive"}
    method |= {"beta_schedule": {"kind": "adaptive", "every": 2}}
    changes = changes_of(tmp_path, method, engine=engine, dtype="float32")
    assert largest_difference(tmp_path, changes, rounds=4) <= 1e-5


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_few_labels(tmp_path, engine):
    """With one label in five some batches have none."""
    changes = changes_of(tmp_path, {"slices": ADAPTIVE}, data={"labelled_fraction": 0.2}, engine=engine)
    trainer, *_ = make_trainer(tmp_path, changes)
    group = trainer.now.group
    position, mask = map(torch.from_numpy, group.sampler.batch(0))
    known = group.samples.y[group.samples.y_start[:, None] + position] >= 0
    assert not (known & mask).any(1).all()
    assert largest_difference(tmp_path, changes, rounds=4) <= 1e-10


def test_agents_with_initial_values_of_their_own_start_apart(tmp_path):
    for init, apart in (("common", False), ("per-agent", True)):
        trainer, plan, _ = make_trainer(tmp_path, {"method": {"init": init}})
        distances = consensus_distances(trainer.world, plan, trainer.now.group)
        assert all((distance > 0.1) == apart for distance in distances.values())


@pytest.mark.parametrize("rows", ["multimodal", "all"])
def test_synergy_rows_of_all_holders_dilute_their_step(tmp_path, rows):
    """Mixed over the complete graph of n_m holders, the rows' first step shrinks by n_multimodal / n_m."""
    method = {"synergy_rows": rows, "slices": {"unique": 8, "redundant": 8, "synergistic": 8}}
    topology, train = {"kind": "complete"}, {"optimiser": {"momentum": 0.0}}
    agents = [{"modalities": held, "count": count} for held, count in ((["top"], 3), (["top", "bottom"], 2))]
    changes = {"method": method, "topology": topology, "agents": agents, "train": train, "dtype": "float64"}
    trainer, plan, _ = make_trainer(tmp_path, changes)
    name = "encoder[top]" if rows == "all" else "synergy[top]"
    where = [span for span in plan.layouts[name].spans if ".synergistic." in span.name]
    columns = np.concatenate([np.arange(span.start, span.stop) for span in where])
    mixed = trainer.now.group.slices[name]
    start = mixed.local[:, columns].clone()
    trainer.now.group.local_step()
    steps = mixed.local[:, columns] - start
    moved = (steps != 0).any(1)
    assert moved.sum() == 2
    trainer, *_ = make_trainer(tmp_path, changes)
    trainer.train_round(0)
    after = trainer.now.group.slices[name].local[:, columns] - start
    share = 2 / 5 if rows == "all" else 1.0
    torch.testing.assert_close(after, (share * steps[moved].mean(0)).expand_as(after))


@pytest.mark.parametrize("kind", ["adaptive", "warm-up"])
def test_a_restart_goes_on_with_the_same_weights(tmp_path, kind):
    """Rows, what an adaptive weight remembers, and the weights that the metrics record."""
    method = {"beta_schedule": {"kind": kind}, "fusion": "gated", "gate_sync": 3, "modality_weighting": "adaptive"}
    if kind == "adaptive":
        method["beta_schedule"]["every"] = 2
        method["slices"] = ADAPTIVE
    changes = changes_of(tmp_path, method, evaluate={"every": 2})
    made = {}
    for name, stops in (("whole", (6,)), ("parts", (3, 6))):
        out, start = tmp_path / name, 0
        out.mkdir()
        for stop in stops:
            trainer, *_ = trainer_of(write_job(tmp_path, changes), out)
            if start:
                restore(trainer.now.group, open_checkpoint(out, start))
            trainer.train(start, stop, StopRequest())
            start = stop
        metrics = read_metrics(out)
        made[name] = trainer, metrics["evaluations/alignment_weight"][metrics["evaluations/round"] % 2 == 0]
    whole, parts = (made[name][0].now.group for name in made)
    for name, rows in whole.slices.items():
        for key, matrix in rows.matrices().items():
            assert torch.equal(matrix, parts.slices[name].matrices()[key]), (name, key)
    assert np.array_equal(made["whole"][1], made["parts"][1])
    multimodal = [len(agent.modalities) > 1 for agent in whole.plan.agents]
    assert (np.ptp(made["whole"][1], axis=0) > 0).tolist() == multimodal
