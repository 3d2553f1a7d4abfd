"""The small language of a recipe's `columns`: one column, or a text with columns in braces.

columns: {text: review}                   the data's column "review"
columns: {text: "{title}: {review}"}      several columns in one text
"""

from __future__ import annotations

import string
from functools import lru_cache


@lru_cache
def columns_in(source: str) -> tuple[str, ...]:
    """Return the data's columns that an entry of `columns` reads: itself, or those in braces.

    Raises: ValueError: braces that do not pair.
    """
    if "{" not in source:
        return (source,)
    return tuple(
        dict.fromkeys(name for _, name, _, _ in parse_template(source) if name is not None)
    )


def check_cell(source: str, one_column: bool) -> tuple[str, str] | None:
    """Return what is wrong with an entry of `columns`, and the remedy; None if nothing is."""
    if "{" not in source:
        return None
    if one_column:
        return (
            "is one column: only texts are made of several",
            "write messages: your-column",
        )
    try:
        parts = parse_template(source)
    except ValueError as error:
        return f"braces do not pair: {error}", "a brace of the text itself is written twice: {{ }}"
    if not any(name for _, name, _, _ in parts):
        return "names no column", "write the names of columns in braces: {premise} {hypothesis}"
    if any(name == "" or spec or how for _, name, spec, how in parts):
        what = "braces hold more or less than a column's name"
        return what, "write the names of columns in braces: {premise} {hypothesis}"
    return None


@lru_cache
def parse_template(source: str) -> tuple[tuple[str, str | None, str | None, str | None], ...]:
    return tuple(string.Formatter().parse(source))
