"""Every optimiser through the trainer: against its published recursion with real gradients, and stopped and resumed."""

import numpy as np
import pytest
import recursions
import torch
from real_runs import differences, result, train
from small_jobs import make_trainer, saved, write_job

from parse_mpi.run.snapshot import restore
from parse_mpi.storage.checkpoint import load_newest

CONSENSUS = {"order": "consensus"}
CASES = {
    "nesterov": ({"optimiser": {"lr": 0.05, "nesterov": True}}, recursions.dsgd, {"mu": 0.9, "nesterov": True}),
    "d-psgd": (
        CONSENSUS | {"optimiser": {"lr": 0.05}, "local_steps": 2},
        recursions.dsgd,
        {"mu": 0.9, "local_steps": 2, "consensus": True},
    ),
    "adamw": ({"optimiser": {"name": "adamw", "lr": 0.01}}, recursions.adamw, {}),
    "qg-dsgdm": (
        {"optimiser": {"name": "qg-dsgdm", "lr": 0.05}, "local_steps": 2},
        recursions.qg_dsgdm,
        {"local_steps": 2},
    ),
    "gradient-tracking": (
        CONSENSUS | {"optimiser": {"name": "gradient-tracking", "lr": 0.4}},
        recursions.gradient_tracking,
        {},
    ),
    "d2": ({"optimiser": {"name": "d2", "lr": 0.4}}, recursions.d2, {}),
}


def trainer_of(folder, case, **changes):
    return make_trainer(folder, {"train": CASES[case][0], "topology": {"lazy": True}, **changes})[0]


class Flat:
    """All rows of a trainer as one vector x: gradients at any x, and mixing by dense matrices as `self @ x`."""

    def __init__(self, trainer):
        self.group = trainer.now.group
        self.lr = trainer.plan.job.train.optimiser.lr
        self.slices = list(self.group.slices.values())
        self.matrices = []
        for rows in self.slices:
            graph = trainer.plan.graphs[next(s.graph for s in trainer.plan.slices if s.name == rows.name)]
            place = np.searchsorted(graph.agents, rows.agents)
            self.matrices.append(graph.at(0).dense()[np.ix_(place, place)])

    def parameters(self):
        return np.concatenate([rows.local.numpy().ravel() for rows in self.slices])

    def gradients(self, x, step):
        for rows, part in zip(self.slices, self._parts(x), strict=True):
            rows.local.copy_(torch.from_numpy(part))
        self.group.steps = step
        self.group.rehearse(lambda: None)
        return np.concatenate([rows.gradients.numpy().ravel() for rows in self.slices])

    def __matmul__(self, x):
        return np.concatenate([(W @ part).ravel() for W, part in zip(self.matrices, self._parts(x), strict=True)])

    def _parts(self, x):
        ends = np.cumsum([rows.local.numel() for rows in self.slices])
        return [part.reshape(rows.local.shape) for rows, part in zip(self.slices, np.split(x, ends[:-1]), strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_training_follows_the_published_recursion(tmp_path, case):
    _, reference, options = CASES[case]
    flat = Flat(trainer_of(tmp_path, case, dtype="float64"))
    start = flat.parameters()
    expected = reference(flat.gradients, flat, start, 12, flat.lr, **options)
    trainer = trainer_of(tmp_path, case, dtype="float64")
    for k in range(12):
        trainer.train_round(k)
    mine = Flat(trainer).parameters()
    assert np.linalg.norm(mine - expected) <= 1e-10 * np.linalg.norm(expected)
    assert np.linalg.norm(mine - start) > 0.1 * np.linalg.norm(start)


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, case):
    whole, first, second = (trainer_of(tmp_path, case, mode="exact") for _ in range(3))
    for k in range(8):
        whole.train_round(k)
    for k in range(5):
        first.train_round(k)
    saved(first, 5)
    checkpoint, _ = load_newest(tmp_path)
    restore(second.now.group, checkpoint)
    for k in range(5, 8):
        second.train_round(k)
    for name, rows in whole.now.group.slices.items():
        for key, matrix in rows.matrices().items():
            assert torch.equal(matrix, second.now.group.slices[name].matrices()[key]), (name, key)


def test_the_tracker_travels_between_ranks_and_is_resumed_on_any_number_of_them(tmp_path):
    settings = CASES["gradient-tracking"][0] | {"rounds": 5}
    path = write_job(tmp_path, {"train": settings, "mode": "exact", "evaluate": {"every": 1}})
    train(path, tmp_path / "whole", 1)
    train(path, tmp_path / "parts", 3, "--stop-after", "3")
    train(path, tmp_path / "parts", 2)
    assert differences(result(tmp_path / "whole"), result(tmp_path / "parts")) == []


@pytest.mark.parametrize("case", CASES)
def test_every_optimiser_learns(tmp_path, case):
    trainer = trainer_of(tmp_path, case)
    losses = [float(trainer.train_round(k)[0][:, 0].mean()) for k in range(30)]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
