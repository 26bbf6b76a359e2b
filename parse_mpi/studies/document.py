"""Tables as Markdown and as LaTeX. Cells are plain text; what has a meaning in the format is escaped here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

UNKNOWN = "–"
LONGEST_LINE = 40  # characters of text in LaTeX
PREAMBLE = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}; read it with \\input.\n"
IN_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": "$\\pm$",
    "−": "$-$",
    "→": "$\\rightarrow$",
    "|": "$|$",
    "…": "\\dots{}",
    "–": "--",
}
IN_MARKDOWN = re.compile(r"([\\`*_\[\]<>|])")


@dataclass(frozen=True)
class Table:
    """columns: heads; rows: as many cells each. text: columns that stand left, the others right. note: below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: frozenset[str] = field(default_factory=frozenset)
    note: str = ""


def to_markdown(table: Table) -> str:
    """A heading, the table, and its note."""
    lines = [f"### {_plain(table.title)}", ""]
    if table.rows:
        rule = ["---" if column in table.text else "---:" for column in table.columns]
        body = [list(map(_plain, row)) for row in table.rows]
        lines += ["| " + " | ".join(row) + " |" for row in (list(map(_plain, table.columns)), rule, *body)]
        lines.append("")
    return "\n".join([*lines, *([_plain(table.note), ""] if table.note else [])])


def to_latex(table: Table, label: str) -> str:
    """A `table` environment in the style of booktabs, as wide as the text at most."""
    alignment = "".join(_alignment(table, k) for k in range(len(table.columns)))
    rows = [_latex_row(row) for row in table.rows]
    caption = f"{table.title}. {table.note}".strip() if table.note else table.title
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\label{{tab:{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
            r"\toprule",
            _latex_row(table.columns),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Plain text as LaTeX prints it."""
    return "".join(IN_LATEX.get(character, character) for character in text)


def _alignment(table: Table, column: int) -> str:
    """Long text wraps."""
    if table.columns[column] not in table.text:
        return "r"
    return "l" if all(len(row[column]) <= LONGEST_LINE for row in table.rows) else r"p{60mm}"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(latex_text(" ".join(cell.split())) for cell in cells) + r" \\"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return IN_MARKDOWN.sub(r"\\\1", " ".join(text.split()))
