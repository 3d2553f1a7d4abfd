"""Intervals of a score matrix: of its cells, and of the figures that are derived from it.

The same test rows are scored in every row of a task's column, so they are resampled together: one
draw of weights for a task's rows holds for all of its cells, and what two cells have in common
cancels in their difference. Rows of different tasks are drawn apart. Two runs that were scored on
the same rows get the same weights too, so that their difference is paired.

The weights are those of `intervals.bootstrap_bounds`, with its one imagined row more, as bad as a
row can be for the lower end and as good for the upper. Rows that belong together have one weight,
that of their group, and the imagined group is as large as the largest. For a task whose rows were
not kept, each cell is drawn from a normal distribution with the standard error that it can have at
most.

**Forgetting is a maximum** over several scores of a task, and a maximum of noisy scores is larger
in the mean than that of the true ones. The figure stays the paper's; its interval is for the
maximum of the *true* scores. Upper end: the quantile of the resampled figure, in which the maximum
is taken anew (whichever row truly is the highest, its own draws are never above that). Lower end:
a task's highest score counts as too high by as much as any of the rows that may be the highest
could be, min over those of (draw - score), so the choice among them costs width. Rows that are
clearly below the highest one are not among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perdure.scoring.change import ALPHA
from perdure.scoring.intervals import Array, bootstrap_bounds, group_sums, standard_error
from perdure.scoring.matrix import ScoreMatrix
from perdure.scoring.terms import Term

DRAWS = 4_000
CLEARLY = 0.001
"""A row is no candidate for the highest if a bound at this level puts it below the highest seen."""
_BLOCK = 4_000_000  # random numbers at once: 32 MB


@dataclass(frozen=True)
class Column:
    """One task's scores after 0, 1, ... T tasks, nan where missing; bounded by `low` and `high`.

    `items` are the rows' scores, (T+1, rows), nan where a cell is missing; None: only their number
    is known. `groups`, (rows,), tells which of them belong together, as `group_numbers` gives them;
    None: each is its own. Columns with the same `key` were scored on the same rows, all others on
    rows of their own.
    """

    scores: Array
    rows: int
    items: Array | None = None
    low: float = 0.0
    high: float = 1.0
    key: int = 0
    groups: NDArray[np.int_] | None = None
    at: tuple[int, ...] | None = None
    """Of which rows of the matrix `scores` and `items` are; None: of all of them."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Drawn:
    """A figure, and resampled values of it, (draws,), for its lower and its upper end."""

    value: float
    lower: Array
    upper: Array

    def interval(self, alpha: float = ALPHA) -> Interval:
        """Both ends, each wrong with probability `alpha`; the order statistics round outwards."""
        rank = max(1, math.floor(alpha * (len(self.lower) + 1)))
        low = np.partition(self.lower, rank - 1)[rank - 1]
        high = np.partition(self.upper, len(self.upper) - rank)[len(self.upper) - rank]
        return Interval(self.value, float(low), float(high))

    def minus(self, other: Drawn) -> Drawn:
        """The difference of two runs' figures; their shared rows have the same weights."""
        return Drawn(self.value - other.value, self.lower - other.upper, self.upper - other.lower)

    @staticmethod
    def mean(parts: Sequence[Drawn], weights: Sequence[float] | None = None) -> Drawn:
        """The mean of several figures, draw by draw: rows that they share have the same weights.

        Args: weights: how often each figure counts; None: all alike.
        """
        counts = [1.0] * len(parts) if weights is None else list(weights)
        total, pairs = math.fsum(counts), list(zip(parts, counts, strict=True))
        return Drawn(
            math.fsum(p.value * w for p, w in pairs) / total,
            np.sum([p.lower * w for p, w in pairs], axis=0) / total,
            np.sum([p.upper * w for p, w in pairs], axis=0) / total,
        )


@dataclass(frozen=True)
class Resampled:
    """Intervals of one run: of each cell, (T+1, T), nan where unknown; figures by name."""

    low: Array
    high: Array
    figures: Mapping[str, Drawn]


def resample(
    matrix: ScoreMatrix,
    columns: Sequence[Column],
    *,
    alpha: float = ALPHA,
    draws: int = DRAWS,
    figures: Sequence[str] = (*ScoreMatrix.FIGURES, ScoreMatrix.BY_SAMPLE),
) -> Resampled:
    """Resample all cells and figures of a matrix.

    Args:
        columns: of its tasks, in their order. A figure is left out where it is not defined, or one
            of its cells has no known spread (no rows, or a metric without limits).
        alpha: of each end of a cell's interval.
        figures: those that are wanted; their terms ask for no row that a column has not.
    """
    shape = (len(matrix.tasks) + 1, len(matrix.tasks))
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    sums = {name: _Sum(_terms(matrix, name), draws) for name in figures}
    for j, column in enumerate(columns):
        if (drawn := _draw(column, draws)) is None:
            continue
        rows = np.arange(shape[0]) if column.at is None else np.array(column.at)
        there = ~np.isnan(column.scores)
        low[rows[there], j], high[rows[there], j] = _ends(column, *drawn, there, alpha)
        place = {int(row): i for i, row in enumerate(rows)}
        for sum_ in sums.values():
            for term in sum_.of_task.get(j, ()):
                mine = replace(
                    term,
                    rows=tuple(place[row] for row in term.rows),
                    less=None if term.less is None else place[term.less],
                )
                sum_.add(_part(mine, column, *drawn), term.weight)
    found = {name: sum_.mean() for name, sum_ in sums.items()}
    return Resampled(low, high, {name: one for name, one in found.items() if one is not None})


class _Sum:
    """The mean of a figure's terms, draw by draw, added up one after another: those of a matrix of
    140 tasks would take a gigabyte side by side."""

    def __init__(self, terms: Sequence[Term], draws: int) -> None:
        self.of_task: dict[int, list[Term]] = {}
        for term in terms:
            self.of_task.setdefault(term.task, []).append(term)
        self._values: list[float] = []
        self._weights: list[float] = []
        self._wanted = len(terms)
        self._lower, self._upper = np.zeros(draws), np.zeros(draws)

    def add(self, part: Drawn, weight: float) -> None:
        self._values.append(part.value * weight)
        self._weights.append(weight)
        self._lower += part.lower * weight
        self._upper += part.upper * weight

    def mean(self) -> Drawn | None:
        """None where there is no term, or one of them was not added."""
        if not self._wanted or len(self._weights) < self._wanted:
            return None
        total = math.fsum(self._weights)
        return Drawn(math.fsum(self._values) / total, self._lower / total, self._upper / total)


def _ends(
    column: Column, means: Array, extra: Array, there: NDArray[np.bool_], alpha: float
) -> tuple[Array, Array]:
    """Both ends of the intervals of the cells that are `there`, as `Drawn.interval` has them."""
    rank = max(1, math.floor(alpha * (len(extra) + 1)))
    below, above = means[there] + extra * column.low, means[there] + extra * column.high
    low = np.partition(below, rank - 1, axis=1)[:, rank - 1]
    high = np.partition(above, len(extra) - rank, axis=1)[:, len(extra) - rank]
    return np.maximum(low, column.low), np.minimum(high, column.high)


def _terms(matrix: ScoreMatrix, name: str) -> list[Term]:
    """A figure's terms, none where one of its cells is missing."""
    scores, terms = matrix.array(), matrix.terms(name)
    cells = [
        (row, term.task)
        for term in terms
        for row in (*term.rows, *(() if term.less is None else (term.less,)))
    ]
    whole = all(term.rows for term in terms) and not any(math.isnan(scores[c]) for c in cells)
    return terms if whole else []


def _draw(column: Column, draws: int) -> tuple[Array, Array] | None:
    """Resampled means of each cell, (T+1, draws), and the imagined row's weight, (draws,)."""
    rng = np.random.default_rng([column.key, 1])
    if column.items is not None:
        sums, sizes = group_sums(column.items, column.groups)
        cells, n = sums.shape
        largest = sizes.max()
        means, extra = np.empty((cells, draws)), np.empty(draws)
        step = max(1, _BLOCK // (n + 1))
        for at in range(0, draws, step):
            weights = rng.standard_exponential((min(step, draws - at), n + 1))
            # A draw's mean is a ratio: of all scores by weight, and of all rows by weight.
            weights /= weights @ np.append(sizes, largest)[:, None]
            means[:, at : at + step] = sums @ weights[:, :n].T
            extra[at : at + step] = weights[:, n] * largest
        return means, extra
    span = column.high - column.low
    if column.rows <= 0 or not math.isfinite(span):
        return None
    shares = np.clip((column.scores - column.low) / span, 0.0, 1.0)
    errors = span * standard_error(shares, column.rows)
    normal = rng.standard_normal((len(column.scores), draws))
    return column.scores[:, None] + errors[:, None] * normal, np.zeros(draws)


def _part(term: Term, column: Column, means: Array, extra: Array) -> Drawn:
    """A task's part of a figure."""
    scores, best = column.scores, max(term.rows, key=lambda row: column.scores[row])
    less = 0.0 if term.less is None else scores[term.less]
    less_drawn = 0.0 if term.less is None else means[term.less]
    span = column.high - column.low
    worst, good = (column.low, column.high) if term.less is None else (-span, span)
    rows = _candidates(term.rows, best, means, extra, span)
    highest = means[list(term.rows)].max(axis=0)
    off = np.stack([means[row] - scores[row] for row in rows]).min(axis=0)
    value = float(scores[best] - less)
    # Of a single row both are the draws themselves: scores[best] + off is means[best].
    return Drawn(
        value,
        scores[best] + off - less_drawn + extra * worst,
        highest - less_drawn + extra * good,
    )


def _candidates(
    rows: Sequence[int], best: int, means: Array, extra: Array, span: float
) -> list[int]:
    """The rows whose true score may be the highest."""

    def reaches(row: int) -> bool:
        ahead = means[row] - means[best] + extra * span
        return bool(np.quantile(ahead, 1 - CLEARLY) >= 0)

    return [row for row in rows if row == best or reaches(row)]


def mean_interval(
    scores: Sequence[float],
    low: float,
    high: float,
    groups: NDArray[np.int_] | None = None,
    alpha: float = ALPHA,
) -> Interval:
    """The mean score of some rows with its interval by `intervals.bootstrap_bounds`.

    Args:
        low, high: what one row's score may be.
        groups: (rows,), which rows belong together.
    """
    values = np.asarray(scores, np.float64)
    ends = bootstrap_bounds(values, alpha, low, high, groups=groups, draws=DRAWS)
    return Interval(float(values.mean()), *(min(max(float(e), low), high) for e in ends))


def normal_interval(values: Sequence[float], alpha: float = ALPHA) -> Interval:
    """Mean of some values with Student's interval, n - 1 degrees of freedom.

    `mean -+ t(1 - alpha; n - 1) * s / sqrt(n)`, s with n - 1 below. Of one value no interval is
    known: its ends are nan.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    error = math.sqrt(_variance(values) / len(values))
    return _student(mean, error, len(values) - 1, alpha)


def difference_over_seeds(
    first: Mapping[str, float], second: Mapping[str, float], alpha: float = ALPHA
) -> Interval | None:
    """Mean of `first` less that of `second`, both by seed, with Student's interval.

    Where both have the same seeds, they are paired: the interval is that of the differences. Else
    it is Welch's (1947), of two samples. None where one has no spread that can be told (one seed).
    """
    if min(len(first), len(second)) < 2:
        return None
    if set(first) == set(second):
        return normal_interval([first[seed] - second[seed] for seed in first], alpha)
    ours, theirs = list(first.values()), list(second.values())
    mean = math.fsum(ours) / len(ours) - math.fsum(theirs) / len(theirs)
    a, b = (_variance(values) / len(values) for values in (ours, theirs))
    if a + b == 0.0:
        return Interval(mean, mean, mean)
    freedom = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
    return _student(mean, math.sqrt(a + b), freedom, alpha)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _student(mean: float, error: float, freedom: float, alpha: float) -> Interval:
    from scipy import stats

    reach = float(stats.t.ppf(1 - alpha, freedom)) * error
    return Interval(mean, mean - reach, mean + reach)
