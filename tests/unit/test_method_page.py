"""The documentation and the schema agree: every key is told, and section 8 of docs/method.md has the job's defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from launch import ROOT
from pydantic import BaseModel

from parse_mpi.job import Job

CODE = re.compile(r"`([^`]+)`")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)


PAGE = prose(ROOT / "docs" / "method.md")
CHOICES = PAGE[PAGE.index("\n## 8.") : PAGE.index("\n## 9.")]


def sections(kind: Any) -> Iterator[type[BaseModel]]:
    """Every section that may stand in a value of a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from sections(field.annotation)
    for part in get_args(kind):
        yield from sections(part)


KEYS = {key for section in sections(Job) for key in section.model_fields}


def words(text: str) -> set[str]:
    return {word for code in CODE.findall(text) for word in re.findall(r"[A-Za-z_0-9]+", code)}


def test_every_key_of_a_job_is_told() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    quickstart = re.findall(r"\b([a-z_]+):", (ROOT / "jobs" / "quickstart.yaml").read_text("utf-8"))
    assert len(KEYS) > 80
    assert KEYS - words("\n".join(map(prose, pages))) - set(quickstart) == set()


def test_every_choice_of_the_method_is_listed() -> None:
    (method,) = {section for section in sections(Job) if section.__name__ == "ParseMethod"}
    assert set(method.model_fields) - words(CHOICES) == set()


def test_listed_defaults_are_those_of_the_job() -> None:
    parts = {"agents": [{"modalities": ["top"], "count": 1}], "topology": {"kind": "ring"}}
    job = Job.model_validate({"name": "defaults", "method": {"name": "parse"}, **parts})
    compared = 0
    for row in re.findall(r"^\| (.+) \|$", CHOICES, re.M):
        _, key, default, *_ = row.split(" | ")
        for path in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", key):
            value: Any = job
            for part in path.split("."):
                assert part in KEYS, row
                value = getattr(value, part, None)  # a key of another kind of section than the default one
            if isinstance(value, str | int | float) and key == f"`{path}`":
                shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
                assert shown in re.split(r"[`,; ]+", default), row
                compared += 1
    assert compared > 20
