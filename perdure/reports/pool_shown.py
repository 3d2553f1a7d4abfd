"""What of a table of who answered a page and a terminal have room for."""

from __future__ import annotations

from dataclasses import replace

from perdure.reports.caps import MOST_LISTED, listed, listed_words
from perdure.reports.pools import Confusion

OTHERS = "others"
"""A column of what adapters answered that have none of their own."""


def confusion_cut(found: Confusion) -> str:
    """Which requests and adapters the table of who answered has; empty where it has all."""
    if len(found.rows) <= MOST_LISTED and len(found.columns) <= MOST_LISTED:
        return ""
    rows = listed_words(len(found.rows), "rows")
    return f"{rows} Answers of adapters without a column are in the last one, {OTHERS}.".strip()


def shown_of(found: Confusion) -> Confusion:
    """Of many tasks some, and of many adapters the right ones of these tasks; the others' answers
    are counted together."""
    rows = listed(found.rows)
    if len(rows) == len(found.rows) and len(found.columns) <= MOST_LISTED:
        return found
    last = len(found.columns) - 1  # requests that fit no group
    kept = sorted({*(row.right for row in rows if row.right is not None), last})
    place = {column: i for i, column in enumerate(kept)}
    others = [i for i in range(len(found.columns)) if i not in place]
    columns = [found.columns[i] for i in kept]
    made = [
        replace(
            row,
            right=None if row.right is None else place[row.right],
            counts=(*(row.counts[i] for i in kept), sum(row.counts[i] for i in others)),
        )
        for row in rows
    ]
    return replace(found, columns=(*columns, OTHERS), rows=tuple(made))
