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
    """Why these tasks are left out: each reason that one of them has."""
    found = dict.fromkeys(
        reason
        for run in runs
        for j, name in enumerate(run.matrix.tasks)
        if name in run.matrix.left_out
        for reason, holds in (
            ("another unit", not _in_shares(run, j)),
            ("only scored", not run.matrix.learned[j]),
            (
                "scored on the same rows as a later task",
                run.matrix.next_on_same_rows(j) is not None,
            ),
        )
        if holds
    )
    return " or ".join(", ".join(found).rsplit(", ", 1))


def _in_shares(run: RunView, column: int) -> bool:
    return bool(run.matrix.in_shares[column] and run.matrix.higher_is_better[column])


def why(runs: Sequence[RunView]) -> str:
    """The same for the page, in a clause."""
    said = {
        "another unit": "their scores do not run from 0 to 1, or lower is better",
        "only scored": "they are only scored",
        "scored on the same rows as a later task": "a later task is scored on the same rows",
    }
    found = [said[reason] for reason in said if reason in reasons(runs)]
    return ", or ".join(found)
