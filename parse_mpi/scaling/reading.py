"""Reads a scaling study: a checked ScalingSpec with the line of every key, or every problem at once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from parse_mpi.errors import StudyError
from parse_mpi.jobfile import in_reading_order
from parse_mpi.scaling.schema import ScalingSpec
from parse_mpi.specfile import SpecFile, read_spec

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")  # of a curve, which the names of its run directories begin with
OURS = {
    "train.rounds": "`warm_up` and `rounds` of the study set it",
    "agents": "the curves change how many there are; put them into a job file",
}


@dataclass(frozen=True)
class ScalingFile(SpecFile[ScalingSpec]):
    """A checked scaling study."""

    @property
    def job(self) -> Path:
        """The job file that it measures."""
        return Path(os.path.normpath(self.path.parent / os.path.expanduser(self.spec.job)))


def read_scaling_study(path: Path) -> ScalingFile:
    """Read a study file. Raises StudyError with all that it shows to be wrong by itself; its jobs come later."""
    document, spec = read_spec(path, ScalingSpec, StudyError, "scaling study", "jobs/scaling holds ready ones")
    study = ScalingFile(spec, path, document.text, document.lines)
    if not study.job.is_file():
        document.blame(("job",), f"there is no job file {study.job}")
    for key in spec.settings:
        if reason := next((why for ours, why in OURS.items() if key == ours or key.startswith(f"{ours}.")), ""):
            document.blame(("settings", key), f"`{key}` can't be set here: {reason}")
    for curve in spec.curves:
        if not NAME.fullmatch(curve):
            hint = "at most 40 letters, digits and . _ -, the first a letter or a digit"
            document.blame(("curves", curve), f"`{curve}` can't be the name of a curve", hint)
    if document.problems:
        raise StudyError(in_reading_order(document.problems))
    return study
