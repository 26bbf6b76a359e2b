"""What a finished cell measured, from its run directory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.compare.studyfile import ENSEMBLE, SPLITS, Curve, Final, Result
from parse_mpi.compare.trials import gradient_steps
from parse_mpi.errors import StorageError
from parse_mpi.job import Job
from parse_mpi.measures.accuracy import WEIGHTINGS
from parse_mpi.measures.retrieval import MEASURES
from parse_mpi.run.summary import best_row, eras_of
from parse_mpi.storage.layout import Attribute
from parse_mpi.storage.metrics import Metrics, read_metrics
from parse_mpi.storage.rundir import RunDirectory

ACCURACY = "evaluations/accuracy"
EVERYBODY = "all"
PAIR_KEYS = ("query_agent", "gallery_agent", "query_modality", "gallery_modality")


def read_result(run: RunDirectory, job: Job) -> Result:
    """Raises StorageError where the metrics can't be read."""
    metrics = read_metrics(run.path)
    predictions = _names(metrics, ACCURACY, "prediction")
    accuracy = _in_order(metrics)
    rounds = metrics["evaluations/round"]
    kinds = metrics["eras/kind"][eras_of(metrics, rounds)]
    best = best_row(metrics)
    chosen = len(rounds) - 1 if best is None else best
    payload = np.maximum(metrics["rounds/payload_bytes"], 0).sum(1)
    seconds = np.nansum(metrics["ranks/seconds"], axis=(0, 2))
    return Result(
        kind=tuple(kinds[-1].tolist()),
        prediction=predictions,
        curve=_curve(metrics, accuracy[..., predictions.index(ENSEMBLE)], kinds, payload),
        best_round=int(rounds[chosen]),
        last_round=int(rounds[-1]),
        best=accuracy[chosen],
        last=accuracy[-1],
        gradient_steps=_gradient_steps(metrics, job, kinds.shape[1]),
        payload_bytes=int(payload.sum()),
        seconds=float(seconds.max()),
        ranks=int(np.isfinite(metrics["ranks/seconds"][-1]).any(axis=1).sum()),
        final=_final(metrics),
    )


def _in_order(metrics: Metrics) -> NDArray[np.float64]:
    """Accuracy [E, A, split, weighting, P], splits and weightings as study.h5 has them."""
    splits = [_names(metrics, ACCURACY, "split").index(split) for split in SPLITS]
    weightings = [_names(metrics, ACCURACY, "weighting").index(weighting) for weighting in WEIGHTINGS]
    ordered: NDArray[np.float64] = metrics[ACCURACY][:, :, splits][:, :, :, weightings]
    return ordered


def _curve(
    metrics: Metrics, ensemble: NDArray[np.float64], kinds: NDArray[np.str_], payload: NDArray[np.int64]
) -> Curve:
    """ensemble [E, A, split, weighting], kinds [E, A], payload [R] by round."""
    names = [kind for kind in dict.fromkeys(kinds.ravel().tolist()) if kind]
    members = [kinds == name for name in names] + [kinds != ""]
    known = [np.ma.masked_invalid(np.where(here[..., None, None], ensemble, np.nan)) for here in members]
    rounds = metrics["evaluations/round"]
    sent = np.cumsum(payload)[np.searchsorted(metrics["rounds/round"], rounds)]
    means = np.stack([values.mean(1).filled(np.nan) for values in known], axis=1)
    return Curve(rounds, sent, (*names, EVERYBODY), means)


def _gradient_steps(metrics: Metrics, job: Job, agents: int) -> NDArray[np.int64]:
    """Of each agent; as the method plans them where the run does not tell."""
    if "final/gradient_steps" in metrics.arrays:
        return metrics["final/gradient_steps"]
    return np.full(agents, gradient_steps(job, job.train.rounds), np.int64)


def _final(metrics: Metrics) -> Final | None:
    """What the close look at the agents showed; None for runs of versions that took none."""
    if "final/macro_f1" not in metrics.arrays:
        return None
    f1, label = metrics["final/macro_f1"], metrics["final/label"]
    by_sample = (*f1.shape, label.shape[1])
    retrieval = metrics.arrays.get("final/retrieval", np.empty((0, len(MEASURES))))
    own = metrics.attributes.get("final/retrieval", {})
    columns = [_listed(own[key]) for key in PAIR_KEYS] if own else []
    return Final(
        predicted=metrics.arrays.get("final/predicted", np.full(by_sample, -1, np.int16)),
        confidence=metrics.arrays.get("final/confidence", np.full(by_sample, np.nan, np.float32)),
        label=label,
        sample=metrics["final/sample"],
        macro_f1=f1,
        calibration_error=metrics["final/calibration_error"],
        retrieval=retrieval,
        measure=_names(metrics, "final/retrieval", "measure") if own else MEASURES,
        pair=tuple(dict(zip(PAIR_KEYS, row, strict=True)) for row in zip(*columns, strict=True)),
    )


def _names(metrics: Metrics, data_set: str, key: str) -> tuple[str, ...]:
    if key not in metrics.attributes.get(data_set, {}):
        raise StorageError(f"the metrics hold no {key} of {data_set}")
    return _listed(metrics.attributes[data_set][key])


def _listed(value: Attribute) -> tuple[str, ...]:
    return tuple(str(name) for name in np.atleast_1d(np.asarray(value)))
