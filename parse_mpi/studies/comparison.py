"""DIR/study.md, DIR/study.tex and DIR/*.png: all that a study found, from its study.h5."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from parse_mpi.compare.studyfile import Study, load_study
from parse_mpi.errors import ParseMpiError
from parse_mpi.measures.statistics import LEVEL, POWER, Difference
from parse_mpi.storage.write import storage_errors, write_text
from parse_mpi.studies.claims import load_claims
from parse_mpi.studies.contrasts import Contest, every_difference, headline
from parse_mpi.studies.document import PREAMBLE, UNKNOWN, Table, to_latex, to_markdown
from parse_mpi.studies.methodrows import method_tables
from parse_mpi.studies.report import DOTS_PER_INCH
from parse_mpi.studies.scores import Condition, condition_name, conditions, make_targets
from parse_mpi.studies.verdicts import claims_table, judge

STUDY_FILE = "study.h5"
DIFFERENCE_COLUMNS = ("difference", f"{LEVEL:.0%} interval", "detectable")


def write_comparison(study_dir: Path) -> list[Path]:
    """Write tables and pictures of a study, replacing those of an earlier call, and return the files.

    study.md and study.tex hold the same tables: the headline, every method under every condition, the verdicts on
    claims that name this study. Raises StorageError where there is no study.h5, ParseMpiError without matplotlib or
    where cells can't be compared.
    """
    try:
        from parse_mpi.studies.comparisonview import comparison_figures
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise ParseMpiError("the pictures of a study need matplotlib: pip install 'parse-mpi[report]'") from error
    study = load_study(study_dir / STUDY_FILE)
    contests = headline(study)
    differences = {condition: every_difference(study, condition) for condition in conditions(study)}
    tables = list(comparison_tables(study, contests, differences))
    texts = {
        "study.md": "\n".join([f"# {study.name}", "", *_origin(study), *map(to_markdown, tables)]),
        "study.tex": PREAMBLE + "\n".join(to_latex(table, f"{study.name}-{k}") for k, table in enumerate(tables, 1)),
    }
    written = [study_dir / name for name in texts]
    for path, text in zip(written, texts.values(), strict=True):
        write_text(path, text)
    with storage_errors(study_dir):
        for name, figure in comparison_figures(study, contests, differences):
            written.append(study_dir / f"{name}.png")
            figure.savefig(written[-1], dpi=DOTS_PER_INCH)
    return written


def comparison_tables(
    study: Study, contests: list[Contest], differences: dict[Condition, dict[str, Difference | None]]
) -> Iterator[Table]:
    """The headline first, then all methods condition by condition, cells that did not finish, verdicts on claims."""
    if study.compare:
        yield headline_table(study, contests)
    targets = make_targets(study)
    for condition in conditions(study):
        if study.compare:
            yield _difference_table(study, condition, differences[condition])
        yield from method_tables(study, condition, targets.get(condition))
    unfinished = [[cell.name, cell.status, cell.reason] for cell in study.cells if cell.result is None]
    if unfinished:
        yield Table(
            "Cells without a result", ["cell", "status", "reason"], unfinished, frozenset({"cell", "status", "reason"})
        )
    claims = [claim for claim in load_claims() if claim.study == study.name]
    if claims:
        yield claims_table([judge(claim, study) for claim in claims])


def headline_table(study: Study, contests: list[Contest]) -> Table:
    """The method under test against the best baseline of each group."""
    assert study.compare is not None
    columns = ["data", "group", "best baseline", *DIFFERENCE_COLUMNS, "p", "seeds", "verdict"]
    rows = [
        [
            condition_name(contest.condition),
            contest.group,
            contest.baseline or "none finished",
            *difference_cells(contest.difference),
            p_text(contest.p),
            str(contest.difference.seeds) if contest.difference else "0",
            contest.verdict,
        ]
        for contest in contests
    ]
    note = (
        "In points of accuracy, mean over all agents, common test split, after the last round. The best baseline of a "
        "group is the one with the highest validation accuracy. Intervals by a paired bootstrap over seeds and test "
        f"samples; p after Holm's correction over these {len(rows)} rows. Detectable: the smallest true difference "
        f"that would be found with a probability of {POWER:.0%}."
    )
    title = f"{study.name}: {study.compare.method} minus the best baseline"
    return Table(title, columns, rows, frozenset({"data", "group", "best baseline", "verdict"}), note)


def difference_cells(difference: Difference | None) -> list[str]:
    """Estimate, interval and detectable difference in points."""
    if difference is None:
        return [UNKNOWN] * len(DIFFERENCE_COLUMNS)
    low, high = points(difference.low), points(difference.high)
    return [points(difference.estimate), f"{low} to {high}", f"{100 * difference.detectable:.2f}"]


def points(share: float) -> str:
    """A signed difference in points of a percent."""
    return f"{100 * share:+.2f}".replace("-", "−")


def p_text(p: float) -> str:
    if not np.isfinite(p):
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _difference_table(study: Study, condition: Condition, found: dict[str, Difference | None]) -> Table:
    assert study.compare is not None
    columns = ["minus", *DIFFERENCE_COLUMNS, "seeds"]
    rows = [
        [name, *difference_cells(difference), str(difference.seeds) if difference else "0"]
        for name, difference in found.items()
    ]
    title = f"{condition_name(condition)}: {study.compare.method} minus every other method"
    return Table(title, columns, rows, frozenset({"minus"}), "In points, as above, without correction for many looks.")


def _origin(study: Study) -> list[str]:
    """When, how, where and from what."""
    finished = sum(cell.result is not None for cell in study.cells)
    told = [
        f"- {key}: {study.provenance[key]}"
        for key in ("time", "command", "commit", "machine")
        if key in study.provenance
    ]
    seeds = ", ".join(map(str, study.seeds))
    tuned = ["## Settings that tuning chose", "", *_settings(study), ""] if study.settings else []
    return [*told, f"- cells: {finished} of {len(study.cells)} finished", f"- seeds: {seeds}", "", *tuned]


def _settings(study: Study) -> list[str]:
    return [
        f"- {data}, {method}: "
        + (", ".join(f"`{key}: {value}`" for key, value in settings.items()) or "as the job has them")
        for (data, method), settings in study.settings.items()
    ]
