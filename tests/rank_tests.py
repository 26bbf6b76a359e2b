"""Runs test files inside the ranks of one launch, and says which test failed on which rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import ROOT, Outcome, run


@dataclass(frozen=True)
class RankEvents:
    """What rank_log.py wrote on one rank. running: the test that was under way when the rank ended, else ""."""

    finished: tuple[str, ...]
    failed: tuple[str, ...]
    running: str
    ended: str

    @staticmethod
    def read(path: Path) -> RankEvents:
        text = path.read_text("utf-8") if path.exists() else ""
        events = [json.loads(line) for line in text.splitlines()]
        named = {kind: [about for event, about in events if event == kind] for kind in ("finished", "failed", "ended")}
        last_event, last_about = events[-1] if events else ("", "")
        return RankEvents(
            finished=tuple(named["finished"]),
            failed=tuple(dict.fromkeys(named["failed"])),
            running=last_about if last_event == "started" else "",
            ended="".join(named["ended"]),
        )


@dataclass(frozen=True)
class Verdict:
    """passed: every rank ran every test to its end. text: which test failed on which rank, with that rank's log."""

    passed: bool
    text: str


def run_rank_tests(
    files: Sequence[Path], ranks: int, log_dir: Path, hang_s: float = 30.0, limit_s: float = 90.0
) -> Verdict:
    """Run the files with pytest on all ranks of one launch; the first failure ends it on all of them."""
    command = [
        sys.executable, "-m", "mpi4py", "-m", "pytest", "-x", "-v", "--with-mpi", "-c", str(ROOT / "pyproject.toml"),
        "-p", "no:cacheprovider", "-p", "rank_log", f"--hang-s={hang_s}", f"-ofaulthandler_timeout={hang_s}",
        *map(str, files),
    ]  # fmt: skip
    outcome = run(ranks, command, log_dir, limit_s)
    return judge(outcome, [RankEvents.read(log_dir / f"rank-{rank}.events") for rank in range(ranks)])


def judge(outcome: Outcome, events: Sequence[RankEvents]) -> Verdict:
    """The verdict on a launch from what its ranks noted."""
    same = len({rank.finished for rank in events}) == 1 and events[0].finished
    if same and outcome.code == 0 and all(rank.ended == "0" for rank in events):
        return Verdict(True, f"{len(events[0].finished)} tests passed on {len(events)} ranks")
    lines = [f"tests on {len(events)} ranks: the launch {_end(outcome)} after {outcome.seconds:.1f} s", outcome.console]
    failed = [rank for rank, event in enumerate(events) if event.failed]
    for rank, event in enumerate(events):
        lines += [f"rank {rank}: FAILED {test}" for test in event.failed]
        if event.running and event.running not in event.failed:
            lines.append(f"rank {rank}: was inside {event.running} when it ended")
    for rank in failed or range(len(events)):
        lines.append(f"--- log of rank {rank} ---\n{outcome.logs[rank]}")
    return Verdict(False, "\n".join(lines))


def _end(outcome: Outcome) -> str:
    return "ran past its time limit" if outcome.timed_out else f"ended with code {outcome.code}"
