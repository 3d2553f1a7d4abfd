"""Which tasks of a long stream are shown one by one: the first, the last, the worst, the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from perdure.reports.caps import CURVES, LISTED, MOST_LISTED, MOST_MAPPED, telling
from perdure.reports.data import RunView, TaskFacts, task_order


def tasks(runs: Sequence[RunView], most: int, up_to: int) -> list[TaskFacts]:
    """The tasks of several runs in their order: all, or `most` of more than `up_to`."""
    every = task_order(runs)
    if len(every) <= up_to:
        return every
    return [every[i] for i in telling([lost(runs, task) for task in every], most)]


def lost(runs: Sequence[RunView], task: TaskFacts) -> float:
    """What a task lost since it was learned, the mean over runs, as a share of its scores' range,
    or of scores without one the logarithm of their ratio; nan where no run tells."""
    found = [_lost(run, task) for run in runs if run.position(task.name)]
    known = [value for value in found if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _lost(run: RunView, task: TaskFacts) -> float:
    first, last = run.score(run.learned_at(task.name), task.name), run.score(run.done, task.name)
    if math.isnan(first + last):
        return math.nan
    if task.bounded:
        return task.share(first) - task.share(last)
    if min(first, last) > 0:
        return task.sign * (math.log(first) - math.log(last))
    return task.sign * (first - last)


def charts_words(runs: Sequence[RunView]) -> str:
    """Which tasks have a chart of their own; empty where all have."""
    count = len(task_order(runs))
    return "" if count <= MOST_MAPPED else _words(CURVES, count)


def rows_words(runs: Sequence[RunView]) -> str:
    """Which tasks are rows of the table; empty where all are."""
    count = len(task_order(runs))
    return "" if count <= MOST_LISTED else _words(LISTED, count)


def _words(shown: int, count: int) -> str:
    return (
        f"Shown are {shown} of {count:,} tasks: the first and the last ones, those that lost most "
        "since they were learned, and those that lost least."
    )
