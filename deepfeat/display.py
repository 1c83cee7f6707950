"""What notebooks show of a store, a result or a ledger: a headline and tables in which names are never markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from deepfeat.markup import Markup, element, join, name

#: Rows of a table that are shown at most.
N_ROWS = 20


def describe(headline: str, *parts: Markup) -> str:
    """A headline and what follows it.

    Parameters
    ----------
    headline : str
    *parts : Markup

    Returns
    -------
    str
        HTML.
    """
    return str(element("div", element("p", name(headline)), *parts))


def draw_table(frame: pd.DataFrame, *, index: bool = True) -> Markup:
    """The first rows of a table.

    Parameters
    ----------
    frame : pandas.DataFrame
    index : bool
        Whether the index stands before each row.

    Returns
    -------
    Markup
    """
    shown = frame.head(N_ROWS).reset_index() if index else frame.head(N_ROWS)
    rows = [element("tr", *(element("td", _cell(value)) for value in row)) for row in shown.itertuples(index=False)]
    head = element("tr", *(element("th", name(title)) for title in shown.columns))
    table = element("table", element("thead", head), element("tbody", *rows))
    left = len(frame) - len(shown)
    return join(table, element("p", f"… and {left} more") if left else None)


def draw_notes(notes: Sequence[str]) -> Markup:
    """What a reader should know, as a list."""
    return element("ul", *(element("li", name(note)) for note in notes)) if notes else join()


def _cell(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else name(value)
