"""The section `network` of a site file: what is known of the network between nodes without having measured it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parse_mpi.errors import JobError, Problem
from parse_mpi.job.base import Section
from parse_mpi.joberrors import blame_all, show
from parse_mpi.yamlfile import read_yaml


class Network(Section):
    """latency_us: of a message between two nodes. bandwidth_gb_s: gigabytes a second that a node sends."""

    latency_us: Annotated[float, Field(gt=0, le=1e6)]
    bandwidth_gb_s: Annotated[float, Field(gt=0, le=1e5)]

    @property
    def message_s(self) -> float:
        return self.latency_us * 1e-6

    @property
    def byte_s(self) -> float:
        return 1e-9 / self.bandwidth_gb_s


class _Site(BaseModel):
    """A site file, of which other sections are others' business."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    network: Network


class SiteError(JobError):
    """The site file is wrong; carries all problems at once."""

    whole = "site file"


def read_network(path: Path) -> Network:
    """Read the section. Raises SiteError with all that is wrong with it."""
    try:
        document = read_yaml(path)
    except JobError as error:
        raise SiteError(error.problems) from None
    if not isinstance(document.value, dict):
        raise SiteError([Problem(str(path), f"the file is {show(document.value)}; a site is a mapping of keys")])
    try:
        return _Site.model_validate_json(json.dumps(document.value), strict=True).network
    except ValidationError as error:
        blame_all(document, _Site, error.errors(include_url=False))
        raise SiteError(document.problems) from None
