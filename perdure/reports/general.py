"""General ability by tasks of lm-eval, as data for the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from perdure.reports import charts, words
from perdure.reports.data import MISSING, RunView, TaskFacts
from perdure.reports.sections import metric_words


def tasks(runs: Sequence[RunView]) -> list[TaskFacts]:
    """All lm-eval tasks of several runs, in order of first appearance."""
    found: dict[str, TaskFacts] = {}
    for run in runs:
        for task, _ in run.general_tasks:
            found.setdefault(task.name, task)
    return list(found.values())


def scores(run: RunView, name: str) -> tuple[float, ...]:
    """A run's scores on an lm-eval task by `after`; () where it has none."""
    return next((values for task, values in run.general_tasks if task.name == name), ())


def before_after(run: RunView, name: str) -> tuple[float, float] | None:
    """The base model's score and the newest one; None where the run has neither."""
    values = scores(run, name)
    if not values:
        return None
    newest = (value for value in reversed(values[1:]) if not math.isnan(value))
    return values[0], next(newest, MISSING)


def task_charts(runs: Sequence[RunView]) -> list[charts.Chart]:
    """Each lm-eval task's score over time, one line a run; shares from 0 to 1 have one axis."""
    found = {task: [scores(run, task.name) for run in runs] for task in tasks(runs)}
    values = {task: [v for line in lines for v in line] for task, lines in found.items()}
    shares = [task for task in found if _is_share(task, values[task])]
    shared = charts.score_axis([v for task in shares for v in values[task]])
    return [
        charts.over_tasks(
            title=task.name,
            note=metric_words(task),
            series=[
                (run.label, slot, line)
                for slot, (run, line) in enumerate(zip(runs, lines, strict=True))
                if line
            ],
            axis=shared if task in shares else charts.value_axis(values[task]),
            show=words.printer(task),
        )
        for task, lines in found.items()
    ]


def changes(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """By lm-eval task, a row for each run: base model, newest score, change, verdict."""
    groups = []
    for task in tasks(runs):
        rows = []
        for slot, run in enumerate(runs):
            if (pair := before_after(run, task.name)) is None:
                continue
            before, after = pair
            show = words.printer(task)
            if task.higher_is_better:
                change = words.signed(after - before, words.digits_for(task.rows))
            else:
                change = words.percent(after / before - 1 if before else MISSING)
            rows.append(
                {
                    "label": run.label,
                    "slot": slot,
                    "before": show(before),
                    "after": show(after),
                    "change": change,
                    "kept": _verdict(task, before, after),
                }
            )
        groups.append(
            {"task": task.name, "metric": metric_words(task), "n": task.rows, "rows": rows}
        )
    return groups


def _is_share(task: TaskFacts, values: Sequence[float]) -> bool:
    """Whether all scores are shares from 0 to 1. lm-eval's BLEU goes to 100, for example."""
    return task.higher_is_better and all(0 <= v <= 1 for v in values if not math.isnan(v))


def _verdict(task: TaskFacts, before: float, after: float) -> str:
    """kept | forgotten | improved, by the rule of `words.change`; unknown where it has no bound."""
    positive = not task.higher_is_better and min(before, after) > 0
    if math.isnan(before + after) or not (positive or _is_share(task, (before, after))):
        return "unknown"
    return {1: "improved", 0: "kept", -1: "forgotten"}[words.change(task, before, after)]
