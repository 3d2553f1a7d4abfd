"""What a figure of the score matrix is made of: terms, and the cells that they need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perdure.errors import PerdureError


class ScoreMissing(PerdureError):
    """A score that a figure needs was never recorded, or the figure is not defined."""


@dataclass(frozen=True)
class Term:
    """One task's part of a figure: the highest of its scores in `rows`, minus that in row `less`.

    Every summary figure is the mean of such terms, each counted `weight` times, so that intervals
    need no second formula.
    """

    task: int
    """Column of the task, from 0."""
    rows: tuple[int, ...]
    less: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Cell:
    """A place in the matrix: the score on a task after so many were learned."""

    task: str
    after: int


@dataclass(frozen=True)
class Cells:
    """What a figure rests on: the cells that are in it, and those that were never scored."""

    used: tuple[Cell, ...]
    missing: tuple[Cell, ...]


def rows_of_tasks(terms: Iterable[Term], all_below: int = 0) -> list[tuple[int, list[int]]]:
    """Of each task that these terms count, in their order, the rows that they need, ascending.

    Args: all_below: rows from 1 to before this one are needed as well.
    """
    found: dict[int, set[int]] = {}
    for term in terms:
        rows = found.setdefault(term.task, set(range(1, all_below)))
        rows.update(term.rows)
        if term.less is not None:
            rows.add(term.less)
    return [(task, sorted(rows)) for task, rows in found.items()]


def mean_of(name: str, values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighed mean of some terms' values.

    Args: name: of the figure.

    Raises:
        ScoreMissing: there is no term.
    """
    if not values:
        raise ScoreMissing(f"{name} is not defined here: no task that it averages over")
    if len(set(weights)) == 1:
        return math.fsum(values) / len(values)
    weighed = (value * weight for value, weight in zip(values, weights, strict=True))
    return math.fsum(weighed) / math.fsum(weights)


def next_alike(tested_on: Sequence[str], learned: Sequence[bool]) -> list[int | None]:
    """Of each task the column of the next one that is learned and scored on the same test rows.

    Args: tested_on: of each task whose test rows it is scored on.
    """
    found: list[int | None] = [None] * len(tested_on)
    later: dict[str, int] = {}
    for k in reversed(range(len(tested_on))):
        found[k] = later.get(tested_on[k])
        if learned[k]:
            later[tested_on[k]] = k
    return found
