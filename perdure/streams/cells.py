"""What a recipe's `columns` and `label_names` say of a record's cells, and their texts.

columns: {text: review}                             the data's column "review"
columns: {text: "{title}: {review}"}                several columns in one text
label_names: {0: bad, 1: good}                      a value, or the number of a hub data set's class
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from perdure.errors import brief
from perdure.recipe.columns import columns_in, parse_template

NO_WIDTH = frozenset("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufe0e\ufe0f\ufeff")
"""Signs that are not seen: soft hyphen, zero-width blanks and joiners, marks of direction, etc."""


class CellError(Exception):
    """What is wrong with a cell, and the remedy."""

    def __init__(self, what: str, *remedy: str) -> None:
        self.what, self.remedy = what, remedy


class EmptyCell(CellError):
    """There is nothing in it."""


class EmptySystem(EmptyCell):
    """There is nothing in a conversation's system message, which it can do without."""


class NoLanguage(CellError):
    """Neither the row nor its task says which languages it is in."""


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
    if all(is_empty(values[name]) for name in names):
        listed = " and ".join(f'"{name}"' for name in names)
        raise EmptyCell(f"{listed} are empty", "fill one in, or take the row out")
    parts = [
        before + ("" if name is None or is_empty(values[name]) else as_text(values[name], name))
        for before, name, _, _ in parse_template(source)
    ]
    return "".join(parts)


def as_text(value: Any, column: str) -> str:
    """Return a cell as text that is not empty.

    Raises: CellError: it is empty, or no text.
    """
    if is_empty(value):
        raise EmptyCell(f'"{column}" is empty', "fill it in, or take the row out")
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        value = str(int(value))  # integers with gaps are floats in many files
    elif isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str):
        raise CellError(f'"{brief(column)}" is {_kind_of(value)}, not text', _as_text_of(value))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CellError(f'"{column}" has half a character (a lone surrogate)') from None
    return str(value)


def _kind_of(value: Any) -> str:
    if isinstance(value, bytes):
        return "bytes"
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def _as_text_of(value: Any) -> str:
    if isinstance(value, list | dict):
        return "write one text a row; lists of messages are read with format: chat"
    return "write the column as text, for example by pandas' astype(str)"


def answer_of(
    value: Any, label: str, names: Mapping[str, str], labels: Iterable[str] = ()
) -> str | None:
    """Return what `label_names` calls a label; None if it does not know it.

    Its keys are names of classes where all of them are one, else numbers first: classes may be
    called "1" to "5" and be numbered from 0. A label that is one of the task's already, or one of
    the names, need not be among the keys. Keys and labels are compared as `folded` writes them.

    Args: value: the cell; label: its text; labels: those that the task declares.
    """
    numbered = isinstance(value, ClassName) and not names.keys() <= set(value.classes)
    if numbered and (found := names.get(str(value.number))) is not None:
        return found
    if (found := names.get(label)) is not None:
        return found
    known = {one: one for one in (*labels, *names.values())}
    if label in known:
        return label
    wanted = folded(label)
    for keys in (names, known):
        for key, answer in keys.items():
            if folded(key) == wanted:
                return answer
    return None


@lru_cache(maxsize=1 << 16)
def folded(label: str) -> str:
    """A label as it is compared: in Unicode NFC, with single blanks and without what has no width.

    So "café" is one label, whether its é is one sign or two, and so is one with a byte order mark
    or a zero-width space in it.
    """
    if label.isascii():
        return one_spaced(label)
    seen = "".join(c for c in label if c not in NO_WIDTH)
    return one_spaced(unicodedata.normalize("NFC", seen))


def one_spaced(text: str) -> str:
    """The text with each stretch of white space as one space: texts alike in this are the same."""
    return " ".join(text.split())


def is_empty(value: Any) -> bool:
    """Whether there is nothing in a cell; 0 and false are something."""
    if isinstance(value, float):
        return value != value  # not a number: how many programs write an empty cell
    return value is None or (isinstance(value, str) and not value.strip())
