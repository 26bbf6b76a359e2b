"""Tables of a study with a row for every method, whether it wins, loses, failed or was never run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from parse_mpi.compare.schema import METHOD
from parse_mpi.compare.studyfile import Cell, Result, Study
from parse_mpi.measures.accuracy import WEIGHTINGS
from parse_mpi.measures.statistics import Array
from parse_mpi.run.summary import size_text
from parse_mpi.studies.document import UNKNOWN, Table
from parse_mpi.studies.scores import ALL, OF_CEILING, TEST, Condition, condition_name, mean_and_sd, members, reached

ROWS = {"last": "after the last round", "best": "in the best round on validation"}
SPLIT_NAMES = {
    "global": "on the common test split",
    "local": "reweighted by what each agent saw in training",
}
MethodRows = Mapping[str, Sequence[Cell]]  # method -> its cells under a condition, whatever became of them


def rows_of(study: Study, condition: Condition) -> MethodRows:
    here = [cell for cell in study.cells if dict(condition).items() <= cell.levels.items()]
    return {name: [cell for cell in here if cell.levels[METHOD] == name] for name in study.axes[METHOD]}


def method_tables(study: Study, condition: Condition, target: float | None) -> Iterator[Table]:
    """Accuracy in four ways, then quality and costs."""
    rows = rows_of(study, condition)
    for weighting in WEIGHTINGS:
        for row in ROWS:
            yield accuracy_table(rows, condition, row, weighting)
    yield quality_table(rows, condition)
    yield cost_table(rows, condition, target)


def accuracy_table(rows: MethodRows, condition: Condition, row: str, weighting: str) -> Table:
    """Percent, mean over agents of a kind, then mean ± standard deviation over seeds."""
    kinds = _kinds(rows)
    measured: dict[str, Callable[[Result], float]] = {
        ALL: partial(_of_kind, row=row, weighting=weighting, kind=ALL, over=np.mean),
        **{kind: partial(_of_kind, row=row, weighting=weighting, kind=kind, over=np.mean) for kind in kinds},
        "worst agent": partial(_of_kind, row=row, weighting=weighting, kind=ALL, over=np.min),
        "sd of agents": partial(_of_kind, row=row, weighting=weighting, kind=ALL, over=np.std),
    }
    body = [
        [name, _count(cells), *(percent(*over_seeds(cells, value)) for value in measured.values())]
        for name, cells in rows.items()
    ]
    title = f"{condition_name(condition)}: accuracy (%) {SPLIT_NAMES[weighting]}, {ROWS[row]}"
    note = f"Mean ± standard deviation over seeds. {standing_note(rows)}"
    return Table(title, ["method", "seeds", *measured], body, frozenset({"method"}), note.strip())


def quality_table(rows: MethodRows, condition: Condition) -> Table:
    """What accuracy does not tell, after the last round: mean over agents, or over pairs that ask and answer."""
    measures = list(dict.fromkeys(m for result in _results(rows) if result.final for m in result.final.measure))
    measured: dict[str, Callable[[Result], float]] = {
        "macro-F1": partial(_of_agents, name="macro_f1"),
        "calibration error": partial(_of_agents, name="calibration_error"),
        **{measure: partial(_retrieval, measure=measure) for measure in measures},
    }
    body = [
        [name, *(percent(*over_seeds(cells, value)) for value in measured.values())] for name, cells in rows.items()
    ]
    title = f"{condition_name(condition)}: quality on the test split (%), after the last round"
    note = (
        "Expected calibration error in 15 bins, smaller is better. recall@k and map: one modality looks for another "
        "one's view of the same event, mean over all pairs, within agents and between them."
    )
    return Table(title, ["method", *measured], body, frozenset({"method"}), note)


def cost_table(rows: MethodRows, condition: Condition, target: float | None) -> Table:
    """What accuracy costs, mean over seeds; to the target: mean over those that reach it, and how many do."""
    columns = ("rounds to target", "reached", "sent until then", "sent a round", "gradient steps", "seconds")
    body = []
    for name, cells in rows.items():
        there = [] if target is None else list(_arrivals(cells, target))
        share = UNKNOWN if target is None or not _finished(cells) else f"{len(there)}/{len(_finished(cells))}"
        body.append(
            [
                name,
                f"{np.mean([done for done, _ in there]):.0f}" if there else UNKNOWN,
                share,
                size_text(float(np.mean([sent for _, sent in there]))) if there else UNKNOWN,
                _shown(over_seeds(cells, lambda result: result.payload_bytes / result.last_round)[0], size_text),
                _shown(over_seeds(cells, _steps)[0], "{:,.0f}".format),
                _shown(over_seeds(cells, lambda result: result.seconds)[0], "{:,.1f}".format),
            ]
        )
    title = f"{condition_name(condition)}: what it costs"
    aim = "No target, because the ceiling has no result"
    if target is not None:
        aim = (
            f"Target: {100 * target:.1f} % on the common test split, {OF_CEILING:.0%} of the ceiling in its best round"
        )
    note = f"{aim}. Steps: of an agent. Seconds: of training, on the slowest rank."
    return Table(title, ["method", *columns], body, frozenset({"method"}), note)


def over_seeds(cells: Sequence[Cell], value: Callable[[Result], float]) -> tuple[float, float]:
    """Mean and standard deviation of what finished cells measured."""
    return mean_and_sd(np.array([value(result) for result in _finished(cells)], float))


def percent(mean: float, sd: float = np.nan) -> str:
    """87.4 ± 0.5, from shares."""
    if not np.isfinite(mean):
        return UNKNOWN
    return f"{100 * mean:.1f} ± {100 * sd:.1f}" if np.isfinite(sd) else f"{100 * mean:.1f}"


def standing_note(rows: MethodRows) -> str:
    """Which methods lack cells, and why; "" where all finished."""
    parts = []
    for name, cells in rows.items():
        for status in ("failed", "missing"):
            if count := sum(cell.status == status for cell in cells):
                parts.append(f"{name}: {count} of {len(cells)} {status}")
    return f"Not all cells finished: {'; '.join(parts)}." if parts else ""


def _kinds(rows: MethodRows) -> list[str]:
    return list(dict.fromkeys(kind for result in _results(rows) for kind in result.kind if kind))


def _results(rows: MethodRows) -> list[Result]:
    return [result for cells in rows.values() for result in _finished(cells)]


def _finished(cells: Sequence[Cell]) -> list[Result]:
    return [cell.result for cell in cells if cell.result is not None]


def _count(cells: Sequence[Cell]) -> str:
    """Finished seeds, and of how many where some are not."""
    finished = len(_finished(cells))
    return str(finished) if finished == len(cells) else f"{finished} of {len(cells)}"


def _of_kind(result: Result, row: str, weighting: str, kind: str, over: Callable[[Array], float]) -> float:
    """One number from the accuracies of a kind's agents."""
    values = result.accuracy(row="best" if row == "best" else "last", weighting=weighting)[members(result, kind)]
    known = values[np.isfinite(values)]
    return float(over(known)) if len(known) else np.nan


def _of_agents(result: Result, name: str) -> float:
    if result.final is None:
        return np.nan
    values: Array = getattr(result.final, name)[:, TEST]
    return mean_and_sd(values[members(result, ALL)])[0]


def _retrieval(result: Result, measure: str) -> float:
    final = result.final
    return np.nan if final is None else mean_and_sd(final.retrieval[:, final.measure.index(measure)])[0]


def _arrivals(cells: Sequence[Cell], target: float) -> Iterator[tuple[int, int]]:
    """Round in which a cell reached the target and bytes sent until then, for those that did."""
    for result in _finished(cells):
        row = reached(result.curve, target)
        if row is not None:
            yield int(result.curve.round[row]), int(result.curve.payload_bytes[row])


def _steps(result: Result) -> float:
    return float(result.gradient_steps[members(result, ALL)].mean())


def _shown(value: float, show: Callable[[float], str]) -> str:
    return show(value) if np.isfinite(value) else UNKNOWN
