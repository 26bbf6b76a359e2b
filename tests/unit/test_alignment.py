"""The weight of the alignment term over the rounds, and what an adaptive one measures."""

import math

import numpy as np
import pytest
import torch
from small_jobs import make_trainer
from torch.nn.utils import parameters_to_vector

from parse_mpi.agents.alignment import AlignmentWeights
from parse_mpi.job.method import AdaptiveBeta, ConstantBeta, WarmUpBeta
from parse_mpi.run.snapshot import Snapshot

ADAPTIVE = AdaptiveBeta(kind="adaptive", every=2, decay=0.75, limit=4.0)


def weights(schedule, base=(0.5, 0.0, 1.0)):
    return AlignmentWeights(base, schedule, torch.float64, torch.device("cpu"))


def test_constant_is_what_the_job_says_and_remembers_nothing():
    made = weights(ConstantBeta(kind="constant"))
    assert made.current(0).tolist() == made.current(1000).tolist() == [0.5, 0.0, 1.0]
    assert not made.state
    assert not any(made.measures(k) for k in range(5))


def test_warm_up_is_linear_and_then_whole():
    made = weights(WarmUpBeta(kind="warm-up", rounds=4))
    assert [made.current(k)[2].item() for k in (0, 1, 3, 4, 5, 99)] == [0.0, 0.25, 0.75, 1.0, 1.0, 1.0]


def test_adaptive_follows_the_ratio_of_norms_within_its_limit():
    made = weights(ADAPTIVE)
    assert [made.measures(k) for k in range(4)] == [True, False, True, False]
    assert made.current(0).tolist() == [0.5, 0.0, 1.0]
    made.observe(torch.tensor([[2.0, 1.0], [0.0, 0.0], [9.0, 1.0]]))
    expected = [0.75 + 0.25 * 2, 1.0, 0.75 + 0.25 * 4]
    assert made.state["alignment_balance"].flatten().tolist() == pytest.approx(expected)
    assert made.current(7).tolist() == pytest.approx([0.5 * expected[0], 0.0, expected[2]])
    for _ in range(200):
        made.observe(torch.tensor([[1.0, 100.0]] * 3))
    assert made.current(7).tolist() == pytest.approx([0.125, 0.0, 0.25])


@pytest.mark.parametrize("norms", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_gradient_that_says_nothing_changes_nothing(norms):
    """0 on the left: a batch without labels; 0 on the right: a unimodal agent."""
    made = weights(ADAPTIVE, base=(0.5,))
    made.observe(torch.tensor([norms]))
    assert made.state["alignment_balance"].item() == 1.0


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_norms_are_those_of_plain_modules_and_leave_the_gradient_rows_alone(tmp_path, engine):
    trainer, plan, _ = make_trainer(tmp_path, {"engine": engine, "dtype": "float64"})
    group = trainer.now.group
    position, mask = map(torch.from_numpy, group.sampler.batch(0))
    norms = group.engine.gradient_norms(group.samples, position, mask)
    assert not any(rows.gradients.any() for rows in group.slices.values())
    for k, agent in enumerate(group.agents):
        if len(agent.modalities) == 1:
            assert norms[k].tolist() == [0.0, 0.0]
            continue
        network = plan.network(agent, plan.job.seed).double()
        x, y = group.samples.gather(torch.tensor(k), agent.modalities, position[k][mask[k]])
        for column, term in enumerate((0, 3)):
            network.zero_grad()
            plan.method.loss(network(x), y, torch.ones(len(y)).double(), torch.tensor(0.0))[term].backward()
            gradient = parameters_to_vector([p.grad for p in network.encoders.parameters()])
            assert norms[k, column].item() == pytest.approx(gradient.norm().item(), rel=1e-10)


def test_a_checkpoint_holds_the_balance_of_every_agent_by_id(tmp_path):
    schedule = {"kind": "adaptive", "every": 1, "decay": 0.5}
    trainer, plan, _ = make_trainer(tmp_path, {"method": {"beta_schedule": schedule}})
    trainer.train_round(0)
    group = trainer.now.group
    kept = {array.name: array for array in Snapshot(group).take()}["agents/alignment_balance"]
    assert kept.values.dtype == np.float64
    for row, agent in enumerate(kept.agents.tolist()):
        multimodal = len(plan.agents[agent].modalities) > 1
        assert (kept.values[row, 0] != 1.0) == multimodal
        assert kept.values[row] == group.alignment.state["alignment_balance"][group.ids.tolist().index(agent)].numpy()
