"""DIR/study.md, DIR/study.tex and DIR/*.png: all that a study found, from its study.h5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from parse_mpi.compare.choices import Choice
from parse_mpi.compare.directory import RESULT
from parse_mpi.compare.studyfile import Study, load_study
from parse_mpi.errors import ParseMpiError
from parse_mpi.measures.statistics import LEVEL, POWER, Difference
from parse_mpi.storage.write import storage_errors, write_text
from parse_mpi.studies.claims import load_claims
from parse_mpi.studies.contrasts import Contest, Differences, every_difference, headline
from parse_mpi.studies.document import PREAMBLE, UNKNOWN, Table, to_latex, to_markdown
from parse_mpi.studies.methodrows import method_tables, overview_table, percent
from parse_mpi.studies.report import DOTS_PER_INCH
from parse_mpi.studies.scores import Condition, condition_name, conditions, make_targets
from parse_mpi.studies.verdicts import claims_table, judge

DIFFERENCE_COLUMNS = ("difference", f"{LEVEL:.0%} interval", "detectable")


def write_comparison(study_dir: Path) -> list[Path]:
    """Write tables and pictures of a study, replacing those of an earlier call, and return the files.

    study.md and study.tex hold the same tables: the headline, every method under every condition, the verdicts on
    claims that name this study, what tuning chose. Raises StorageError where there is no study.h5, ParseMpiError
    without matplotlib or where cells can't be compared.
    """
    try:
        from parse_mpi.studies.comparisonview import comparison_figures
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise ParseMpiError("the pictures of a study need matplotlib: pip install 'parse-mpi[report]'") from error
    study = load_study(study_dir / RESULT)
    differences = every_difference(study)
    contests = headline(study, differences)
    tables = list(comparison_tables(study, contests, differences))
    pictures = dict(comparison_figures(study, contests, differences))
    texts = {
        "study.md": "\n".join([f"# {study.name}", "", *_origin(study), *map(to_markdown, tables), *_shown(pictures)]),
        "study.tex": PREAMBLE + "\n".join(to_latex(table, f"{study.name}-{k}") for k, table in enumerate(tables, 1)),
    }
    for name, text in texts.items():
        write_text(study_dir / name, text)
    with storage_errors(study_dir):
        for name, figure in pictures.items():
            figure.savefig(study_dir / f"{name}.png", dpi=DOTS_PER_INCH)
    return [study_dir / name for name in (*texts, *(f"{name}.png" for name in pictures))]


def comparison_tables(study: Study, contests: Sequence[Contest], differences: Differences) -> Iterator[Table]:
    """The headline and all methods at a glance, verdicts on claims, then condition by condition; failures, settings."""
    if study.compare:
        yield headline_table(study, contests)
    yield overview_table(study)
    if claims := [claim for claim in load_claims() if claim.study == study.name]:
        yield claims_table([judge(claim, study) for claim in claims])
    targets = make_targets(study)
    for condition in conditions(study):
        if any(differences[condition].values()):
            yield _difference_table(study, condition, differences[condition])
        yield from method_tables(study, condition, targets.get(condition))
    if failed := [[cell.name, cell.reason] for cell in study.cells if cell.status == "failed"]:
        yield Table("Cells that failed", ["cell", "reason"], failed, frozenset({"cell", "reason"}))
    if study.tuning:
        yield _settings_table(study)


def headline_table(study: Study, contests: Sequence[Contest]) -> Table:
    """The method under test against the best baseline of each group."""
    assert study.compare is not None
    columns = ["data", "group", "best baseline", *DIFFERENCE_COLUMNS, "best rounds", "p", "seeds", "verdict"]
    rows = [
        [
            condition_name(contest.condition),
            contest.group,
            contest.baseline or UNKNOWN,
            *difference_cells(contest.difference),
            points(contest.in_best_round) if np.isfinite(contest.in_best_round) else UNKNOWN,
            p_text(contest.p),
            str(contest.difference.seeds) if contest.difference else "0",
            contest.verdict,
        ]
        for contest in contests
    ]
    tested = sum(contest.difference is not None for contest in contests)
    note = (
        "In points of accuracy, mean over all agents, common test split, after the last round. The best baseline of a "
        "group is the one with the highest validation accuracy after the last round. Intervals by a paired bootstrap "
        "over seeds and test samples, each row by itself. Detectable: the smallest true difference whose interval "
        f"would leave out 0 with a probability of {POWER:.0%}. Best rounds: the same difference where every cell "
        "counts with its best round on validation. p: after Holm's correction over all "
        f"{tested} rows with a difference; verdicts are at p < {1 - LEVEL:.2f}."
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


def _difference_table(study: Study, condition: Condition, found: Mapping[str, Difference | None]) -> Table:
    assert study.compare is not None
    columns = ["minus", *DIFFERENCE_COLUMNS, "seeds"]
    rows = [
        [name, *difference_cells(difference), str(difference.seeds) if difference else "0"]
        for name, difference in found.items()
    ]
    title = f"{condition_name(condition)}: {study.compare.method} minus every other method"
    note = "In points of accuracy of all agents after the last round, without correction for many looks."
    return Table(title, columns, rows, frozenset({"minus"}), note)


def _settings_table(study: Study) -> Table:
    """What tuning chose, of how many, and how good it was there."""
    columns = ["data", "method", "tried", "failed", "validation (%)", "settings"]
    rows = []
    for (data, method), choice in study.tuning.items():
        failed = sum(not np.isfinite(tried.score) for tried in choice.tried)
        rows.append([data, method, str(len(choice.tried)), str(failed), *_chosen(choice)])
    note = (
        "Validation: mean accuracy of all agents after the last round, mean over the seeds of tuning. tuning.yaml has "
        "all configurations that were tried, with their scores."
    )
    return Table("Settings that tuning chose", columns, rows, frozenset({"data", "method", "settings"}), note)


def _origin(study: Study) -> list[str]:
    """When, how, where and from what."""
    finished = sum(cell.result is not None for cell in study.cells)
    told = [
        f"- {key}: {study.provenance[key]}"
        for key in ("time", "command", "commit", "machine")
        if key in study.provenance
    ]
    failed = sum(cell.status == "failed" for cell in study.cells)
    missing = len(study.cells) - finished - failed
    counts = f"{finished} of {len(study.cells)} finished, {failed} failed, {missing} not run yet"
    return [*told, f"- cells: {counts}", f"- seeds: {', '.join(map(str, study.seeds))}", ""]


def _chosen(choice: Choice) -> tuple[str, str]:
    """Score and settings."""
    if choice.chosen is None:
        return UNKNOWN, "none: every configuration failed"
    told = [
        f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in choice.settings.items()
    ]
    return percent(choice.tried[choice.chosen].score), ", ".join(told) or "as the job has them"


def _shown(pictures: Iterable[str]) -> list[str]:
    """Pictures in Markdown."""
    return ["### Pictures", "", *(f"![{name}](<{name}.png>)\n" for name in pictures)]
