"""All numbers of a long stream as CSV, beside the page that shows some of them.

report-scores.csv    the score matrix: a line for each number of tasks learned, a column a task
report-tasks.csv     a line a task: its scores and changes with their intervals
report-classes.csv   of classes, a line a class; report-confusion.csv a line a step
report-probes.csv    of probes, the matrix of each
report-general.csv   general text and lm-eval's tasks, a line for each number of tasks learned
report-averaging.csv of an average of the weights, a line a task
report-pool.csv      of a pool of adapters a line a task; report-routing.csv who answered
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from perdure.files import write_atomic
from perdure.reports import averaging, caps, classes, findings, general, probed
from perdure.reports.data import RunView, task_order
from perdure.reports.format import apart, csv_text
from perdure.reports.pools import pool_of
from perdure.scoring.change import Change

CHANGES = ("gained", "since_learned", "since_base")


def needed(runs: Sequence[RunView]) -> bool:
    """Whether a page over these runs leaves out numbers that it would show of a shorter stream."""
    return len(task_order(runs)) > caps.MOST_MAPPED or any(
        len(classes.by_loss(run)) > classes.MOST or _many_answered(run) for run in runs
    )


def _many_answered(run: RunView) -> bool:
    """Whether who answered is too much for a page: items of lm-eval's tasks are routed too."""
    if (pool := pool_of(run)) is None:
        return False
    return max(len(pool.confusion.rows), len(pool.confusion.columns)) > caps.MOST_LISTED


def written(runs: Sequence[RunView], page: Path) -> list[tuple[str, str]]:
    """Write the files beside a page where they are needed.

    Returns: each one's name, and what is in it.
    """
    if not needed(runs):
        return []
    told = []
    for name, what, lines in _tables(runs):
        file = _beside(page, name)
        write_atomic(file, csv_text(lines))
        told.append((file.name, what))
    return told


def files(runs: Sequence[RunView], page: Path) -> list[Path]:
    """The files that `written` writes beside a page."""
    return [_beside(page, name) for name, _, _ in _tables(runs)] if needed(runs) else []


def _beside(page: Path, name: str) -> Path:
    return page.with_name(f"{page.stem}-{name}.csv")


def _tables(runs: Sequence[RunView]) -> Iterator[tuple[str, str, Iterable[Sequence[Any]]]]:
    """Name, contents, and lines of each file."""
    yield "scores", "the score of each task after each number of tasks learned", _scores(runs)
    yield "tasks", "each task’s scores and changes, with their intervals", _tasks(runs)
    if any(run.scenario for run in runs):
        yield "classes", "each class’s share right, just learned and at the end", _classes(runs)
        few = any(run.evidence.large for run in runs)
        at = f"{caps.LISTED} evenly spaced steps" if few else "each step"
        yield "confusion", f"where old and new rows went after {at}", _confusion(runs)
    if any(probed.names(run) for run in runs):
        yield "probes", "what each probe reaches on each task after each step", _probes(runs)
    if any(run.general or run.general_tasks for run in runs):
        yield "general", "general text and tasks of lm-eval after each step", _general(runs)
    if any(map(averaging.tasks, runs)):
        yield "averaging", "what an average of the weights did at each task", _averaging(runs)
    if any(map(pool_of, runs)):
        yield "pool", "where each task was learned, and what routing costs it", _pool(runs)
        said = "how many requests of each task each adapter answered, where it answered any"
        yield "routing", said, _routing(runs)


def cell(value: float | None) -> str:
    """A number in six digits; empty where it is missing."""
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _scores(runs: Sequence[RunView]) -> Iterator[list[str]]:
    names = [task.name for task in task_order(runs)]
    heads = ["method", "scenario", "after"]
    yield [*heads, *apart(names, heads)]
    for run in (one for own in runs for one in classes.both(own)):
        columns = [run.matrix.column(name) for name in names]
        for after, row in enumerate(run.scores.tolist()):
            cells = ["" if j is None else cell(row[j]) for j in columns]
            yield [run.label, run.scenario, str(after), *cells]


def _tasks(runs: Sequence[RunView]) -> Iterator[list[str]]:
    ends = [f"{name}{end}" for name in CHANGES for end in ("", "_low", "_high", "_verdict")]
    yield ["method", "scenario", "task", "learned_as", "metric", "rows", "base", "learned", "end",
           *ends]  # fmt: skip
    for run in (one for own in runs for one in classes.both(own)):
        for one in findings.findings(run):
            task = one.task
            first = [run.label, run.scenario, task.name, str(run.learned_at(task.name))]
            scores = map(cell, (one.base, one.learned, one.final))
            gained = "" if one.gain is None else one.gained
            kept = "" if one.since is None else one.kept
            against = "" if one.against is None else one.against.outcome
            yield [*first, task.metric, str(task.rows), *scores, *_change(one.gain, gained),
                   *_change(one.since, kept), *_change(one.against, against)]  # fmt: skip


def _change(found: Change | None, verdict: str) -> list[str]:
    if found is None:
        return ["", "", "", ""]
    return [*map(cell, (found.mean, found.low, found.high)), verdict]


def _classes(runs: Sequence[RunView]) -> Iterator[list[str]]:
    yield ["method", "class", "task", "rows", "learned", "end", "loss", "mostly_taken_for"]
    for run in runs:
        for one in classes.by_loss(run):
            shares = map(cell, (one.learned, one.end, one.loss))
            yield [run.label, one.name, one.task, str(one.rows), *shares, one.most]


def _confusion(runs: Sequence[RunView]) -> Iterator[list[str]]:
    yield ["method", "after", "old_right", "old_as_other_old", "old_as_new", "new_as_old"]
    for run in runs:
        for after, one in classes.steps(run):
            parts = (one.right, one.other_old, one.as_new, one.as_old)
            yield [run.label, str(after), *map(cell, parts)]


def _probes(runs: Sequence[RunView]) -> Iterator[list[str]]:
    names = [task.name for task in task_order(runs)]
    heads = ["method", "probe", "fitted_on", "after"]
    yield [*heads, *apart(names, heads)]
    for run in runs:
        columns = [run.matrix.column(name) for name in names]
        for probe in probed.names(run):
            for fitted in probed.SETS:
                for after, row in enumerate(probed.shares(run, probe, fitted).tolist()):
                    cells = ["" if j is None else cell(row[j]) for j in columns]
                    yield [run.label, probe, fitted, str(after), *cells]


def _general(runs: Sequence[RunView]) -> Iterator[list[str]]:
    names = [task.name for task in general.tasks(runs)]
    heads = ["method", "after", "general_perplexity"]
    yield [*heads, *apart(names, heads)]
    for run in runs:
        columns = [run.general, *(general.scores(run, name) for name in names)]
        for after in range(len(run.tasks) + 1):
            cells = ["" if after >= len(one) else cell(one[after]) for one in columns]
            yield [run.label, str(after), *cells]


def _averaging(runs: Sequence[RunView]) -> Iterator[list[str]]:
    yield ["method", "task", "out_of_range", *(f"decile_{i}" for i in range(1, 10)), "moved",
           "weights_moved"]  # fmt: skip
    for run in runs:
        for one in averaging.tasks(run):
            # A weight of 0.99999995 in six digits would be 1.
            weights = ["" if math.isnan(value) else repr(value) for value in one.deciles]
            yield [run.label, one.task, cell(one.out), *weights, cell(one.moved),
                   cell(one.moved_raw)]  # fmt: skip


def _pool(runs: Sequence[RunView]) -> Iterator[list[str]]:
    yield ["method", "task", "group", "adapter", "group_was", "nearest", "nearest_similarity",
           "runner_up", "runner_up_similarity", "base", "served", "right_adapter", "cost",
           "cost_low", "cost_high", "cost_unit"]  # fmt: skip
    for run in runs:
        if (pool := pool_of(run)) is None:
            continue
        placed = {one.task: one for one in pool.grouping}
        costs = {one.task: one for one in pool.costs}
        for name in (task.name for task in run.tasks if task.name in placed | costs):
            line = [run.label, name]
            if (home := placed.get(name)) is None:
                line += [""] * 7
            else:
                near = [home.nearest or ("", None), home.runner_up or ("", None)]
                line += [home.group, home.adapter, "opened" if home.opened else "continued"]
                line += [text for group, share in near for text in (group, cell(share))]
            if (cost := costs.get(name)) is not None:
                ends = cost.cost
                figures = (cost.base, cost.routed, cost.right, ends.value, ends.low, ends.high)
                line += [*map(cell, figures), "nats" if cost.nats else "score"]
            yield line + [""] * (16 - len(line))


def _routing(runs: Sequence[RunView]) -> Iterator[list[str]]:
    yield ["method", "task", "adapter", "requests", "right"]
    for run in runs:
        if (pool := pool_of(run)) is None:
            continue
        for row in pool.confusion.rows:
            for column, count in enumerate(row.counts):
                if count:
                    right = "" if row.right is None else str(column == row.right).lower()
                    name = pool.confusion.columns[column]
                    yield [run.label, row.task, name, str(count), right]
