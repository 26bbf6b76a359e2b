"""Claims against studies. Supported: the interval lies wholly in what is claimed; refuted: wholly outside of it.

An interval that ends at a bound, as where two methods never differ, is neither.

A claim with several parts (`each`, `ranking`) is supported where every part is, and refuted where one is. Its intervals
hold together (Bonferroni: 1 - 0.05 / parts each). Everything else is inconclusive, and what could have been detected
stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple

from parse_mpi.compare.schema import DATA, METHOD
from parse_mpi.compare.studyfile import ENSEMBLE, Study
from parse_mpi.measures.statistics import LEVEL, POWER, Pairs, compare_pairs
from parse_mpi.studies.claims import BEST_OF, Claim, Contrast, Figure, Region, Statistic, Verdict
from parse_mpi.studies.contrasts import FEWEST_SEEDS, Term, best_of, pair_up
from parse_mpi.studies.document import UNKNOWN, Table
from parse_mpi.studies.scores import (
    MULTIMODAL,
    UNIMODAL,
    Levels,
    Score,
    make_targets,
    mean_accuracy,
    right_answers,
    rounds_to_target,
)

NUMBERS = ("estimate", "low", "high", "detectable")
DIGITS = 4  # that claims.yaml keeps: verdicts are of what is written
COLUMNS = ("claim", "source", "measured", "expected", "found", "detectable", "seeds", "verdict")


class Part(NamedTuple):
    """Part of a claim that has a number of its own. data: the data sets that it is a mean over."""

    what: str
    weighted: tuple[Term, ...]
    data: tuple[str, ...]
    kind: str


def judge(claim: Claim, study: Study) -> Claim:
    """The claim with its verdict and figures; untested, and why, where the study lacks what it needs."""
    statistic = claim.statistic
    if statistic is None:
        return claim
    if lacking := _lacking(statistic, study):
        return _untested(claim, lacking)
    parts = list(_parts(statistic, study))
    scale = 1.0 if statistic.rounds_to_target else 100.0
    figures: list[Figure] = []
    for part in parts:
        settings = _settings(part, statistic, study)
        if not settings:
            whose = f" ({part.what})" if part.what else ""
            return _untested(claim, f"no seed of {study.name} has finished all cells that it takes{whose}")
        found = compare_pairs(settings, level=1 - (1 - LEVEL) / len(parts))
        numbers = {name: round(scale * getattr(found, name), DIGITS) for name in NUMBERS}
        figures.append(Figure(what=part.what, seeds=found.seeds, **numbers))
    verdict = verdict_of(figures, claim.region)
    return claim.model_copy(update={"verdict": verdict, "figures": tuple(figures)})


def verdict_of(figures: Sequence[Figure], region: Region) -> Verdict:
    """What the intervals of all parts say of a claim."""
    if not figures:
        return "untested"
    if min(figure.seeds for figure in figures) < FEWEST_SEEDS:
        return "inconclusive"
    if all(region.low < figure.low and figure.high < region.high for figure in figures):
        return "supported"
    return "refuted" if any(f.high < region.low or f.low > region.high for f in figures) else "inconclusive"


def claims_table(claims: Sequence[Claim], title: str = "Claims and verdicts") -> Table:
    """A row for each claim; figures in points of accuracy, or in rounds."""
    rows = [
        [
            claim.text,
            claim.source,
            claim.statistic.measured if claim.statistic else UNKNOWN,
            claim.expect if claim.statistic else UNKNOWN,
            "; ".join(map(_found, claim.figures)) or claim.note or UNKNOWN,
            "; ".join(f"{figure.detectable:.2f}" for figure in claim.figures) or UNKNOWN,
            str(min(figure.seeds for figure in claim.figures)) if claim.figures else UNKNOWN,
            claim.verdict,
        ]
        for claim in claims
    ]
    note = (
        "Points of accuracy, or rounds, with the interval that the verdict rests on. Measured: accuracy is that of all "
        "agents on the common test split after the last round; own classes reweigh it by what each agent saw in "
        "training. Detectable: the smallest true difference that the study would find with a probability of "
        f"{POWER:.0%}."
    )
    return Table(title, COLUMNS, rows, frozenset({"claim", "source", "measured", "expected", "found", "verdict"}), note)


# -- what a statistic compares ---------------------------------------------------------------------------------------


def _lacking(statistic: Statistic, study: Study) -> str:
    """The first level that the study does not have, in words; "" where it has all."""
    for levels in statistic.levels():
        for axis, level in levels.items():
            group = level.removeprefix(BEST_OF) if axis == METHOD and level.startswith(BEST_OF) else None
            if group is not None and not (study.compare and group in study.compare.baselines):
                return f"{study.name} has no group `{group}` of baselines"
            if group is None and level not in study.axes.get(axis, ()):
                return f"{study.name} has no level `{level}` of `{axis}`"
    return ""


def _parts(statistic: Statistic, study: Study) -> Iterator[Part]:
    """All numbers that a claim is judged by."""
    data = (statistic.where[DATA],) if DATA in statistic.where else study.axes[DATA]
    groups = [(level, (level,)) for level in data] if statistic.each == "data" else [("", tuple(data))]
    kinds = [UNIMODAL, MULTIMODAL] if statistic.each == "kind" else [statistic.kind]
    for (what, weighted), (name, levels), kind in product(_weighted(statistic), groups, kinds):
        named = [what, name, kind if statistic.each == "kind" else ""]
        yield Part(", ".join(filter(None, named)), weighted, levels, kind)


def _weighted(statistic: Statistic) -> Iterator[tuple[str, tuple[Term, ...]]]:
    """Name and weighted levels of each number; what all have in common is left out."""
    if contrast := statistic.difference or statistic.rounds_to_target:
        yield "", _apart(contrast)
    if statistic.ranking:
        for better, worse in pairwise(statistic.ranking):
            yield f"{_named(better)} − {_named(worse)}", ((1.0, better), (-1.0, worse))
    if change := statistic.change:
        there = ((1.0, change.at), (-1.0, change.rather_than))
        yield "", tuple((w * v, {**side, **at}) for w, at in there for v, side in _apart(change.difference))
    if statistic.accuracy:
        yield "", ((1.0, statistic.accuracy),)


def _settings(part: Part, statistic: Statistic, study: Study) -> list[Pairs]:
    """The pairs of each data set; [] where one of them has none."""
    score, found = _score(statistic, part.kind, study), []
    for data in part.data:
        terms = list(_terms(part.weighted, {**statistic.where, DATA: data}, study))
        pairs = pair_up(study, terms, score) if terms else None
        if pairs is None:
            return []
        found.append(pairs)
    return found


def _terms(weighted: Sequence[Term], where: Levels, study: Study) -> Iterator[Term]:
    """Levels of all axes: the mean over those that are left open, best baselines by their names."""
    named = {axis for _, levels in weighted for axis in levels} | set(where)
    open_axes = [axis for axis in study.axes if axis not in named]
    combinations = list(product(*(study.axes[axis] for axis in open_axes)))
    for combination in combinations:
        for weight, levels in weighted:
            full = {**where, **dict(zip(open_axes, combination, strict=True)), **levels}
            yield weight / len(combinations), _resolved(full, study)


def _resolved(levels: Levels, study: Study) -> Levels:
    """`best of GROUP` as the baseline that validation picks; where none finished, the first, which has no cells."""
    name = levels[METHOD]
    if not name.startswith(BEST_OF) or study.compare is None:
        return levels
    names = study.compare.baselines[name.removeprefix(BEST_OF)]
    condition = tuple((axis, level) for axis, level in levels.items() if axis != METHOD)
    return {**levels, METHOD: best_of(study, condition, names) or names[0]}


def _score(statistic: Statistic, kind: str, study: Study) -> Score:
    if statistic.rounds_to_target:
        return rounds_to_target(make_targets(study))
    if statistic.weighting == "global" and statistic.prediction == ENSEMBLE:
        return right_answers(kind)
    return mean_accuracy(kind, weighting=statistic.weighting, prediction=statistic.prediction)


def _apart(contrast: Contrast) -> tuple[Term, Term]:
    return (1.0, contrast.of), (-1.0, contrast.minus)


def _named(levels: Levels) -> str:
    return ", ".join(levels.values())


def _untested(claim: Claim, note: str) -> Claim:
    return claim.model_copy(update={"verdict": "untested", "figures": (), "note": note})


def _found(figure: Figure) -> str:
    interval = f"{figure.estimate:+.2f} ({figure.low:+.2f} to {figure.high:+.2f})".replace("-", "−")
    return f"{figure.what}: {interval}" if figure.what else interval
