"""Tasks that the summary figures of a report do not count, told alike on page, terminal and table.

They are those of `ScoreMatrix.left_out`: in another unit, or only scored.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    return f"not in these means (another unit, or only scored): {', '.join(found)}" if found else ""
