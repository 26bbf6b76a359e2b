"""What a round, a model, a link and a rank cost against the number of modalities: 2 to 15, which all agents hold.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/modalities.py

Generated series of 62 steps and 3 channels, as three-axis sensors give them; 12 agents on a ring in one process. The
alignment term runs over M (M - 1) ordered pairs of modalities, so a round is timed with it and without (beta: 0), in
turn. The last lines say how each column grows: the exponent p of M^p that fits it best (1 is linear), and what one of
15 modalities costs against one of 3.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from small_jobs import trainer_of, write_dataset  # noqa: E402

from parse_mpi.studies.memory import first_routes, rank_memory  # noqa: E402
from parse_mpi.studies.plannotes import link_payload  # noqa: E402

COUNTS = (2, 3, 6, 9, 15)
ROUNDS, WARM_UP = 15, 3
COLUMNS = ("ms a round", "without L_con", "parameters", "bytes a link", "bytes a rank")
JOB = """
name: modalities
data: {{source: {{hdf5: series.h5}}, partition: {{kind: iid}}}}
agents: [{{modalities: [{names}], count: 12}}]
topology: ring
method: {{name: parse}}
"""


def measure(count, folder):
    """The five figures of COLUMNS for agents with `count` modalities."""
    names = [f"m{k:02d}" for k in range(count)]
    write_dataset(folder / "series.h5", dict.fromkeys(names, (62, 3)), classes=19, count=1900)
    job = folder / "job.yaml"
    job.write_text(JOB.format(names=", ".join(names)))
    aligned, plan, dataset = trainer_of(job, folder)
    unaligned, _, _ = trainer_of(job, folder, "method.beta=0")
    times = {trainer: [] for trainer in (aligned, unaligned)}
    for k in range(WARM_UP + ROUNDS):
        for trainer, taken in times.items():
            start = time.perf_counter()
            trainer.train_round(k)
            taken.append(1e3 * (time.perf_counter() - start))
    parameters = sum(plan.layouts[spec.name].width for spec in plan.slices if 0 in spec.holders)
    memory = rank_memory(plan, dataset, 0, first_routes(plan, 0))
    return (
        *(statistics.median(taken[WARM_UP:]) for taken in times.values()),
        parameters,
        link_payload(plan).data.max(),
        memory.total - memory.process,
    )


def main():
    torch.set_num_threads(1)
    print(f"{'modalities':<22} {' '.join(f'{name:>14}' for name in COLUMNS)}")
    rows = []
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(count, Path(folder)))
        print(f"{count:<22} {' '.join(f'{value:>14,.0f}' for value in rows[-1])}", flush=True)
    table, M = np.array(rows, float), np.array(COUNTS, float)
    exponent, _ = np.polyfit(np.log(M), np.log(table), 1)
    dearer = (table[-1] / M[-1]) / (table[COUNTS.index(3)] / 3)
    print(f"{'exponent':<22} {' '.join(f'{value:>14.2f}' for value in exponent)}")
    print(f"{'one of 15 / one of 3':<22} {' '.join(f'{value:>14.2f}' for value in dearer)}")


if __name__ == "__main__":
    main()
