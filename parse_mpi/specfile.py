"""Reads a YAML file by its schema: studies, scaling studies and site files. Jobs have jobfile.py, which does more."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from parse_mpi.errors import JobError, Problem
from parse_mpi.joberrors import blame_all, show
from parse_mpi.jobfile import in_reading_order
from parse_mpi.yamlfile import Document, KeyPath, place_of, read_yaml

Spec = TypeVar("Spec", bound=BaseModel)


@dataclass(frozen=True)
class SpecFile(Generic[Spec]):
    """A checked file, its text, and where each of its keys stands."""

    spec: Spec
    path: Path
    text: str
    lines: Mapping[KeyPath, str]

    def where(self, *keys: str | int) -> str:
        """`file:line` of a key, or of its nearest parent that was written."""
        return place_of(self.lines, keys)


def read_spec(path: Path, schema: type[Spec], error: type[JobError], kind: str, hint: str) -> tuple[Document, Spec]:
    """A YAML file and what it says by a schema. kind: what such a file is called. hint: where sound ones are.

    Raises `error` with all that does not fit the schema; what the document itself shows to be wrong is left in it.
    """
    if not os.path.exists(path):
        raise error([Problem(str(path), f"there is no such {kind} file", hint)])
    try:
        document = read_yaml(path)
    except JobError as unreadable:
        raise error(unreadable.problems) from None
    settings = {} if document.value is None else document.value
    if not isinstance(settings, dict):
        document.blame((), f"the file is {show(settings)}; a {kind} is a mapping of keys", hint)
        raise error(document.problems)
    try:
        # As JSON, because strict validation takes lists for tuples there, and a whole number for a float.
        return document, schema.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as unfit:
        blame_all(document, schema, unfit.errors(include_url=False))
        raise error(in_reading_order(document.problems)) from None
