"""What of a long stream is shown: how many tasks are drawn or listed, which, and in what groups.

A thousand tasks have a million pairs of tasks. A page shows groups of neighbouring tasks and a few
single ones; `full` writes all numbers beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

MOST_CELLS = 20_000
"""Scores of a run whose rows are all read. Of more, rows are read of each task before anything was
learned, before and after it was learned itself, and at the end: of those that tables show. Figures
that rest on all cells, forgetting and the incremental average, have no interval then."""
MOST_MAPPED = 40
"""Tasks up to which a matrix is drawn in full; of more, groups of neighbouring tasks are."""
GROUPS = 20
"""Groups of which such a matrix is drawn."""
MOST_LISTED = 60
"""Rows of a table by task or by step, up to which it has them all."""
LISTED = 40
"""Rows that a longer one has."""
CURVES = 12
"""Tasks that have a chart of their own where there are more than `MOST_MAPPED`."""
NAMED = 20
"""Names in a sentence."""
FEW = 3
"""Names of what is missing, where more than `NAMED` scores are: in a table's cell."""
POINTS = 60
"""Steps of a chart over tasks up to which each is marked; of more, so many places are drawn."""


def groups(count: int, most: int = GROUPS) -> list[range]:
    """Cut 0, 1, ... `count` - 1 into at most `most` runs of neighbours of one size, but the last:
    that has what is left."""
    size = math.ceil(count / most) or 1
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def spaced(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0, 1, ... `count` - 1, evenly spaced, both ends among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def some_of(items: Sequence[T], most: int) -> list[T]:
    """The same of any items."""
    return [items[i] for i in spaced(len(items), most)]


def listed(items: Sequence[T]) -> list[T]:
    """The rows of a table: all, or of more than `MOST_LISTED` some, evenly spaced."""
    return list(items) if len(items) <= MOST_LISTED else some_of(items, LISTED)


def telling(losses: Sequence[float], most: int) -> list[int]:
    """Which tasks to show where there are too many, in their order: the first and the last ones, a
    sixth of `most` each, and of the others as many that lost most as lost least.

    Args: losses: of each task what it lost since it was learned; nan where that is not known, as of
        tasks that are still to be learned: those come last.
    """
    count = len(losses)
    if count <= most:
        return list(range(count))
    ends = max(1, most // 6)
    chosen = {*range(ends), *range(count - ends, count)}
    rest = [i for i in range(count) if i not in chosen]
    known = [i for i in rest if not math.isnan(losses[i])]
    unknown = [i for i in rest if math.isnan(losses[i])]
    free = most - len(chosen)
    chosen.update(sorted(known, key=lambda i: (-losses[i], i))[: free - free // 2])
    # Of tasks that lost alike the earliest, which had most time to be forgotten.
    best = sorted((i for i in known if i not in chosen), key=lambda i: (losses[i], i))
    return sorted({*chosen, *[*best, *unknown][: most - len(chosen)]})


def listed_words(count: int, what: str = "tasks") -> str:
    """What to say below a table that has `listed` of so many; empty where it has all."""
    return f"Shown are {LISTED} of {count:,} {what}, evenly spaced." if count > MOST_LISTED else ""


def named(names: Sequence[str], most: int = NAMED) -> list[str]:
    """The names; of more than `most` the first ones, and how many there are besides."""
    if len(names) <= most:
        return list(names)
    return [*names[:most], f"and {len(names) - most:,} more"]
