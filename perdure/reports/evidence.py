"""What a run's scored rows and texts show: changes with their intervals, and those of all figures.

A run keeps the rows of each cell of its score matrix and the loss of each general text. They are
read when a view first asks. Where a run has none (an older one), or they do not make up the score
that is recorded, intervals are those of two test sets drawn apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.recipe.scoring import MAX_DROP, MAX_LOSS_RISE
from perdure.reports.caps import MOST_CELLS
from perdure.reports.facts import TaskFacts
from perdure.run.item_files import groups_of
from perdure.scoring.change import Change, of_items, pooled_values, unknown, unpaired
from perdure.scoring.intervals import Array, group_numbers
from perdure.scoring.matrix import ScoreMatrix
from perdure.scoring.resampling import Column, Drawn, Interval, Resampled, resample

Items = Sequence[Mapping[str, Any]]
DRAWS = 8_000
EVERY = (*ScoreMatrix.FIGURES, ScoreMatrix.BY_SAMPLE)
OF_ALL_CELLS = ("forgetting", "average_incremental_accuracy")
"""Figures that rest on more than a few cells of each task."""
SAME = 1e-6
"""How far the mean of the rows may be from the recorded score, as a share of it."""


@dataclass(frozen=True)
class Margins:
    """Changes for the worse that are allowed: of a score, and of a loss in nats a token."""

    max_drop: float = MAX_DROP
    max_loss_rise: float = MAX_LOSS_RISE

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Margins:
        """Those of a recorded recipe; the defaults where it is older than they are, or damaged."""
        found = recipe.get("scoring")
        scoring = found if isinstance(found, Mapping) else {}

        def value(key: str, default: float) -> float:
            return float(given) if isinstance(given := scoring.get(key), int | float) else default

        return cls(value("max_drop", MAX_DROP), value("max_loss_rise", MAX_LOSS_RISE))


@dataclass(frozen=True)
class Texts:
    """General texts by id, in one order: loss in nats a token, and tokens, each (texts,)."""

    ids: tuple[str, ...]
    loss: Array
    tokens: Array


@dataclass(frozen=True)
class Rows:
    """A task's rows in one order: scores, or losses with tokens, (cells, rows)."""

    at: tuple[int, ...]
    """After how many tasks each of the cells was scored."""
    values: Array
    tokens: Array | None
    groups: NDArray[np.int_] | None
    """(rows,), which belong together; None: each is its own."""
    key: int
    """Of these rows: the same in every run that was scored on them."""


class Evidence:
    """See the module.

    Args:
        tasks: of the matrix, in its order.
        items: gives the rows of a cell: of (tasks learned, task).
        general: perplexity on general text by `after`; nan where it was not measured.
        general_items: gives the texts measured after so many tasks; of (tasks learned, task) the
            items of a task of lm-eval's.
        name: tells this run from all others.
    """

    def __init__(
        self,
        tasks: Sequence[TaskFacts],
        matrix: ScoreMatrix,
        items: Callable[[int, str], Items],
        general: Sequence[float],
        general_items: Callable[..., Items],
        margins: Margins,
        name: str,
    ) -> None:
        self.tasks, self.matrix, self.general = tuple(tasks), matrix, tuple(general)
        self.margins, self._name = margins, name
        self._items, self._general_items = items, general_items
        self._rows: dict[str, Rows | None] = {}
        self._texts: dict[int, Texts | None] = {}
        self._changes: dict[tuple[str, int, int], Change | None] = {}
        self._scores = matrix.array()
        self.done = int(max(np.flatnonzero(~np.isnan(self._scores).all(axis=1)), default=0))
        self.large = int((~np.isnan(self._scores)).sum()) > MOST_CELLS

    def rows(self, after: int, task: str) -> Items:
        """The scored rows of a cell, as the run kept them."""
        return self._items(after, task)

    @property
    def general_rows(self) -> Callable[..., Items]:
        return self._general_items

    # --- figures and cells

    @cached_property
    def _resampled(self) -> Resampled:
        wanted = [name for name in EVERY if not (self.large and name in OF_ALL_CELLS)]
        return resample(self.matrix, [self._column(t) for t in self.tasks], figures=wanted)

    def _rows_read(self, column: int) -> tuple[int, ...]:
        """After how many tasks a task's rows are read, of those that it is scored after."""
        seen = ~np.isnan(self._scores[:, column])
        if self.large:
            few = {0, column, column + 1, self.done}
            return tuple(sorted(i for i in few if seen[i]))
        return tuple(int(i) for i in np.flatnonzero(seen))

    def figure(self, name: str) -> Drawn | None:
        """A summary figure's draws; None where it is not defined or has no known spread."""
        return self._resampled.figures.get(name)

    def interval(self, name: str) -> Interval | None:
        """A summary figure's interval; None where none is known."""
        drawn = self.figure(name)
        return None if drawn is None else drawn.interval()

    def cell(self, after: int, task: str) -> Interval | None:
        """A cell's interval; None where it is missing or has no known spread."""
        if (j := self.matrix.column(task)) is None:
            return None
        low, high = self._resampled.low[after, j], self._resampled.high[after, j]
        if math.isnan(low):
            return None
        return Interval(float(self._scores[after, j]), float(low), float(high))

    def _column(self, task: TaskFacts) -> Column:
        place = self._place(task)
        at = self._rows_read(place)
        scores = self._scores[list(at), place]
        if not task.bounded:
            return Column(scores, 0, None, task.low, math.inf, at=at)
        found = self._rows_of(task)
        if found is None:
            key = _key(self._name, task.name)
            return Column(scores, task.rows, None, task.low, task.top, key, at=at)
        rows = found.values.shape[1]
        return Column(scores, rows, found.values, task.low, task.top, found.key, found.groups, at)

    def _place(self, task: TaskFacts) -> int:
        found = self.matrix.column(task.name)
        assert found is not None
        return found

    # --- changes

    def change(self, task: TaskFacts, before: int, after: int) -> Change | None:
        """The change of a task between two rows of the matrix; None where one is missing."""
        key = (task.name, before, after)  # a page asks for each in several places
        if key not in self._changes:
            self._changes[key] = self._judged(task, before, after)
        return self._changes[key]

    def _judged(self, task: TaskFacts, before: int, after: int) -> Change | None:
        scores = self._scores[:, self._place(task)]
        first, second = float(scores[before]), float(scores[after])
        if math.isnan(first + second):
            return None
        found = self._rows_of(task)
        if found is None:
            return of_scores(task, first, second, self.margins)
        if not {before, after} <= set(found.at):  # of a long stream these rows are not read
            return of_scores(task, first, second, self.margins)
        ends = [found.values[found.at.index(row)] for row in (after, before)]
        gain, groups = task.sign * (ends[0] - ends[1]), found.groups
        if found.tokens is not None:
            gain, margin = pooled_values(gain, found.tokens), self.margins.max_loss_rise
            return of_items(gain, margin, nats=True, groups=groups, draws=DRAWS)
        if not task.bounded:
            margin = self.margins.max_loss_rise * abs(first)
            return of_items(gain, margin, groups=groups, draws=DRAWS)
        span = task.top - task.low
        margin = self.margins.max_drop * span
        return of_items(gain, margin, worst=-span, best=span, groups=groups, draws=DRAWS)

    def _rows_of(self, task: TaskFacts) -> Rows | None:
        """A task's rows; None where they are not all there."""
        if task.name not in self._rows:
            self._rows[task.name] = self._read_rows(task)
        return self._rows[task.name]

    def _read_rows(self, task: TaskFacts) -> Rows | None:
        place = self._place(task)
        read, scores = self._rows_read(place), self._scores[:, place]
        cells = {after: by_id(self._items(after, task.name)) for after in read}
        ids = tuple(next(iter(cells.values()), {}))
        if not ids or any(set(rows) != set(ids) for rows in cells.values()):
            return None
        every = [row for rows in cells.values() for row in rows.values()]
        lossy = not task.bounded and all("loss" in row and "tokens" in row for row in every)
        of_row = "loss" if lossy else "score"
        values = np.array([[rows[i][of_row] for i in ids] for rows in cells.values()], np.float64)
        rows = next(iter(cells.values()))
        tokens = np.array([rows[i]["tokens"] for i in ids], np.float64) if lossy else None
        groups = groups_of([rows[i] for i in ids])
        key = _key(task.name, *ids, *(() if groups is None else map(str, groups)))
        if lossy:
            assert tokens is not None
            means = np.exp((values * tokens).sum(1) / tokens.sum())
        else:
            means = values.mean(1)
        if not np.allclose(means, scores[list(read)], rtol=SAME, atol=SAME):
            return None
        return Rows(read, values, tokens, groups, key)

    def harness_change(
        self, task: TaskFacts, before: tuple[int, float], after: tuple[int, float]
    ) -> Change:
        """The change of a task of lm-eval's; paired by item where a run kept its items.

        Args: before, after: after how many tasks it was scored, and the score.
        """
        sides = [by_id(self._general_items(number, task.name)) for number, _ in (before, after)]
        ids = list(sides[0])
        if not ids or sides[0].keys() != sides[1].keys() or not task.higher_is_better:
            return of_scores(task, before[1], after[1], self.margins)
        first, second = (np.array([rows[i]["score"] for i in ids], np.float64) for rows in sides)
        means = np.array([first.mean(), second.mean()])
        if not np.allclose(means, [before[1], after[1]], rtol=SAME, atol=SAME):
            return of_scores(task, before[1], after[1], self.margins)
        rows = [sides[0][i] for i in ids]
        alike = group_numbers([r.get("group") for r in rows], [r.get("prompt") for r in rows])
        margin = self.margins.max_drop
        return of_items(second - first, margin, worst=-1, best=1, groups=alike, draws=DRAWS)

    # --- general text

    def texts(self, after: int) -> Texts | None:
        """The general texts measured after so many tasks; None where a run kept none."""
        if after not in self._texts:
            rows = by_id(self._general_items(after))
            found = None
            if rows:
                loss = np.array([row["loss"] for row in rows.values()], np.float64)
                tokens = np.array([row["tokens"] for row in rows.values()], np.float64)
                score = self.general[after] if after < len(self.general) else math.nan
                mean = float((loss * tokens).sum() / tokens.sum())
                if score > 0 and abs(mean - math.log(score)) <= SAME * max(1.0, abs(mean)):
                    found = Texts(tuple(rows), loss, tokens)
            self._texts[after] = found
        return self._texts[after]

    def general_gain(self, before: int, after: int) -> tuple[tuple[str, ...], Array] | None:
        """Ids of the texts, and each one's fall of the loss, (texts,), as part of the mean over
        tokens; None where the texts are not known or are not the same."""
        first, second = self.texts(before), self.texts(after)
        if first is None or second is None or first.ids != second.ids:
            return None
        if not np.array_equal(first.tokens, second.tokens):
            return None
        return first.ids, pooled_values(first.loss - second.loss, first.tokens)

    @cached_property
    def general_change(self) -> Change | None:
        """The change on general text from the base model to the newest measurement, in nats; None
        where one of them is missing."""
        measured = [i for i, value in enumerate(self.general) if not math.isnan(value)]
        if not measured or measured[0] != 0 or measured[-1] == 0:
            return None
        margin, last = self.margins.max_loss_rise, measured[-1]
        found = self.general_gain(0, last)
        if found is None:
            first, second = self.general[0], self.general[last]
            mean = math.log(first) - math.log(second) if min(first, second) > 0 else math.nan
            return unknown(mean, margin, nats=True)
        return of_items(found[1], margin, nats=True, draws=DRAWS)

    @property
    def general_last(self) -> int:
        """After how many tasks general text was measured last; 0 if never or at the start only."""
        return max((i for i, v in enumerate(self.general) if not math.isnan(v)), default=0)


def of_scores(task: TaskFacts, before: float, after: float, margins: Margins) -> Change:
    """A change of which the two scores are all that is known."""
    if task.bounded:
        span = task.top - task.low
        margin = margins.max_drop * span
        return unpaired(task.share(before), task.share(after), task.rows, margin, span)
    if min(before, after) > 0:
        nats = task.sign * (math.log(after) - math.log(before))
        return unknown(nats, margins.max_loss_rise, task.rows, nats=True)
    margin = margins.max_loss_rise * max(abs(before), abs(after))
    return unknown(task.sign * (after - before), margin, task.rows)


def general_difference(first: Evidence, second: Evidence) -> Interval | None:
    """By how much more the first run gained on general text, in nats, each against its own base.

    Paired where both measured the same texts, else as of two samples; None where not known.
    """
    ours, theirs = (e.general_gain(0, e.general_last) for e in (first, second))
    if ours is None or theirs is None or not (first.general_last and second.general_last):
        return None
    if ours[0] == theirs[0]:
        found = of_items(ours[1] - theirs[1], first.margins.max_loss_rise, draws=DRAWS)
        return Interval(found.mean, found.low, found.high)
    a, b = first.general_change, second.general_change
    assert a is not None
    assert b is not None
    mean = a.mean - b.mean
    low = mean - math.hypot(a.mean - a.low, b.high - b.mean)
    return Interval(mean, low, mean + math.hypot(a.high - a.mean, b.mean - b.low))


def by_id(rows: Items) -> dict[str, Mapping[str, Any]]:
    return {str(row["id"]): row for row in rows if "id" in row}


def _key(*parts: str) -> int:
    """A number for a set of rows: the same rows of a task have the same one in every run."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:6], "big")
