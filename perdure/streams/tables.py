"""What every source of data becomes, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from perdure.errors import DataError, PerdureError, brief
from perdure.recipe.mistakes import near


class Record(NamedTuple):
    """One row as it stands in its source; `place` is "file:line" or "source: row N"."""

    place: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Records of one source, in its order; `columns` are all that any record has."""

    name: str
    columns: tuple[str, ...]
    records: list[Record]


class Mistakes:
    """Collects what is wrong, each mistake once, by its source."""

    def __init__(self) -> None:
        self._all: dict[str, dict[str, PerdureError]] = {}

    def add(self, source: str, what: str, remedy: str | Sequence[str] = ()) -> None:
        """Note one mistake; `what` begins with the place, `source` only groups."""
        found = self._all.setdefault(source, {})
        found.setdefault(what, DataError(what, remedy, source))

    def __len__(self) -> int:
        return sum(map(len, self._all.values()))

    def listed(self) -> list[PerdureError]:
        """Return all errors in the order of their sources."""
        return [error for found in self._all.values() for error in found.values()]


def arrow_cells(name: str, column: str, values: Any, mistakes: Mistakes) -> list[Any]:
    """The cells of a Parquet file's column.

    Of the first that Python has no value for, such as the year 33,000 or bytes that are no text, a
    mistake is noted.
    """
    with suppress(ValueError, OverflowError):
        return list(values.to_pylist())
    found: list[Any] = []
    for number, value in enumerate(values, start=1):
        try:
            found.append(value.as_py())
        except (ValueError, OverflowError) as error:
            what = f'{name}: row {number}: "{brief(column)}" cannot be read: {brief(error)}'
            mistakes.add(name, what, "mend the cell, or leave the column out")
            return [None] * len(values)
    return found


def choices(name: str, known: Iterable[object], what: str) -> list[str]:
    """Return remedy lines: the one probably meant, if any is near, then those there are."""
    names = [brief(k) for k in known]
    return [*filter(None, [near(name, names)]), f"{what}: {listed(names)}"]


def listed(names: Iterable[object]) -> str:
    """Return the first names of a list that may be long, and how many there are."""
    every = [brief(name) for name in names]
    return ", ".join(every[:20]) + (f", ... ({len(every)} in all)" if len(every) > 20 else "")


def shown(path: Path) -> str:
    """Return the path as people know it: relative where it lies below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
