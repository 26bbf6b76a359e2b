"""Gradient conflict: do unimodal and multimodal agents pull a shared slice in opposite directions?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/conflicts.py RUN [RUN ...] [--batches 200]

For runs of any method with slices that both sorts of agents hold, for example

    parse-mpi run jobs/quickstart.yaml --out runs/parse
    parse-mpi run jobs/quickstart.yaml --out runs/monolithic --set 'method={name: monolithic}'

Every slice of the newest checkpoint is set to its mean over its holders. Then all agents work out the gradients of
their losses on batches that come after those of the run; nothing is trained. Of the mean gradient of unimodal holders
and that of multimodal ones: their cosine, mean over batches, and in how many batches it is negative. `all` takes all
these slices together as one vector. Compare runs of equal loss: where the sum of all gradients vanishes, the two parts
of it point against each other whatever the method is.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from small_jobs import trainer_of

from parse_mpi.storage.checkpoint import require_newest


def at_the_mean(run, folder):
    """The trainer of a run at its newest checkpoint, every slice at the mean of its holders; and the round."""
    checkpoint, _ = require_newest(run)
    trainer, _, _ = trainer_of(run / "job.yaml", folder)
    trainer.restore(checkpoint)
    for rows in trainer.now.group.slices.values():
        rows.local[:] = rows.local.double().mean(0).to(rows.local.dtype)
    return trainer, checkpoint.round_index


def mean_gradients(group, several, step):
    """Slice -> mean gradients of unimodal and of multimodal holders on the batch of a step, float64 [2, P]."""
    group.steps = step
    group.rehearse(lambda: None)
    found = {}
    for name, rows in group.slices.items():
        multimodal = np.isin(rows.agents, several)
        if multimodal.any() and not multimodal.all():
            g = rows.gradients.double().numpy()
            found[name] = np.stack([g[~multimodal].mean(0), g[multimodal].mean(0)])
    return found


def cosines(trainer, batches):
    """Slice -> cosine between the two mean gradients in every batch."""
    group = trainer.now.group
    several = [agent.id for agent in group.agents if len(agent.modalities) > 1]
    made = {}
    for step in range(group.steps, group.steps + batches):
        found = mean_gradients(group, several, step)
        if found:
            found["all"] = np.concatenate(list(found.values()), axis=1)
        for name, (one, other) in found.items():
            made.setdefault(name, []).append(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
    return {name: np.array(values) for name, values in made.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--batches", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| run | round | slice | mean cosine | negative |\n|---|---|---|---|---|")
    for run in options.run:
        with tempfile.TemporaryDirectory() as folder:
            trainer, done = at_the_mean(run, Path(folder))
            for name, values in cosines(trainer, options.batches).items():
                print(f"| {run.name} | {done} | {name} | {values.mean():.3f} | {(values < 0).mean():.1%} |", flush=True)


if __name__ == "__main__":
    main()
