"""Adaptive slice widths: do they find what was planted, and what do they cost or gain against fixed splits?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/widths.py [planted] [digits] [penalty] [synergy]

planted: generated data with known proportions of unique, redundant and synergistic bits; found are the widths after
the last round, means over seeds and holders. digits: accuracy of a sweep over fixed splits, of which validation chooses
one, beside adaptive widths; means over seeds and agents. penalty: equal widths against two penalties on more seeds.
synergy: how early scarce positions learn an exclusive or, with and without rounds of equal widths first (one seed).
Every run is a job of its own in this process.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from small_jobs import make_trainer  # noqa: E402

from parse_mpi.job import AdaptiveWidths  # noqa: E402

SEEDS, MORE_SEEDS = (0, 1), (2, 3, 4, 5)
PLANTED = (  # unique bits of either modality, redundant, synergistic
    ((1, 1), 1, 1),
    ((2, 2), 1, 1),
    ((1, 1), 2, 1),
    ((1, 1), 1, 2),
    ((3, 3), 1, 1),
    ((1, 1), 3, 1),
    ((1, 1), 1, 3),
    ((3, 1), 1, 1),
)
PLANTED_TOTAL, PLANTED_ROUNDS = 24, 300
DIGITS_TOTALS, DIGITS_ROUNDS = (24, 96), 200
THIRDS = ((4, 4, 4), (2, 5, 5), (5, 2, 5), (5, 5, 2), (8, 2, 2), (2, 8, 2), (2, 2, 8))  # of 12, unique first


def job(modalities, seed, slices, data, beta=0.5, counts=(2, 2, 2)):
    """Changes that make tests/small_jobs.py's job this one: agents that average at random."""
    kinds = ([modalities[0]], [modalities[1]], list(modalities))
    names = ("unique", "redundant", "synergistic", "total", "adapt")
    return {
        "seed": seed,
        "data": {"partition": {"kind": "iid", "alpha": None}, **data},
        "agents": [{"modalities": held, "count": count} for held, count in zip(kinds, counts, strict=True)],
        "topology": {"kind": "random-gossip"},
        "method": {"slices": dict.fromkeys(names) | slices, "beta": beta},
        "encoder": {"hidden": [64]},
        "train": {"batch_size": 64},
    }


def trained(changes, rounds):
    """Mean accuracy on validation and test over all agents, and mean widths [M, 3] or None, after the last round."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, plan, _ = make_trainer(Path(folder), changes)
        for k in range(rounds):
            trainer.train_round(k)
        accuracy = trainer.now.evaluator.accuracy()[:, :, 0, 0].mean(0)
        adaptive = isinstance(plan.job.method.slices, AdaptiveWidths)
        return accuracy, np.nanmean(trainer.now.group.widths(), 0) if adaptive else None


def planted():
    print(f"D = {PLANTED_TOTAL}, {PLANTED_ROUNDS} rounds, means over {len(SEEDS)} seeds; u, r, s of first | second")
    print(f"{'planted u:r:s':>15} {'in proportion':>37} {'found':>37}  largest is widest")
    for unique, redundant, synergistic in PLANTED:
        bits = np.array([[u, redundant, synergistic] for u in unique])
        source = {"redundant_bits": redundant, "unique_bits": list(unique), "synergistic_bits": synergistic}
        data = {"source": {"pid": source | {"noise": 0.3, "features": 8, "samples": 20_000}}}
        changes = [job(("first", "second"), seed, {"total": PLANTED_TOTAL}, data, beta=0.1) for seed in SEEDS]
        found = np.array([trained(change, PLANTED_ROUNDS)[1] for change in changes])
        hits, cases = widest(bits, found)
        names = " | ".join(":".join(map(str, row)) for row in bits)
        wanted = shown(PLANTED_TOTAL * bits / bits.sum(1, keepdims=True))
        print(
            f"{names:>15} {wanted:>37} {shown(found.mean(0)):>37}  {f'{hits} of {cases}' if cases else '–'}", flush=True
        )


def widest(bits, found):
    """In how many cases (seed and modality) the type with most bits has the most positions; equal bits are no case."""
    hits = cases = 0
    for row, widths in zip(bits, found.swapaxes(0, 1), strict=True):
        if (row == row.max()).sum() == 1:
            others = np.delete(widths, row.argmax(), 1)
            hits += int((widths[:, row.argmax()] > others.max(1) + 0.5).sum())
            cases += len(widths)
    return hits, cases


def shown(widths):
    return " | ".join(", ".join(f"{width:.1f}" for width in row) for row in widths)


def digits():
    for total in DIGITS_TOTALS:
        print(f"digits halves, D = {total}: accuracy on validation and test, means over {len(SEEDS)} seeds")
        found = {}
        for thirds in THIRDS:
            names = ("unique", "redundant", "synergistic")
            slices = dict(zip(names, (total * share // 12 for share in thirds), strict=True))
            found[str(tuple(slices.values()))] = of_digits(slices)
        best = max(found, key=lambda name: found[name][0][0])
        (_, adaptive), widths = found["adaptive"] = of_digits({"total": total})
        for name, ((validation, test), _) in found.items():
            print(f"{name:>14} {100 * validation:6.2f} {100 * test:6.2f}")
        print(f"  widths found: {shown(widths)} (top | bottom)")
        chosen = found[best][0][1]
        print(
            f"  best on validation: {best}; adaptive is {100 * (adaptive - chosen):+.2f} points of it on test",
            flush=True,
        )


def of_digits(slices, seeds=SEEDS):
    made = [trained(job(("top", "bottom"), seed, slices, {}), DIGITS_ROUNDS) for seed in seeds]
    widths = None if made[0][1] is None else np.mean([found for _, found in made], 0)
    return np.mean([accuracy for accuracy, _ in made], 0), widths


def penalty():
    print(f"digits halves, D = 24: accuracy on test, mean over {len(MORE_SEEDS)} other seeds")
    equal = {"unique": 8, "redundant": 8, "synergistic": 8}
    cases = {"equal": equal} | {f"penalty {mu}": {"total": 24, "adapt": {"penalty": mu}} for mu in (0.1, 0.3)}
    for name, slices in cases.items():
        (_, test), widths = of_digits(slices, MORE_SEEDS)
        print(f"{name:>14} {100 * test:6.2f}   {'' if widths is None else shown(widths)}", flush=True)


def synergy():
    rounds = range(400, 2001, 400)
    print(f"1:2:1, D = 12: test accuracy of multimodal agents after {', '.join(map(str, rounds))} rounds")
    bits = {"redundant_bits": 2, "unique_bits": [1, 1], "synergistic_bits": 1}
    source = {"pid": bits | {"noise": 0.3, "features": 8, "samples": 20_000}}
    for start in (0, 1600):
        slices = {"total": 12, "adapt": {"start": start}}
        changes = job(("first", "second"), 0, slices, {"source": source}, beta=0.1, counts=(1, 1, 2))
        changes |= {"topology": {"kind": "complete"}, "encoder": {"hidden": [128]}, "train": {"batch_size": 128}}
        with tempfile.TemporaryDirectory() as folder:
            trainer, _, _ = make_trainer(Path(folder), changes)
            several = [len(agent.modalities) > 1 for agent in trainer.now.group.agents]
            made = []
            for k in range(rounds[-1]):
                trainer.train_round(k)
                if k + 1 in rounds:
                    made.append(trainer.now.evaluator.accuracy()[several, 1, 0, 0].mean())
        print(f"  start {start:>4}: {' '.join(f'{value:.3f}' for value in made)}", flush=True)


def main():
    torch.set_num_threads(1)
    start = time.perf_counter()
    parts = {"planted": planted, "digits": digits, "penalty": penalty, "synergy": synergy}
    for part in sys.argv[1:] or parts:
        parts[part]()
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
