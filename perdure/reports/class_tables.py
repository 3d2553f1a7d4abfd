"""What the terminal says of classes after a run: the scenarios, the worst classes, the probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from perdure.errors import printable
from perdure.reports import caps, classes, probed, telling
from perdure.reports.data import RunView
from perdure.reports.format import number, step_name, titled
from perdure.reports.scenarios import MEANING, foreknown

if TYPE_CHECKING:
    from rich.table import Table

FEW = 3
"""Classes that are named."""


def scenarios(runs: Sequence[RunView]) -> Iterator[str]:
    """Lines below the summary: what the scenarios mean, and each run's worst classes."""
    known = dict.fromkeys(one.scenario for run in runs for one in classes.both(run))
    for name in known:
        if name:
            yield f"{name}: {MEANING[name]}"
    for run in runs:
        if told := foreknown(run.recipe):
            yield f"{run.label}: {told}"
        worst = [one for one in classes.by_loss(run) if one.loss > 0]
        if worst:
            named = ", ".join(
                f"{printable(one.name)} {number(one.learned)} → {number(one.end)}"
                for one in worst[:FEW]
            )
            more = f" and {len(worst) - FEW} more" if len(worst) > FEW else ""
            yield f"{run.label}: classes that lost most: {named}{more}"


def probes(runs: Sequence[RunView]) -> Iterator[Table]:
    """For each run with probes, observed against probed: by step, and by task at the end."""
    for run in runs:
        if names := probed.names(run):
            yield _by_step(run, names)
            if run.done <= probed.last(run):
                yield _by_task(run, names)


def _by_step(run: RunView, names: Sequence[str]) -> Table:
    from rich.text import Text

    table = _table(f"{run.label}: observed and probed, mean over the tasks learned so far", names)
    lines = [
        probed.observed(run),
        *(probed.averages(run, name, "seen") for name in names),
    ]
    everything = [probed.averages(run, name, "all") for name in names]
    for after in caps.listed(range(run.done + 1)):
        title = "base model"
        if after:
            title = step_name(after, printable(run.tasks[after - 1].name))
        cells = [number(line[after]) for line in lines]
        for i, line in enumerate(everything, start=1):
            # In brackets what the same probe reaches when it is fitted on all classes.
            cells[i] += "" if math.isnan(line[after]) else f" ({number(line[after])})"
        table.add_row(Text(title), *map(Text, cells))
    table.caption = f"in brackets: {probed.SETS['all']}"
    if cut := caps.listed_words(run.done + 1, "steps"):
        table.caption = f"{cut} {table.caption[0].upper()}{table.caption[1:]}"
    if run.done > (last := probed.last(run)):
        table.caption += f", of the {last} tasks then; tasks that were added later have no probes"
    table.caption_justify = "left"
    return table


def _by_task(run: RunView, names: Sequence[str]) -> Table:
    from rich.text import Text

    table = _table(f"{run.label}: observed and probed, each task at the end", names)
    for task in telling.tasks([run], caps.LISTED, caps.MOST_LISTED):
        shares = [probed.value(run, name, "seen", run.done, task.name) for name in names]
        cells = [run.score(run.done, task.name), *shares]
        if not all(map(math.isnan, cells)):
            table.add_row(Text(printable(task.name)), *(Text(number(cell)) for cell in cells))
    return table


def _table(title: str, names: Sequence[str]) -> Table:
    table = titled(title)
    table.add_column("", overflow="fold")
    table.add_column(probed.OBSERVED, justify="right")
    for name in names:
        table.add_column(probed.TITLES[name], justify="right", overflow="fold")
    return table
