"""YAML for job files: plain values, the line of every one of them, and all that is wrong with the text.

Scalars follow the core schema of YAML 1.2: `1e-3` is a number, `no` and `1:30` are text, only `true` and `false` (and
their capitalised spellings) are truth values. Tags, anchors and aliases are refused, and so are keys that stand twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from parse_mpi.errors import JobError, Problem

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
KeyPath: TypeAlias = tuple[str | int, ...]

DEEPEST_LEVEL = 20
LARGEST_FILE_BYTES = 1 << 20
LONGEST_NUMBER = 400  # characters; Python refuses to convert integers of more than 4300 digits

_REFUSED = "refused"
_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = {
    "null": r"(?:null|Null|NULL|~|)$",
    "bool": r"(?:true|True|TRUE|false|False|FALSE)$",
    "int": r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$",
    "float": r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
}


@dataclass
class Document:
    """A YAML text, what it says, the place of every key path, and what is wrong.

    A path in `wrong` has its problem already, so nothing more need be said of it or of what lies under it. A path in
    `unsure` has a problem that kept something meant for it, or for something under it, out of the value.
    """

    value: Value
    lines: dict[KeyPath, str]
    text: str = ""
    problems: list[Problem] = field(default_factory=list)
    wrong: set[KeyPath] = field(default_factory=set)
    unsure: set[KeyPath] = field(default_factory=set)

    def blame(self, keys: KeyPath, what: str, hint: str = "", where: str = "") -> None:
        """Add a problem with the value at `keys`, unless that value has been blamed already."""
        if not self.blamed(keys):
            self.problems.append(Problem(where or place_of(self.lines, keys), what, hint))
            self.wrong.add(keys)

    def blamed(self, keys: KeyPath) -> bool:
        return any(keys[:length] in self.wrong for length in range(len(keys) + 1))

    def graft(self, keys: KeyPath, other: Document) -> None:
        """Take over the places and problems of a document whose value now stands at `keys`.

        Parents that stood nowhere before came with it.
        """
        self.lines = {path: place for path, place in self.lines.items() if path[: len(keys)] != keys}
        self.lines |= {(*keys, *path): place for path, place in other.lines.items()}
        for length in range(1, len(keys)):
            self.lines.setdefault(keys[:length], other.lines[()])
        self.problems += other.problems
        self.wrong |= {(*keys, *path) for path in other.wrong}
        self.unsure |= {(*keys, *path) for path in other.unsure}


def place_of(lines: Mapping[KeyPath, str], keys: KeyPath) -> str:
    """The place of a key path, or of its nearest parent that stands in the text."""
    while keys and keys not in lines:
        keys = keys[:-1]
    return lines[keys]


def read_yaml(path: Path) -> Document:
    """Read a file; raises JobError where it can't be opened, is no UTF-8 or is no YAML at all."""
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise JobError([Problem(f"{path}:1", f"larger than {LARGEST_FILE_BYTES} bytes: this is no job file")])
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JobError([Problem(str(path), f"can't be read: {reason}", "check the path and its permissions")]) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{raw[error.start]:02x} is no UTF-8 text"
        raise JobError([Problem(f"{path}:{line}", what, "save the file as UTF-8")]) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str, *, numbered: bool = True) -> Document:
    """Read a text; places are `source:line`, or just `source` unless `numbered`. Raises JobError if it is no YAML."""
    composer: _Composer | None = None
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
    except yaml.YAMLError as error:
        line, what, hint = _syntax_error(error, text)
        raise JobError([Problem(f"{source}:{line}" if numbered else source, what, hint)]) from None
    finally:
        if composer is not None:
            composer.dispose()
    reader = _Reader(source, numbered)
    reader.document.text = text
    for line, what in composer.refused:
        problem = Problem(reader.place(line), f"{what} is not allowed in a job", "write the value out in plain YAML")
        reader.document.problems.append(problem)
    if node is not None:
        reader.document.value = reader.read(node, (), reader.place_of(node))
    return reader.document


def write_yaml(value: Value) -> str:
    """YAML that parse_yaml reads back as an equal value; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)


class _Composer(yaml.SafeLoader):
    """Nodes with core-schema tags; notes anchors and tags in `refused` and never follows an alias."""

    def __init__(self, text: str):
        super().__init__(text)
        self.refused: list[tuple[int, str]] = []
        self.level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        line = mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            self.refused.append((line, f"the alias *{event.anchor}"))
            return yaml.ScalarNode(_REFUSED, "", mark, mark)
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            self.refused.append((line, f"the anchor &{event.anchor}"))
        if self.level == DEEPEST_LEVEL:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST_LEVEL} levels", problem_mark=mark)
        self.level += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.level -= 1
        if tag := getattr(event, "tag", None):
            self.refused.append((line, f"the tag {tag.replace(_TAG, '!!')}"))
            if isinstance(node, yaml.ScalarNode):
                node.tag = _REFUSED
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes each text that YAML 1.1 or the core schema would read as something else."""


_Composer.yaml_implicit_resolvers = {}
for _name, _pattern in _CORE_SCHEMA.items():
    _Composer.add_implicit_resolver(_TAG + _name, re.compile(_pattern), None)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), None)


class _Reader:
    """Turns nodes into values and fills the document's lines and problems."""

    def __init__(self, source: str, numbered: bool):
        self.source = source
        self.numbered = numbered
        self.document = Document(value=None, lines={(): self.place(1)})

    def place(self, line: int) -> str:
        return f"{self.source}:{line}" if self.numbered else self.source

    def read(self, node: yaml.Node, keys: KeyPath, here: str) -> Value:
        self.document.lines[keys] = here
        if isinstance(node, yaml.MappingNode):
            entries = self._entries(node, keys)
            return {key: self.read(child, (*keys, key), place) for key, (child, place) in entries.items()}
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*keys, index), self.place_of(child)) for index, child in enumerate(node.value)]
        if node.tag == _REFUSED:
            self.document.wrong.add(keys)
            return None
        try:
            return _scalar(node.tag, node.value)
        except ValueError as error:
            self.document.blame(keys, str(error))
            return None

    def place_of(self, node: yaml.Node) -> str:
        return self.place(node.start_mark.line + 1)

    def _entries(self, node: yaml.MappingNode, keys: KeyPath) -> dict[str, tuple[yaml.Node, str]]:
        """Each key (always text) with its value and place; of two equal keys the first counts."""
        entries: dict[str, tuple[yaml.Node, str]] = {}
        for key_node, child in node.value:
            here = self.place_of(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value.isprintable():
                self.document.problems.append(Problem(here, "a key must be one plain word"))
                self.document.unsure.add(keys)
            elif key_node.value in entries:
                first = entries[key_node.value][1]
                what = f"`{key_node.value}` stands here a second time; the first is at {first}"
                self.document.blame((*keys, key_node.value), what, "keep one of the two", here)
            else:
                entries[key_node.value] = (child, here)
        return entries


def _scalar(tag: str, text: str) -> Value:
    kind = tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind in ("int", "float") and len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} characters is too long")
    if kind == "int":
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if kind == "float":
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return int(number) if abs(number) < 2**53 and number.is_integer() else number
    if not text.isprintable():
        raise ValueError(f"{text!r} holds a line break or a character that can't be seen")
    return text


def _syntax_error(error: yaml.YAMLError, text: str) -> tuple[int, str, str]:
    """(line, what, hint) of PyYAML's three kinds of complaint."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"character {ord(text[error.position]):#x} is not allowed in YAML", "remove it"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return 1, f"no YAML: {error}", ""
    line = error.problem_mark.line + 1
    problem = str(error.problem)
    if "'\\t'" in problem:
        return line, "a tab can't indent YAML", "use spaces"
    what = f"no YAML: {problem}"
    if error.context and error.context_mark:
        what += f" ({error.context} that began on line {error.context_mark.line + 1})"
    return line, what, "check colons, brackets, quotes and indentation above this line"
