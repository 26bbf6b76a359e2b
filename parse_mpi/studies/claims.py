"""docs/claims.yaml: what the sources say that can be checked, and how a study would show it.

    - id: random-gossip-converges-faster
      source: arXiv 2601.10012
      text: Random gossip needs fewer rounds than a ring.
      study: topology                       # `name` of a study in jobs/studies/; null: no study of ours can tell
      statistic:
        rounds_to_target: {of: {topology: random-gossip}, minus: {topology: ring}}
        where: {method: parse}
      expect: "< 0"
      verdict: untested                     # this and `figures` are written by benchmarks/claims.py
      figures: []

A statistic compares cells at the levels `of` with cells at the levels `minus` of the same axes. `where` fixes other
axes; what is left open is averaged over. `best of GROUP` as a method is the best baseline of that group on validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from parse_mpi.compare.schema import DATA
from parse_mpi.compare.studyfile import ENSEMBLE
from parse_mpi.errors import ParseMpiError
from parse_mpi.job.base import Section
from parse_mpi.jobpaths import SHIPPED_DIRS
from parse_mpi.studies.scores import ALL, Levels
from parse_mpi.yamlfile import read_yaml

BEST_OF = "best of "
BOUND = re.compile(r"(?P<side>[<>]) (?P<limit>-?[0-9.]+)|(?P<low>-?[0-9.]+) to (?P<high>-?[0-9.]+)")

Verdict = Literal["supported", "refuted", "inconclusive", "untested"]


class Contrast(Section):
    """Two sides of a comparison; both name the same axes. Pairs of cells that differ in nothing else are compared."""

    of: Annotated[Levels, Field(min_length=1)]
    minus: Annotated[Levels, Field(min_length=1)]

    @model_validator(mode="after")
    def _both_sides_name_the_same_axes(self) -> Contrast:
        if set(self.of) != set(self.minus):
            raise ValueError("`of` and `minus` must name the same axes")
        if DATA in self.of:
            raise ValueError("what differs in its data can't be compared in pairs; fix `data` in `where`")
        return self


class Change(Section):
    """`difference` at the levels `at` minus the same at the levels `rather_than`, of other axes."""

    difference: Contrast
    at: Annotated[Levels, Field(min_length=1)]
    rather_than: Annotated[Levels, Field(min_length=1)]

    @model_validator(mode="after")
    def _both_name_the_same_axes(self) -> Change:
        if set(self.at) != set(self.rather_than) or DATA in self.at or set(self.at) & set(self.difference.of):
            raise ValueError("`at` and `rather_than` must name the same axes, other than `data` and those that differ")
        return self


class Statistic(Section):
    """What is worked out from a study; exactly one of the first five. Accuracies and differences are in percent.

    difference: of accuracies. ranking: levels from the best to the worst, each against the next. rounds_to_target:
    rounds until 90 % of the ceiling, as a difference. change: see there. accuracy: of a cell, by itself.

    where: levels of axes that are fixed. each: `data`, it must hold on every data set, not on average; `kind`, for
    unimodal and for multimodal agents. kind: which agents count. weighting, prediction: of the accuracy; other than the
    ensemble on the common split only whole cells are compared, not samples.
    """

    difference: Contrast | None = None
    ranking: Annotated[tuple[Levels, ...], Field(min_length=2)] | None = None
    rounds_to_target: Contrast | None = None
    change: Change | None = None
    accuracy: Levels | None = None
    where: Levels = Field(default_factory=dict)
    each: Literal["data", "kind"] | None = None
    kind: str = ALL
    weighting: Literal["global", "local"] = "global"
    prediction: str = ENSEMBLE

    @model_validator(mode="after")
    def _is_one_statistic(self) -> Statistic:
        named = (self.difference, self.ranking, self.rounds_to_target, self.change, self.accuracy)
        if sum(part is not None for part in named) != 1:
            raise ValueError("name exactly one of difference, ranking, rounds_to_target, change, accuracy")
        axes = {frozenset(levels) for levels in self.ranking or ()}
        if len(axes) > 1 or any(DATA in named for named in axes):
            raise ValueError("all levels of a ranking must name the same axes, other than `data`")
        return self

    @property
    def measured(self) -> str:
        """What is compared, in words."""
        what = "rounds" if self.rounds_to_target else "own classes" if self.weighting == "local" else ""
        kind = "" if self.kind == ALL else f"{self.kind} agents"
        head = "" if self.prediction == ENSEMBLE else f"{self.prediction} head"
        return ", ".join(filter(None, [kind, what, head])) or "accuracy"

    def levels(self) -> Iterator[Levels]:
        """Every set of levels that is named anywhere."""
        for contrast in (self.difference, self.rounds_to_target, self.change.difference if self.change else None):
            if contrast:
                yield from (contrast.of, contrast.minus)
        yield from self.ranking or ()
        yield from filter(None, (self.accuracy, self.where))
        if self.change:
            yield from (self.change.at, self.change.rather_than)


class Region(Section):
    """The values that a claim allows, without the ends."""

    low: float = -inf
    high: float = inf


class Figure(Section):
    """One number of a verdict, in points of percent or in rounds, with its interval and its power."""

    what: str
    estimate: float
    low: float
    high: float
    detectable: float
    seeds: int


class Claim(Section):
    """One sentence of a source, in our words. study: null where no study of ours can tell."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    source: str
    text: str
    study: str | None
    statistic: Statistic | None = None
    expect: str = "> 0"
    note: str = ""
    verdict: Verdict = "untested"
    figures: tuple[Figure, ...] = ()

    @field_validator("expect")
    @classmethod
    def _is_a_region(cls, text: str) -> str:
        region_of(text)
        return text

    @model_validator(mode="after")
    def _can_be_checked_or_says_why_not(self) -> Claim:
        if (self.study is None) != (self.statistic is None):
            raise ValueError("a claim has both a study and a statistic, or neither")
        if self.study is None and not self.note:
            raise ValueError("a claim without a study says in `note` why")
        return self

    @property
    def region(self) -> Region:
        return region_of(self.expect)


def region_of(text: str) -> Region:
    """`> 0`, `< 0` or `0.3 to 2.8`. Raises ValueError for anything else."""
    match = BOUND.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no expectation; write `> 0`, `< 0` or `0.3 to 2.8`")
    if match["side"] is None:
        return Region(low=float(match["low"]), high=float(match["high"]))
    return Region(low=float(match["limit"])) if match["side"] == ">" else Region(high=float(match["limit"]))


def claims_file() -> Path:
    """Where claims.yaml lies: in the package of a wheel, in docs/ of the sources."""
    candidates = [directory / "docs" / "claims.yaml" for directory in SHIPPED_DIRS]
    return next((path for path in candidates if path.is_file()), candidates[-1])


def load_claims(path: Path | None = None) -> list[Claim]:
    """Read and check all claims. Raises JobError where the file is no YAML, ParseMpiError where it holds no claims."""
    path = path or claims_file()
    try:
        return TypeAdapter(list[Claim]).validate_python(read_yaml(path).value)
    except ValidationError as error:
        raise ParseMpiError(f"{path}: {error}") from error
