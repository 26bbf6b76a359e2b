"""Evaluation and records against what plain modules predict, sample by sample."""

import numpy as np
import pytest
import torch
from plain_parse import PlainParse
from small_jobs import make_trainer

from parse_mpi.data.dataset import TEST, VALIDATION
from parse_mpi.model.heads import prediction_names
from parse_mpi.run.consensus import components, consensus_distances


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_accuracy_equals_that_of_plain_modules(tmp_path, engine):
    trainer, plan, dataset = make_trainer(tmp_path, {"engine": engine, "dtype": "float64"})
    plain = PlainParse(plan, dataset)
    for k in range(4):
        trainer.train_round(k)
        plain.round(k)
    made = trainer.now.evaluator.accuracy()[np.argsort(trainer.now.group.ids)]
    names = prediction_names(list(plan.shapes))
    for agent in plan.agents:
        for split, index in enumerate((dataset.indices(VALIDATION), dataset.indices(TEST))):
            with torch.no_grad():
                out = plain.networks[agent.id]({m: plain.inputs[m][index] for m in agent.modalities})
            by_type = {t: logits.mean(0) for t, logits in out.logits.items()}
            expected = {"ensemble": torch.stack(list(by_type.values())).mean(0), **by_type}
            labels = dataset.labels[index]
            trained = np.bincount(dataset.labels[plan.samples[agent.id]], minlength=plan.class_count)
            for name, logits in expected.items():
                right = logits.argmax(1).numpy() == labels
                recall = np.array([right[labels == c].mean() for c in range(plan.class_count)])
                pair = made[agent.id, split, :, names.index(name)]
                np.testing.assert_allclose(pair, [right.mean(), (recall * trained).sum() / trained.sum()], rtol=1e-12)
        if len(agent.modalities) == 1:
            assert np.isnan(made[agent.id, :, :, names.index("synergistic")]).all()


def test_consensus_distance_is_zero_at_the_start_and_counts_all_agents_later(tmp_path):
    trainer, plan, dataset = make_trainer(tmp_path, {"dtype": "float64"})
    assert not any(consensus_distances(trainer.world, plan, trainer.now.group).values())
    plain = PlainParse(plan, dataset)
    for k in range(3):
        trainer.train_round(k)
        plain.round(k)
    made = consensus_distances(trainer.world, plan, trainer.now.group)
    assert list(made) == components(plan)
    for (name, _), distance in made.items():
        x = plain.parameters(name)
        expected = np.sqrt(np.square(x - x.mean(0)).sum(1).mean()) / np.linalg.norm(x.mean(0))
        assert distance == pytest.approx(expected, rel=1e-9)


def test_a_component_is_measured_for_each_part_of_a_broken_graph(tmp_path):
    broken = {"kind": "ring", "scope": "induced", "allow_disconnected": True}
    _, plan, _ = make_trainer(tmp_path, {"topology": broken})
    parts = [agents for name, agents in components(plan) if name == "encoder[top]"]
    assert parts == [part for part in plan.graphs["top"].components() if len(part) > 1]
    assert len(parts) >= 1
