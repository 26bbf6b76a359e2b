"""Tables for a terminal or a pipe, all in one style."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PIPED_WIDTH = 160  # columns where the output is no terminal


def open_console() -> Console:
    """Where tables are printed."""
    return Console(highlight=False, width=None if Console().is_terminal else PIPED_WIDTH)


def make_table(title: str, columns: Sequence[str], text: Collection[str], rows: Sequence[Sequence[str]]) -> Table:
    """Numbers stand right and never wrap; columns of `text` stand left and wrap between words where space is short."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for k, column in enumerate(columns):
        if column in text:
            words = " ".join([column, *(row[k] for row in rows)]).split()
            table.add_column(column, min_width=max(map(len, words)))
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
