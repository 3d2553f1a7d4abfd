"""Score matrices as heat maps: in full, or, of a long stream, groups of neighbouring tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from perdure.reports import classes, format, scenarios
from perdure.reports.caps import GROUPS, MOST_MAPPED, groups
from perdure.reports.colours import STEPS
from perdure.reports.data import RunView, TaskFacts, task_order
from perdure.scoring.intervals import Array
from perdure.streams.kinds import is_perdures

MANY = 8
"""Tasks from which on a matrix is drawn small, its columns' names upright."""


def map_sets(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """The score matrices, one set for each scenario that the runs know, their own first."""
    names = list(dict.fromkeys(one.scenario for run in runs for one in classes.both(run)))
    if len(names) < 2:
        return [{"name": "", "what": "", "maps": heatmaps(runs)}]
    found = []
    for name in names:
        # A run that knows one answer only is shown under its own.
        views = [next((v for v in classes.both(run) if v.scenario == name), None) for run in runs]
        maps = heatmaps([view or run for view, run in zip(views, runs, strict=True)])
        kept = [one for one, view in zip(maps, views, strict=True) if view is not None]
        found.append({"name": name, "what": scenarios.MEANING.get(name, ""), "maps": kept})
    return found


def heatmaps(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """A score matrix for each run: rows by tasks learned, row 0 the base model."""
    shares = {task.name: _share(task, runs) for task in task_order(runs)}
    return [
        {
            "label": run.label,
            "told": run.told,
            "slot": slot,
            # One metric is said once, beside the method's name.
            "metric": metric_words(run.tasks[0])
            if len({metric_words(t) for t in run.tasks}) == 1
            else "",
            **(_whole(run, shares) if len(run.tasks) <= MOST_MAPPED else _grouped(run, shares)),
        }
        for slot, run in enumerate(runs)
    ]


def map_width(runs: Sequence[RunView]) -> int:
    """Pixels of a matrix's card: as many stand side by side as the screen has room for."""
    tasks = max((len(run.tasks) for run in runs), default=1)
    columns = tasks if tasks <= MOST_MAPPED else len(groups(tasks))
    return 190 + 46 * columns if columns >= MANY else 150 + 62 * columns


def _whole(run: RunView, shares: dict[str, Callable[[float], float]]) -> dict[str, Any]:
    return {
        "many": len(run.tasks) >= MANY,
        "groups": "",
        "tasks": [{"name": t.name, "metric": metric_words(t), "hint": ""} for t in run.tasks],
        "rows": [
            {
                "title": "base model" if after == 0 else run.tasks[after - 1].name,
                "after": after,
                "order": after or "",
                "cells": [
                    _cell(run, after, i, t, shares[t.name])
                    for i, t in enumerate(run.tasks, start=1)
                ],
            }
            for after in range(len(run.tasks) + 1)
        ],
    }


def on_one_scale(tasks: Sequence[TaskFacts]) -> bool:
    """Whether all are scored alike, so that the mean of their scores is a score."""
    return len({(t.metric, t.higher_is_better, t.low, t.top) for t in tasks}) == 1


def shares_of(run: RunView, shares: dict[str, Callable[[float], float]] | None = None) -> Array:
    """The score matrix with each score as `_share` has it, which is its colour."""
    of = np.array(run.scores)
    for j, task in enumerate(run.tasks):
        if (task.low, task.top, task.higher_is_better) != (0.0, 1.0, True):
            share = _share(task, [run]) if shares is None else shares[task.name]
            of[:, j] = [math.nan if math.isnan(v) else share(v) for v in of[:, j]]
    return of


def _grouped(run: RunView, shares: dict[str, Callable[[float], float]]) -> dict[str, Any]:
    names, of = [task.name for task in run.tasks], shares_of(run, shares)
    if not on_one_scale(run.tasks):
        return grouped(of, names, said=MIXED)
    show = format.number if run.tasks[0].bounded else format.significant
    return grouped(run.scores, names, shares=of, show=show)


ALIKE = "each cell is the mean of a group’s scores"
MIXED = (
    "they are scored in several ways, so each cell is the mean of where a group’s scores lie from "
    "the worst (0) to the best (1), where there is no such end of those seen"
)


def grouped(
    values: Array,
    tasks: Sequence[str],
    most: int = GROUPS,
    *,
    shares: Array | None = None,
    show: Callable[[float], str] = format.number,
    said: str = ALIKE,
) -> dict[str, Any]:
    """A matrix drawn in groups of neighbouring tasks.

    A column is a group; a row is the model after the last task of a group, so that each is one that
    there was; a cell is the mean of the group's values in that row, of those that there are.

    Args:
        values: (T+1, T), nan where missing; tasks: the T names.
        shares: of each value where its colour lies, 0 to 1; None: the values are that.
        show: prints a value. said: what a cell is, in words.
    """
    colours = values if shares is None else shares
    columns = groups(len(tasks), most)
    size = len(columns[0]) if columns else 1
    rows = [0, *(part[-1] + 1 for part in columns)]
    found = []
    for after in rows:
        cells = []
        for part in columns:
            of, ramp = (one[after, part.start : part.stop] for one in (values, colours))
            there, ramp = of[~np.isnan(of)], ramp[~np.isnan(of)]
            newest = after == part.stop
            kind = "learned" if newest else ("before" if after <= part.start else "after")
            cells.append(_mean_cell(there, ramp, len(part), kind, show))
        single = size == 1 and after
        title = "base model" if not after else tasks[after - 1] if single else f"after {after:,}"
        order = after if single else ""
        found.append({"title": title, "after": after, "order": order, "cells": cells})
    return {
        "many": True,
        "groups": "" if size == 1 else f"groups of {size} neighbouring tasks: {said}",
        "tasks": [
            {
                "name": tasks[part[0]] if size == 1 else span(part),
                "metric": "",
                "hint": "" if size == 1 else f"{tasks[part[0]]} to {tasks[part[-1]]}",
            }
            for part in columns
        ],
        "rows": found,
    }


def span(part: range) -> str:
    return f"{part.start + 1}–{part.stop}" if len(part) > 1 else str(part.start + 1)


def _mean_cell(
    there: Array, ramp: Array, size: int, kind: str, show: Callable[[float], str]
) -> dict[str, Any]:
    if not len(there):
        return {"text": format.DASH, "kind": kind, "missing": True, "step": 0, "hint": ""}
    mean = float(there.mean())
    spread = f"{show(float(there.min()))} to {show(float(there.max()))}"
    few = "" if len(there) == size else f" of {len(there)} of {size} tasks"
    return {
        "text": show(mean),
        "hint": f"mean{few}; single tasks {spread}" if size > 1 else "",
        "kind": kind,
        "missing": False,
        "step": round(min(max(float(ramp.mean()), 0.0), 1.0) * (STEPS - 1)),
    }


def metric_words(task: TaskFacts) -> str:
    names = {"acc": "accuracy", "acc_norm": "normalized accuracy"}  # lm-eval's
    plain = task.metric.rpartition(":")[2].replace("_", " ")
    name = task.label or names.get(task.metric, plain)
    said = name.casefold().replace("-", "_").replace(" ", "_")
    if task.label and is_perdures(task.metric) and said != task.metric:
        name = f"{name} ({task.metric})"  # as a recipe has it
    return name if task.higher_is_better else f"{name}, lower is better"


def _share(task: TaskFacts, runs: Sequence[RunView]) -> Callable[[float], float]:
    """Where in the colour ramp a score lies: in its range, or, without one, among all seen."""
    if task.bounded:
        return task.share
    values = [v for run in runs for v in run.over_time(task.name) if not math.isnan(v)]
    scale = math.log if all(v > 0 for v in values) else float  # ratios count, as in perplexities
    seen = [scale(v) for v in values]
    low, high = min(seen, default=0.0), max(seen, default=1.0)
    if not low < high:
        return lambda score: 0.5
    if task.higher_is_better:
        return lambda score: (scale(score) - low) / (high - low)
    return lambda score: (high - scale(score)) / (high - low)


def _cell(
    run: RunView, after: int, position: int, task: TaskFacts, share: Callable[[float], float]
) -> dict[str, Any]:
    value = run.score(after, task.name)
    kind = "learned" if after == position else ("before" if after < position else "after")
    if math.isnan(value):
        return {"text": format.DASH, "kind": kind, "missing": True, "step": 0, "hint": ""}
    ends = run.evidence.cell(after, task.name)
    digits = format.digits_for(task.rows)
    known = "" if ends is None else format.between(ends.low, ends.high, digits)
    return {
        "text": format.printer(task)(value),
        "hint": f"95 % interval: {known}" if known else "",
        "kind": kind,
        "missing": False,
        "step": round(share(value) * (STEPS - 1)),
    }
