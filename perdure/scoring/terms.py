"""What a figure of the score matrix is made of: terms, and the cells that they need."""

from __future__ import annotations

from dataclasses import dataclass


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
