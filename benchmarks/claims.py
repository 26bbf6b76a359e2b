"""Verdicts of finished studies on the claims of the sources, written into docs/claims.yaml and docs/results.md.

    .venv/bin/python benchmarks/claims.py runs/headline runs/topology ...

Claims about other studies keep the verdict that they have; without any study the table alone is brought up to date.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from parse_mpi.compare.studyfile import load_study
from parse_mpi.storage.write import write_text
from parse_mpi.studies.claims import Claim, load_claims
from parse_mpi.studies.document import to_markdown
from parse_mpi.studies.verdicts import NUMBERS, claims_table, judge

DOCS = Path(__file__).parent.parent / "docs"
TABLE = re.compile(r"^### Claims and verdicts\n.*?(?=^#|\Z)", re.M | re.S)
OUTCOME = re.compile(r"^  verdict: .*\n  figures:.*\n(?:    .*\n)*", re.M)
BLOCK = re.compile(r"^- id: (\S+)\n(?:(?!- id: ).*\n?)*", re.M)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Verdicts of studies on the claims of the sources")
    parser.add_argument("studies", nargs="*", type=Path, help="directories of finished studies")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where claims.yaml and results.md lie")
    options = parser.parse_args(arguments)
    studies = {study.name: study for study in (load_study(path / "study.h5") for path in options.studies)}
    path = options.docs / "claims.yaml"
    claims = [judge(claim, studies[claim.study]) for claim in load_claims(path) if claim.study in studies]
    write_text(path, recorded(path.read_text("utf-8"), claims))
    results = options.docs / "results.md"
    table = to_markdown(claims_table(load_claims(path)))
    write_text(results, TABLE.sub(lambda _: f"{table}\n", results.read_text("utf-8")).rstrip() + "\n")
    for claim in claims:
        print(f"{claim.verdict:12}  {claim.id}" + (f"  ({claim.note})" if claim.verdict == "untested" else ""))


def recorded(text: str, claims: Sequence[Claim]) -> str:
    """claims.yaml with the verdicts and figures of these claims; nothing else of it changes."""
    outcomes = {claim.id: outcome(claim) for claim in claims}
    placed = {block[1] for block in BLOCK.finditer(text) if OUTCOME.search(block[0])}
    if lost := outcomes.keys() - placed:
        raise SystemExit(f"claims.yaml has no lines `verdict:` and `figures:` to write into: {', '.join(sorted(lost))}")

    def with_outcome(block: re.Match[str]) -> str:
        return OUTCOME.sub(lambda old: outcomes.get(block[1], old[0]), block[0])

    return BLOCK.sub(with_outcome, text)


def outcome(claim: Claim) -> str:
    """The two keys as lines of claims.yaml."""
    lines = [f"  verdict: {claim.verdict}", "  figures:" if claim.figures else "  figures: []"]
    for figure in claim.figures:
        told = ", ".join(f"{name}: {getattr(figure, name)}" for name in NUMBERS)
        lines.append(f"    - {{what: {json.dumps(figure.what, ensure_ascii=False)}, {told}, seeds: {figure.seeds}}}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
