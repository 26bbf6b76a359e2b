"""Tables of a study with a row for every method, whether it wins, loses, failed or was never run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from parse_mpi.compare.schema import METHOD
from parse_mpi.compare.studyfile import ENSEMBLE, Cell, Result, Study
from parse_mpi.measures.accuracy import WEIGHTINGS
from parse_mpi.measures.statistics import Array
from parse_mpi.run.summary import size_text
from parse_mpi.studies.document import UNKNOWN, Table
from parse_mpi.studies.scores import (
    ALL,
    MULTIMODAL,
    OF_CEILING,
    TEST,
    Condition,
    condition_name,
    conditions,
    mean_and_sd,
    members,
    reached,
)

ROWS = {"last": "after the last round", "best": "in the best round on validation"}
SPLIT_NAMES = {
    "global": "on the common test split",
    "local": "reweighted by what each agent saw in training",
}
MethodRows = Mapping[str, Sequence[Cell]]  # method -> its cells under a condition, whatever became of them


def rows_of(study: Study, condition: Condition) -> MethodRows:
    here = [cell for cell in study.cells if dict(condition).items() <= cell.levels.items()]
    return {name: [cell for cell in here if cell.levels[METHOD] == name] for name in study.axes[METHOD]}


def overview_table(study: Study) -> Table:
    """All methods under all conditions; the longer of the two runs down."""
    here = conditions(study)
    by_method = {name: [_at_a_glance(study, condition, name) for condition in here] for name in study.axes[METHOD]}
    names = [condition_name(condition) for condition in here]
    heads, body = names, [[name, *cells] for name, cells in by_method.items()]
    if len(names) > len(by_method):
        columns = zip(*by_method.values(), strict=True)
        heads, body = list(by_method), [[name, *cells] for name, cells in zip(names, columns, strict=True)]
    title = f"{study.name}: accuracy (%) of all agents {SPLIT_NAMES['global']}, {ROWS['last']}"
    note = (
        "Mean over agents, then mean ± standard deviation over seeds; in brackets how many finished, where not all did."
    )
    return Table(title, ["", *heads], body, frozenset({""}), note)


def method_tables(study: Study, condition: Condition, target: float | None) -> Iterator[Table]:
    """Accuracy in four ways, then heads, quality and costs; nothing where no cell finished."""
    rows = rows_of(study, condition)
    if not _results(rows):
        return
    for weighting in WEIGHTINGS:
        for row in ROWS:
            yield accuracy_table(rows, condition, row, weighting)
    if any(len(result.prediction) > 1 and members(result, MULTIMODAL).any() for result in _results(rows)):
        yield heads_table(rows, condition)
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


def heads_table(rows: MethodRows, condition: Condition) -> Table:
    """What is left where heads are dropped at inference."""
    names = dict.fromkeys(name for result in _results(rows) for name in result.prediction)
    columns = {}
    for name in names:
        value = partial(_of_kind, prediction=name, kind=MULTIMODAL)
        columns[name] = [percent(*over_seeds(cells, value)) for cells in rows.values()]
    columns = {name: texts for name, texts in columns.items() if set(texts) != {UNKNOWN}}  # of modalities nobody holds
    body = [list(row) for row in zip(rows, *columns.values(), strict=True)]
    title = f"{condition_name(condition)}: accuracy (%) of heads, {ROWS['last']}"
    note = (
        "Agents with several modalities, common test split: all heads (ensemble), some of them, or one; "
        f"{UNKNOWN} where a method has no such heads."
    )
    return Table(title, ["method", *columns], body, frozenset({"method"}), note)


def quality_table(rows: MethodRows, condition: Condition) -> Table:
    """What accuracy does not tell, after the last round: mean over agents, or over pairs that ask and answer."""
    measures = list(dict.fromkeys(m for result in _results(rows) if result.final for m in result.final.measure))
    measured: dict[str, Callable[[Result], float]] = {
        "macro-F1": partial(_of_agents, name="macro_f1"),
        "calibration error": partial(_of_agents, name="calibration_error"),
        **{measure: partial(_retrieval, measure=measure, apart=False) for measure in measures},
        **{f"{measure}, apart": partial(_retrieval, measure=measure, apart=True) for measure in measures},
    }
    body = [
        [name, *(percent(*over_seeds(cells, value)) for value in measured.values())] for name, cells in rows.items()
    ]
    title = f"{condition_name(condition)}: quality on the test split (%), after the last round"
    note = (
        "Expected calibration error in 15 bins, smaller is better. recall@k: how often one modality finds another "
        "one's view of the same event among its k nearest; map: mean average precision in finding the same class. Both "
        "within agents that hold both modalities, mean over ordered pairs; apart: an agent that holds one modality "
        "alone asks, another one that holds another alone answers."
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
            f"Target: {100 * target:.1f} % on the common test split, {OF_CEILING:.0%} of the ceiling in its best "
            "rounds, or of the best method on these data where no ceiling is named; reached in the first evaluation "
            "that is not below, mean over the seeds that get there"
        )
    note = f"{aim}. Steps: mean over agents. Seconds: of training, on the slowest rank."
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


def _at_a_glance(study: Study, condition: Condition, name: str) -> str:
    cells = rows_of(study, condition)[name]
    shown = percent(*over_seeds(cells, _of_kind))
    return shown if shown == UNKNOWN or len(_finished(cells)) == len(cells) else f"{shown} [{_count(cells)}]"


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


def _of_kind(
    result: Result,
    kind: str = ALL,
    row: str = "last",
    weighting: str = "global",
    prediction: str = ENSEMBLE,
    over: Callable[[Array], float] = np.mean,
) -> float:
    """One number from the accuracies of a kind's agents; nan where none has the prediction."""
    if prediction not in result.prediction:
        return np.nan
    table = result.accuracy(prediction, row="best" if row == "best" else "last", weighting=weighting)
    values = table[members(result, kind)]
    known = values[np.isfinite(values)]
    return float(over(known)) if len(known) else np.nan


def _of_agents(result: Result, name: str) -> float:
    if result.final is None:
        return np.nan
    values: Array = getattr(result.final, name)[:, TEST]
    return mean_and_sd(values[members(result, ALL)])[0]


def _retrieval(result: Result, measure: str, apart: bool) -> float:
    """Mean over pairs of two agents, or of one."""
    if result.final is None:
        return np.nan
    chosen = [(pair["query_agent"] != pair["gallery_agent"]) == apart for pair in result.final.pair]
    return mean_and_sd(result.final.retrieval[np.array(chosen, bool), result.final.measure.index(measure)])[0]


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
