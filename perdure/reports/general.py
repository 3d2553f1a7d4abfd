"""General ability by tasks of lm-eval, as data for the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, harmonic_mean
from typing import Any

from perdure.reports import charts, format, words
from perdure.reports.data import MISSING, RunView, TaskFacts
from perdure.reports.maps import metric_words
from perdure.reports.seeds import over_seeds
from perdure.scoring.change import Change

F1, F1_WORDS, DIGITS = "F1 Avg", "harmonic mean of general and downstream", 2


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


def f1_average(general: Sequence[float], downstream: Sequence[float]) -> float:
    """Harmonic mean of the mean general score and the mean score over the tasks that were learned.

    F1 Avg of the GeRe paper: high only where both are. All scores are shares on one scale, higher
    is better; nan where one of them is missing.
    """
    both = fmean(general), fmean(downstream)
    return MISSING if any(map(math.isnan, both)) else harmonic_mean(both)


def f1_before_after(run: RunView) -> tuple[float, float] | None:
    """`f1_average` of the base model and at the end, over the lm-eval tasks scored in shares of 1.

    None where there is none, where no task is learned, or one of those is scored in another way.
    """
    if len(run.members) > 1:
        pairs = [f1_before_after(member) for member in run.members]
        known = [pair for pair in pairs if pair is not None]
        if len(known) < len(pairs):
            return None
        return fmean(pair[0] for pair in known), fmean(pair[1] for pair in known)
    shares = [values for task, values in run.general_tasks if _is_share(task, values)]
    learned = [
        (task, run.over_time(task.name))
        for task, trained in zip(run.tasks, run.matrix.learned, strict=True)
        if trained
    ]
    if not shares or not learned or not all(_is_share(task, values) for task, values in learned):
        return None
    first, last = (
        f1_average([values[i] for values in shares], [values[i] for _, values in learned])
        for i in (0, len(run.tasks))
    )
    return first, last


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
            show=format.printer(task),
            y_title="score",
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
            show = format.printer(task)
            if task.higher_is_better:
                change = format.signed(after - before, format.digits_for(task.rows))
            else:
                change = format.percent(after / before - 1 if before else MISSING)
            rows.append(
                {
                    "label": run.label,
                    "slot": slot,
                    "before": show(before),
                    "after": show(after),
                    "change": change,
                    **_verdict(run, task),
                }
            )
        groups.append(
            {"task": task.name, "metric": metric_words(task), "n": task.rows, "rows": rows}
        )
    if both := _f1_rows(runs):
        groups.append({"task": F1, "metric": F1_WORDS, "n": 0, "rows": both})
    return groups


def _f1_rows(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """As `changes` has them for a task; a mean of unlike scores gets no verdict."""
    pairs = [(run.label, slot, f1_before_after(run)) for slot, run in enumerate(runs)]
    return [
        {
            "label": label,
            "slot": slot,
            "before": format.number(pair[0], DIGITS),
            "after": format.number(pair[1], DIGITS),
            "change": format.signed(pair[1] - pair[0], DIGITS),
            "kept": "unknown",
            "kept_words": "",
            "interval": "",
        }
        for label, slot, pair in pairs
        if pair is not None
    ]


def _is_share(task: TaskFacts, values: Sequence[float]) -> bool:
    """Whether all scores are shares from 0 to 1. lm-eval's BLEU goes to 100, for example."""
    return task.higher_is_better and all(0 <= v <= 1 for v in values if not math.isnan(v))


def on_a_scale(task: TaskFacts, values: Sequence[float]) -> bool:
    """Whether a change between two scores can be judged: shares of 1, or ratios above 0."""
    return _is_share(task, values) or (not task.higher_is_better and min(values) > 0)


def change_of(run: RunView, task: TaskFacts) -> Change | None:
    """An lm-eval task's change from the base model to the newest score; None where one of them is
    missing or they are on no scale."""
    if len(run.members) > 1:
        return over_seeds([change_of(member, task) for member in run.members])
    pair = before_after(run, task.name)
    if pair is None or any(map(math.isnan, pair)) or not on_a_scale(task, pair):
        return None
    newest = max(i for i, v in enumerate(scores(run, task.name)) if not math.isnan(v))
    return run.evidence.harness_change(task, (0, pair[0]), (newest, pair[1]))


def _verdict(run: RunView, task: TaskFacts) -> dict[str, str]:
    """lost | kept | improved | open and its words; unknown where the scores are on no scale."""
    change = change_of(run, task)
    if change is None:
        return {"kept": "unknown", "kept_words": "", "interval": ""}
    kept = "improved" if change.gain == "learned" else change.outcome
    interval = words.interval_words(task, change)
    return {"kept": kept, "kept_words": words.outcome_words(change), "interval": interval}
