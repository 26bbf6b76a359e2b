"""`parse-mpi predict`: what one trained agent makes of the samples of a data file, or of the run's own data, as CSV.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from parse_mpi.data.dataset import SPLIT_NAMES, Dataset
from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import DataError
from parse_mpi.jobfile import load_job
from parse_mpi.storage.layout import Array
from parse_mpi.storage.rundir import RunDirectory
from parse_mpi.storage.write import storage_errors
from parse_mpi.studies.export import write_columns
from parse_mpi.studies.trained import TrainedAgent, load_agent

SAMPLES = 256  # predicted at a time: bounds the memory of activations


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. data: a file, None: what the run learnt from; split: of it; csv: None: print."""

    run: Path
    agent: int
    round_index: int | None
    data: Path | None
    split: str
    csv: Path | None


def write_predictions(wanted: Wanted) -> str:
    """Write a row for every sample and return, in words, how many predictions are right. Raises ParseMpiError."""
    agent = load_agent(wanted.run, wanted.agent, wanted.round_index)
    dataset = _own_data(wanted.run) if wanted.data is None else read_dataset(wanted.data, "auto")
    _require_fit(agent, dataset)
    columns = predictions(agent, dataset, SPLIT_NAMES.index(wanted.split))
    with _opened(wanted.csv) as file:
        write_columns(file, columns)
    count, right = len(columns["sample"]), int((columns["predicted"] == columns["label"]).sum())
    share = f", {right} of them right (accuracy {right / count:.4f})" if count else ""
    return (
        f"agent {agent.id} ({agent.kind}) after round {agent.round}: {count} {wanted.split} samples of "
        f"{dataset.name}{share}"
    )


@torch.no_grad()
def predictions(agent: TrainedAgent, dataset: Dataset, split: int) -> dict[str, Array]:
    """Of each sample of a split, by column: its row in the data set, names of the predicted class and of its label, and
    the probability that the agent gives the former."""
    index = dataset.indices(split)
    predicted, confidence = np.empty(len(index), np.int64), np.empty(len(index))
    for start in range(0, len(index), SAMPLES):
        part = slice(start, start + SAMPLES)
        probability, best = agent({m: dataset.modalities[m][index[part]] for m in agent.modalities}).softmax(-1).max(-1)
        predicted[part], confidence[part] = best.numpy(), probability.numpy()
    return {
        "sample": index,
        "predicted": np.array(agent.class_names)[predicted],
        "confidence": confidence,
        "label": np.array(dataset.class_names)[dataset.labels[index]],
    }


def _own_data(run_dir: Path) -> Dataset:
    """What the run learnt from. Raises JobError where a file is not where it was."""
    job = load_job(RunDirectory(run_dir).job_path, ["data.partition={kind: iid}"]).job
    return load_dataset(job.data, job.seed)


def _require_fit(agent: TrainedAgent, dataset: Dataset) -> None:
    """Raises DataError where the data set lacks a modality of the agent, or has classes that it does not know."""
    if missing := [m for m in agent.modalities if m not in dataset.modalities]:
        raise DataError(
            f"{dataset.name} has no modality {', '.join(missing)}; agent {agent.id} holds {', '.join(agent.modalities)}"
        )
    if strange := [name for name in dataset.class_names if name not in agent.class_names]:
        raise DataError(
            f"{dataset.name} has classes that agent {agent.id} does not know: {', '.join(strange)}. It knows "
            f"{', '.join(agent.class_names)}; the attribute class_names of the file says what its labels mean"
        )


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    with storage_errors(path), open(path, "w", encoding="utf-8", newline="") as file:
        yield file
