"""Pictures of a run, finished or under way: RUN/report/*.png."""

from __future__ import annotations

from pathlib import Path

from parse_mpi.errors import ParseMpiError
from parse_mpi.storage.write import storage_errors
from parse_mpi.studies.recorded import RecordedRun

DOTS_PER_INCH = 160


def draw_report(run: Path) -> list[Path]:
    """Draw what the metrics of a run hold so far and return the files.

    accuracy.png, losses.png, consensus.png, graphs.png, classes.png, time.png and budget.png, each as soon as there is
    something to show: a run that has not been evaluated has no accuracy, a method without exchange no graphs, one
    where nothing had to wait no budget. Files of an earlier report are replaced. Raises ParseMpiError without
    matplotlib, StorageError where there is no run.
    """
    try:
        from parse_mpi.studies.costs import budget_figure, time_figure
        from parse_mpi.studies.curves import accuracy_figure, consensus_figure, losses_figure
        from parse_mpi.studies.graphview import graphs_figure
        from parse_mpi.studies.tallies import classes_figure
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise ParseMpiError("a report needs matplotlib: pip install 'parse-mpi[report]'") from error
    recorded, folder = RecordedRun.read(run), Path(run) / "report"
    pictures = {
        "accuracy": accuracy_figure,
        "losses": losses_figure,
        "consensus": consensus_figure,
        "graphs": graphs_figure,
        "classes": classes_figure,
        "time": time_figure,
        "budget": budget_figure,
    }
    written = []
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        for name, draw in pictures.items():
            if figure := draw(recorded):
                written.append(folder / f"{name}.png")
                figure.savefig(written[-1], dpi=DOTS_PER_INCH)
    return written
