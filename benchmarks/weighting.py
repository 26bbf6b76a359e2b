"""Adaptive modality weighting: what does it give to agents with a poor sensor, and what does it take from the others?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/weighting.py

The quickstart job (400 rounds, one process), where half of the agents that hold both halves see the upper one through
noise of three standard deviations, in training and in tests. Test accuracy of the ensemble, mean over agents.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from small_jobs import trainer_of  # noqa: E402

SEEDS, ROUNDS = (0, 1, 2), 400
POOR = "data.poor=[{agents: {holding: [top, bottom], fraction: 0.5}, modality: top, noise: 3.0}]"


def accuracies(weighting, seed):
    """Of agents with a poor sensor, of the other multimodal ones, and of all."""
    changes = (f"seed={seed}", f"method.modality_weighting={weighting}", POOR)
    with tempfile.TemporaryDirectory() as folder:
        trainer, plan, _ = trainer_of(ROOT / "jobs" / "quickstart.yaml", Path(folder), *changes)
        for k in range(ROUNDS):
            trainer.train_round(k)
        test = trainer.now.evaluator.accuracy()[:, 1, 0, 0]
    ids = trainer.now.group.ids
    poor = np.isin(ids, [agent for agent, _ in plan.sensors])
    several = np.array([len(plan.agents[i].modalities) > 1 for i in ids])
    return test[poor].mean(), test[several & ~poor].mean(), test.mean()


def main():
    torch.set_num_threads(1)
    print(f"{'weighting':>10} {'seed':>5} {'poor sensor':>12} {'sound':>7} {'all':>7}")
    for weighting in ("uniform", "adaptive"):
        made = []
        for seed in SEEDS:
            made.append(accuracies(weighting, seed))
            print(f"{weighting:>10} {seed:>5} {made[-1][0]:12.3f} {made[-1][1]:7.3f} {made[-1][2]:7.3f}", flush=True)
        poor, sound, everybody = np.mean(made, 0)
        print(f"{weighting:>10} {'mean':>5} {poor:12.3f} {sound:7.3f} {everybody:7.3f}", flush=True)


if __name__ == "__main__":
    main()
