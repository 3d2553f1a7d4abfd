"""Tasks that the summary figures of a report do not count, told alike on page, terminal and table.

They are those of `ScoreMatrix.left_out`: in another unit, only scored, or scored on the test rows
of a task that is learned later.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.reports.caps import named
from perdure.reports.data import RunView, task_order
from perdure.reports.format import listing


def left_out_of_means(runs: Sequence[RunView]) -> list[str]:
    """Names of the tasks, in their order; with the runs that leave one out ("a (of replay)") where
    another run counts it."""
    found = []
    for task in task_order(runs):
        out = [run.label for run in runs if task.name in run.matrix.left_out]
        every = sum(task.name in run.matrix.tasks for run in runs)
        if out:
            found.append(task.name if len(out) == every else f"{task.name} (of {listing(out)})")
    return found


def line(runs: Sequence[RunView]) -> str:
    """The same as one line for people; empty where every task is counted."""
    found = left_out_of_means(runs)
    return f"not in these means ({reasons(runs)}): {', '.join(named(found))}" if found else ""


def reasons(runs: Sequence[RunView]) -> str:
    """Why tasks are left out; the last reason only where there is such a task."""
    if scored_again(runs):
        return "another unit, only scored, or scored on the same rows as a later task"
    return "another unit, or only scored"


def scored_again(runs: Sequence[RunView]) -> bool:
    """Whether a task is scored on the test rows of one that is learned later."""
    return any(
        run.matrix.next_on_same_rows(j) is not None
        for run in runs
        for j in range(len(run.matrix.tasks))
    )
