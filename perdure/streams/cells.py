"""What a recipe's `columns` and `label_names` say of a record's cells, and their texts.

columns: {text: review}                             the data's column "review"
columns: {text: "{title}: {review}"}                several columns in one text
label_names: {0: bad, 1: good}                      a value, or the number of a hub data set's class
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.recipe.columns import columns_in, parse_template


class CellError(Exception):
    """What is wrong with a cell, and the remedy."""

    def __init__(self, what: str, *remedy: str) -> None:
        self.what, self.remedy = what, remedy


class EmptyCell(CellError):
    """There is nothing in it."""


class ClassName(str):
    """The name of a data set's class, which also knows its number and the other classes."""

    number: int
    classes: tuple[str, ...]

    def __new__(cls, classes: tuple[str, ...], number: int) -> ClassName:
        found = super().__new__(cls, classes[number])
        found.number, found.classes = number, classes
        return found

    def __getnewargs__(self) -> Any:
        return self.classes, self.number


def cell_text(values: Mapping[str, Any], source: str) -> str:
    """Return the text that an entry of `columns` makes of a record.

    Of several columns some may be empty, as a question's details often are, but not all.

    Raises: CellError: nothing in it, or no text.
    """
    names = columns_in(source)
    if names == (source,):
        return as_text(values[source], source)
    if len(names) == 1:
        as_text(values[names[0]], names[0])
    if all(_is_empty(values[name]) for name in names):
        listed = " and ".join(f'"{name}"' for name in names)
        raise EmptyCell(f"{listed} are empty", "fill one in, or take the row out")
    parts = [
        before + ("" if name is None or _is_empty(values[name]) else as_text(values[name], name))
        for before, name, _, _ in parse_template(source)
    ]
    return "".join(parts)


def as_text(value: Any, column: str) -> str:
    """Return a cell as text that is not empty.

    Raises: CellError: it is empty, or no text.
    """
    if _is_empty(value):
        raise EmptyCell(f'"{column}" is empty', "fill it in, or take the row out")
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        value = str(int(value))  # integers with gaps are floats in many files
    elif isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str):
        raise CellError(
            f'"{column}" is a {type(value).__name__}, not text',
            "lists of messages are read with format: chat",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CellError(f'"{column}" has half a character (a lone surrogate)') from None
    return str(value)


def answer_of(value: Any, label: str, names: Mapping[str, str]) -> str | None:
    """Return what `label_names` calls a label; None if it does not know it.

    Its keys are names of classes where all of them are one, else numbers first: classes may be
    called "1" to "5" and be numbered from 0.

    Args: value: the cell; label: its text.
    """
    if isinstance(value, ClassName) and not names.keys() <= set(value.classes):
        return names.get(str(value.number), names.get(label))
    return names.get(label)


def one_spaced(text: str) -> str:
    """The text with each stretch of white space as one space: texts alike in this are the same."""
    return " ".join(text.split())


def _is_empty(value: Any) -> bool:
    if isinstance(value, float):
        return value != value  # not a number: how many programs write an empty cell
    return value is None or (isinstance(value, str) and not value.strip())
