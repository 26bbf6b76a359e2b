"""Both engines, slice rows, optimiser and mixing against plain modules with torch.optim (design rule 2)."""

import numpy as np
import pytest
import torch
from plain_parse import largest_difference
from small_jobs import make_trainer, write_dataset

BOUNDS = {"float32": 1e-5, "float64": 1e-10}  # relative Frobenius norm per slice after 20 rounds


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_engine_equals_plain_modules(tmp_path, engine, dtype):
    assert largest_difference(tmp_path, {"engine": engine, "dtype": dtype}, rounds=20) <= BOUNDS[dtype]


CASES = {
    "complete": {"topology": {"kind": "complete"}},
    "gossip": {"topology": {"kind": "random-gossip"}},
    "several local steps": {"train": {"local_steps": 3}},
    "no momentum, weight decay": {"train": {"optimiser": {"momentum": 0.0, "weight_decay": 0.01}}},
    "disconnected": {"topology": {"kind": "ring", "scope": "induced", "allow_disconnected": True}},
    "nothing shared": {"method": {"name": "local"}},
    "kinds not in one piece": {
        "agents": [
            {"modalities": ["top", "bottom"], "count": 2},
            {"modalities": ["bottom"], "count": 1},
            {"modalities": ["top", "bottom"], "count": 2},
            {"modalities": ["top"], "count": 2},
        ]
    },
}


@pytest.mark.parametrize("case", CASES)
def test_stacked_equals_plain_modules_whatever_the_job(tmp_path, case):
    changes = CASES[case] | {"dtype": "float64", "engine": "stacked"}
    assert largest_difference(tmp_path, changes, rounds=8) <= BOUNDS["float64"]


def test_three_modalities_equal_plain_modules(tmp_path):
    kinds = (["a"], ["a", "b"], ["b", "c"], ["a", "b", "c"])
    changes = {
        "data": {"source": {"hdf5": str(write_dataset(tmp_path / "abc.h5"))}},
        "agents": [{"modalities": kind, "count": 2} for kind in kinds],
        "dtype": "float64",
        "engine": "stacked",
    }
    assert largest_difference(tmp_path, changes, rounds=8) <= BOUNDS["float64"]


def test_short_batches_are_common_in_these_jobs(tmp_path):
    """The masks of the stacked engine are only tested where batches are short: they are."""
    trainer, plan, _ = make_trainer(tmp_path)
    sizes = plan.sizes()
    assert (sizes % plan.job.train.batch_size != 0).any()
    assert (sizes < plan.job.train.batch_size).any()
    assert not all(trainer.now.group.sampler.batch(step)[1].all() for step in range(3))


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_no_gradient_on_what_an_agent_does_not_hold(tmp_path, engine):
    """One agent's step leaves every row of the others, and unimodal agents own no synergistic row at all."""
    trainer, plan, _ = make_trainer(tmp_path, {"engine": engine, "method": {"name": "local"}})
    held = {name: set(rows.agents.tolist()) for name, rows in trainer.now.group.slices.items()}
    unimodal = {agent.id for agent in plan.agents if len(agent.modalities) == 1}
    assert not unimodal & (held["synergy_head"] | held["synergy[top]"] | held["synergy[bottom]"])
    assert held["encoder[top]"] == {a.id for a in plan.agents if "top" in a.modalities}
    group = trainer.now.group
    one = group.engine.units[0]
    position, mask = map(torch.from_numpy, group.sampler.batch(0))
    before = {name: rows.gradients.clone() for name, rows in group.slices.items()}
    assert all(not g.any() for g in before.values())
    others = group.engine.units[1:]
    group.engine.units = [one]
    group.engine.gradients(group.samples, position, mask, group.alignment.current(0), lambda: None)
    mine = {group.agents[k].id for k in np.atleast_1d(one.index.numpy())}
    for rows in group.slices.values():
        for row, agent in enumerate(rows.agents.tolist()):
            assert bool(rows.gradients[row].any()) == (agent in mine)
    assert others


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_agents_of_one_blueprint_share_a_skeleton(tmp_path, engine):
    """Building one for each of a thousand agents would take longer than many rounds."""
    trainer, plan, _ = make_trainer(tmp_path, {"engine": engine})
    units = trainer.now.group.engine.units
    assert sum(unit.index.numel() for unit in units) == len(plan.agents)
    assert len({id(unit.network) for unit in units}) == len(plan.models) == 3


def test_where_rows_stand_in_memory_does_not_change_bits(tmp_path):
    """Agents that start equal predict the same to the bit, in float64 with layers as narrow as would show it."""
    changes = {"mode": "exact", "dtype": "float64", "encoder": {"kind": "mlp", "hidden": [7, 12]}}
    trainer, *_ = make_trainer(
        tmp_path, changes | {"method": {"slices": {"unique": 3, "redundant": 3, "synergistic": 3}}}
    )
    engine = trainer.now.group.engine
    x = torch.randn(14, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first: dict = {}
    for unit in engine.units:
        logits = engine.predict(unit, dict.fromkeys(unit.modalities, x), shared=True)
        expected = first.setdefault(unit.modalities, logits)
        assert all(values.equal(expected[name]) for name, values in logits.items())
    assert len(first) == 3 < len(engine.units)
