"""Made-up studies whose truth is known: every agent of a method is right on a sample with a given probability."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np

from parse_mpi.compare.schema import Compare
from parse_mpi.compare.studyfile import SPLITS, Cell, Curve, Final, Result, Study
from parse_mpi.seeding import stream

KINDS = ("top",) * 3 + ("bottom",) * 3 + ("top+bottom",) * 2
CLASSES = 10
ROUNDS = np.arange(0, 101, 20)
BYTES_A_ROUND = 1000
MEASURES = ("recall@1", "recall@5", "recall@10", "map")

Accuracy = Callable[[Mapping[str, str]], float]  # levels -> probability of being right


def make_study(
    axes: Mapping[str, Iterable[str]],
    accuracy: Accuracy,
    *,
    seeds: int = 4,
    samples: int = 300,
    compare: Compare | None = None,
    validation: Accuracy | None = None,
    rounds_to_end: Callable[[Mapping[str, str]], float] = lambda levels: 50.0,
    name: str = "made-up",
) -> Study:
    """All cells finished. rounds_to_end: time constant of the curve, which ends at the final accuracy."""
    levels = {axis: tuple(names) for axis, names in axes.items()}
    numbers = tuple(range(100, 100 + seeds))
    cells = []
    for combination in product(*levels.values()):
        here = dict(zip(levels, combination, strict=True))
        for seed in numbers:
            result = make_result(
                here, seed, samples, accuracy(here), (validation or accuracy)(here), rounds_to_end(here)
            )
            cells.append(Cell("_".join([*combination, str(seed)]), here, seed, "digest", 100, "finished", "", result))
    return Study(name, levels, numbers, compare, tuple(cells), {}, {"command": "parse-mpi compare made_up.yaml"})


def make_result(
    levels: Mapping[str, str], seed: int, samples: int, accuracy: float, validation: float, constant: float
) -> Result:
    """Labels and how hard samples are depend on data and seed alone, so that cells of a seed can be paired."""
    common, own = stream(seed, f"labels {levels['data']}"), stream(seed, f"answers {sorted(levels.items())}")
    label = common.integers(CLASSES, size=(2, samples)).astype(np.int16)
    sample = np.stack([common.permutation(samples) + 1000 * split for split in range(2)])
    hard = common.normal(0, 0.05, size=(1, 2, samples))
    chance = np.clip(np.array([validation, accuracy])[None, :, None] + hard, 0, 1)
    is_right = own.random((len(KINDS), 2, samples)) < chance
    predicted = np.where(is_right, label, (label + 1) % CLASSES).astype(np.int16)
    mean = is_right.mean(axis=2)  # [A, split]
    last = np.stack([mean, mean - 0.01], axis=2)[..., None].repeat(2, axis=3)
    share = 1 - np.exp(-ROUNDS / constant) * (1 - 0.1 / max(accuracy, 0.1))
    kinds = tuple(dict.fromkeys(KINDS))
    of_kind = np.array([last[np.array(KINDS) == kind, ..., 0].mean(0) for kind in kinds] + [last[..., 0].mean(0)])
    return Result(
        kind=KINDS,
        prediction=("ensemble", "unique"),
        curve=Curve(ROUNDS, ROUNDS * BYTES_A_ROUND, (*kinds, "all"), share[:, None, None, None] * of_kind),
        best_round=80,
        last_round=100,
        best=last + 0.001,
        last=last,
        gradient_steps=np.full(len(KINDS), 100, np.int64),
        payload_bytes=100 * BYTES_A_ROUND,
        seconds=12.5,
        ranks=1,
        final=Final(
            predicted=predicted,
            confidence=np.full(predicted.shape, 0.5, np.float32),
            label=label,
            sample=sample,
            macro_f1=mean,
            calibration_error=np.abs(mean - 0.5),
            retrieval=np.tile([[0.2, 0.4, 0.6, 0.3]], (2, 1)),
            measure=MEASURES,
            pair=tuple({"query_agent": "6", "gallery_agent": "6", "query_modality": m, "gallery_modality": g}
                       for m, g in (("top", "bottom"), ("bottom", "top"))),
        ),
    )  # fmt: skip


def without(study: Study, is_gone: Callable[[Cell], bool], reason: str = "exit code 1: no space left") -> Study:
    """The study with some cells failed."""
    cells = [replace(c, status="failed", reason=reason, result=None) if is_gone(c) else c for c in study.cells]
    return replace(study, cells=tuple(cells))


def answers_on_test(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Right answers [A, n] on test with the ids of the samples [n], in their order."""
    assert result.final is not None
    test = SPLITS.index("test")
    order = np.argsort(result.final.sample[test])
    right = result.final.predicted[:, test] == result.final.label[test]
    return right[:, order], result.final.sample[test][order]
