"""Small jobs for tests, and trainers built from them inside this process."""

from pathlib import Path

import yaml

ROOT_JOBS = Path(__file__).parents[1] / "jobs"

BASE = {
    "name": "small",
    "data": {"source": "digits", "partition": {"kind": "dirichlet", "alpha": 0.5}},
    "agents": [
        {"modalities": ["top"], "count": 3},
        {"modalities": ["bottom"], "count": 3},
        {"modalities": ["top", "bottom"], "count": 4},
    ],
    "topology": {"kind": "ring"},
    "method": {"name": "parse", "slices": {"unique": 8, "redundant": 8, "synergistic": 8}},
    "encoder": {"kind": "mlp", "hidden": [16]},
    "train": {"rounds": 12, "batch_size": 96, "optimiser": {"lr": 0.1}},
    "evaluate": {"every": 5},
    "checkpoint": {"every": 5},
}


# Adaptive widths in the place of BASE's.
ADAPTIVE = {"unique": None, "redundant": None, "synergistic": None, "total": 10, "adapt": {"every": 2, "start": 1}}


def merged(base, changes):
    """`base` with `changes` laid over it, mapping by mapping; None takes a key away."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return {key: value for key, value in result.items() if value is not None}


def write_job(folder: Path, changes=None) -> Path:
    """A job file with BASE and the changes."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(merged(BASE, changes or {}), sort_keys=False))
    return path


def write_dataset(path: Path, shapes=None, classes=4, count=240) -> Path:
    """A data file of the project's layout: every modality sees the label through noise."""
    import h5py
    import numpy as np

    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, count)
    with h5py.File(path, "w") as file:
        for name, shape in (shapes or {"a": (6,), "b": (3, 4), "c": (5,)}).items():
            centres = draw.normal(size=(classes, *shape))
            file[f"modalities/{name}"] = (centres[labels] + draw.normal(size=(count, *shape))).astype(np.float32)
        file["labels"] = labels
        file["split"] = (np.arange(count) % 5 // 3 * (1 + np.arange(count) % 2)).astype(np.uint8)
        file["groups"] = labels
    return path


class Quiet:
    """A listener to whom nothing may be a warning."""

    def progress(self, made): ...

    def say(self, text): ...

    def note(self, text): ...

    def warn(self, text):
        raise AssertionError(text)


def make_trainer(folder: Path, changes=None, world=None, device="cpu"):
    """(trainer, plan, data set) of a small job on the ranks of `world`, by default this process alone."""
    return trainer_of(write_job(folder, changes), folder, world=world, device=device)


def trainer_of(path: Path, folder: Path, *overrides: str, world=None, device="cpu"):
    """The same of any job file; nothing is written unless the trainer saves, and then into `folder`."""
    import torch
    from mpi4py import MPI

    from parse_mpi.data.sources import load_dataset
    from parse_mpi.exchange.world import World
    from parse_mpi.jobfile import load_job
    from parse_mpi.plan import make_plan
    from parse_mpi.run.session import build_trainer
    from parse_mpi.storage.saver import Saver

    world = world or World(MPI.COMM_SELF)
    jobfile = load_job(path, overrides)
    dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
    plan = make_plan(jobfile, dataset, world.size)
    saver = Saver(world, folder, jobfile.job.checkpoint.keep)
    trainer = build_trainer(world, plan, dataset, saver, torch.device(device), Quiet())
    return trainer, plan, dataset


def finished_run(job: Path, out: Path, *overrides: str) -> Path:
    """The directory of a run on this process alone, which goes on where an earlier one ended."""
    import logging

    from mpi4py import MPI

    from parse_mpi.exchange.world import World
    from parse_mpi.jobfile import load_job
    from parse_mpi.run.preemption import StopRequest
    from parse_mpi.run.session import Request, run_job

    run_job(World(MPI.COMM_SELF), Request(load_job(job, overrides), out, False, None, ["test"]), StopRequest())
    for handler in logging.getLogger("parse_mpi.rank-0000").handlers:
        handler.close()
    return out


def saved(trainer, done):
    """Save a checkpoint after `done` rounds and wait for it."""
    trainer.save(done, checkpoint=True)
    trainer.settle()
    assert trainer.saved == done
