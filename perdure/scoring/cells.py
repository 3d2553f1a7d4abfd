"""Where a score matrix keeps its cells: scores of tasks by task and number of tasks learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perdure.errors import UsageError
from perdure.scoring.terms import ScoreMissing, next_alike

_NAN_REMEDY = "a score is missing (not recorded) or a number"


class TaskScores:
    """Scores of T tasks after 0, 1, ... T tasks were learned; see `perdure.scoring.matrix`."""

    def __init__(
        self,
        tasks: Sequence[str],
        higher_is_better: Sequence[bool] | None = None,
        in_shares: Sequence[bool] | None = None,
        learned: Sequence[bool] | None = None,
        rows: Sequence[int] | None = None,
        tested_on: Sequence[str] | None = None,
    ) -> None:
        if higher_is_better is None:
            higher_is_better = [True] * len(tasks)
        if len(set(tasks)) != len(tasks) or len(higher_is_better) != len(tasks):
            raise UsageError(
                f"score matrix: {len(set(tasks))} different names among {len(tasks)} tasks "
                f"and {len(higher_is_better)} values of higher_is_better",
                "give each task its own name and one value",
            )
        self.tasks = tuple(tasks)
        self.higher_is_better = tuple(bool(flag) for flag in higher_is_better)
        shares = [True] * len(tasks) if in_shares is None else in_shares
        self.in_shares = tuple(bool(flag) for flag in shares)
        self.learned = tuple([True] * len(tasks) if learned is None else map(bool, learned))
        self.rows = tuple([0] * len(tasks) if rows is None else map(int, rows))
        self.tested_on = tuple(tasks if tested_on is None else tested_on)
        self._scores = np.full((len(self.tasks) + 1, len(self.tasks)), np.nan)
        self._column = {task: j for j, task in enumerate(self.tasks)}

    def record(self, after: int, task: str, score: float) -> None:
        """Set R[after, task]; a later record of the same cell replaces it.

        Raises:
            UsageError: no such row or task, or the score is NaN.
        """
        row, column = self._cell(after, task)
        if math.isnan(score):
            raise UsageError(f"score of task {task!r} after {after} tasks is NaN", _NAN_REMEDY)
        self._scores[row, column] = score

    def value(self, after: int, task: str) -> float:
        """Return R[after, task].

        Raises:
            ScoreMissing: the cell was never recorded.
        """
        row, column = self._cell(after, task)
        return self._at(row, column)

    def array(self) -> NDArray[np.float64]:
        """Return a copy of R, (T+1, T), with NaN where a cell is missing."""
        return self._scores.copy()

    def column(self, task: str) -> int | None:
        """Where a task stands among `tasks`, from 0; None where it does not."""
        return self._column.get(task)

    def next_on_same_rows(self, column: int) -> int | None:
        """The column of the next task that is learned and scored on the same test rows."""
        return self._next[column]

    @cached_property
    def _next(self) -> list[int | None]:
        return next_alike(self.tested_on, self.learned)

    def _row(self, after: int) -> int:
        if not 0 <= after <= len(self.tasks):
            raise UsageError(
                f"score matrix: no row {after}", f"rows are 0 (base model) to {len(self.tasks)}"
            )
        return after

    def _cell(self, after: int, task: str) -> tuple[int, int]:
        if task not in self._column:
            raise UsageError(f"score matrix: no task {task!r}", f"tasks: {', '.join(self.tasks)}")
        return self._row(after), self._column[task]

    def _at(self, row: int, column: int) -> float:
        score = float(self._scores[row, column])
        if math.isnan(score):
            raise ScoreMissing(
                f"task {self.tasks[column]!r} was never scored after {row} learned tasks",
                "score it with `perdure eval RUN`",
            )
        return score
