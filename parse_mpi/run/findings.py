"""What the doctor found: lines of three levels, those of several ranks merged into one list, and how they look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

from parse_mpi.errors import EXIT_OK, EXIT_UNEXPECTED

if TYPE_CHECKING:
    from parse_mpi.exchange.world import World

STYLES = {"ok": "green", "note": "yellow", "FAIL": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line. ok: fine; note: works, but worth knowing; FAIL: a run would not work, do `next_step`."""

    level: Literal["ok", "note", "FAIL"]
    subject: str
    text: str
    next_step: str = ""


def guarded(subject: str, next_step: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; whatever it raises is a FAIL too: that is what the doctor looks for."""
    try:
        yield from check()
    except Exception as error:
        yield Finding("FAIL", subject, f"{type(error).__name__}: {'; '.join(str(error).splitlines())}", next_step)


def merge(world: World, found: Iterable[Finding]) -> list[Finding]:
    """Findings of all ranks on rank 0: those that ranks share once, the others with their ranks. FAILs where
    ranks have different packages."""
    gathered = world.gather_json([asdict(finding) for finding in found])
    if gathered is None:
        return []
    ranks_of: dict[Finding, list[int]] = {}
    for rank, findings in enumerate(gathered):
        for values in findings:
            ranks_of.setdefault(Finding(**values), []).append(rank)
    merged = [finding if len(ranks) == world.size else _of_ranks(finding, ranks) for finding, ranks in ranks_of.items()]
    if sum(finding.subject == "packages" and finding.level == "ok" for finding in ranks_of) > 1:
        step = "use one environment on a file system that all hosts share"
        merged.append(Finding("FAIL", "packages", "ranks have different versions", step))
    return merged


def show(console: Console, findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding as it comes."""
    shown = []
    for finding in findings:
        line = Text.assemble((f"{finding.level:<5}", STYLES[finding.level]), f"{finding.subject:<12} {finding.text}")
        console.print(line)
        if finding.next_step:
            console.print(Text(f"{'':<18}next: {finding.next_step}"))
        shown.append(finding)
    return shown


def exit_code(findings: Iterable[Finding]) -> int:
    return EXIT_UNEXPECTED if any(finding.level == "FAIL" for finding in findings) else EXIT_OK


def _of_ranks(finding: Finding, ranks: list[int]) -> Finding:
    which = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: "
    return Finding(finding.level, finding.subject, which + finding.text, finding.next_step)
