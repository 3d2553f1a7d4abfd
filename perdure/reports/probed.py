"""Observed against probed: what the method's heads answer, and what the features still know.

A run with `scoring.probes` has, beside its scores, the shares that classifiers fitted afresh on the
features reach after each task (`perdure.scoring.probes`). They are shown in the run's own scenario.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from perdure.recipe.scoring import Probe
from perdure.reports import caps, charts, maps, telling
from perdure.reports.facts import MISSING
from perdure.reports.format import apart, number
from perdure.reports.scenarios import OWN
from perdure.scoring.intervals import Array

if TYPE_CHECKING:
    from perdure.reports.data import RunView

TITLES = {
    "linear": "linear probe",
    "cosine": "cosine probe",
    "prototype": "prototypes",
    "cosine_prototype": "cosine prototypes",
}
SETS = {
    "seen": "fitted on the classes learned so far",
    "all": "fitted on all classes, future ones included",
}
OBSERVED = "observed"


def names(run: RunView) -> list[str]:
    """The probes that a run has, in one order."""
    found = {name for line in run.probes for by in line["fitted_on"].values() for name in by}
    return [name for name in get_args(Probe) if name in found]


def last(run: RunView) -> int:
    """Tasks that were learned when probes were fitted for the last time; an extension fits none."""
    return max(line["after"] for line in run.probes)


def value(run: RunView, name: str, fitted: str, after: int, task: str) -> float:
    """What a probe reaches on a task after so many; nan where it was not measured."""
    column = run.matrix.column(task)
    return MISSING if column is None else float(shares(run, name, fitted)[after, column])


def shares(run: RunView, name: str, fitted: str) -> Array:
    """What a probe reaches after 0, 1, 2, ... tasks, (T+1, T), the mean over the runs of several
    seeds; nan where it was not measured."""
    key = f"probe {name} {fitted}"
    if key not in run.memo:
        answer = "within_task" if run.scenario == OWN else "among_all"
        run.memo[key] = np.mean([_shares(one, name, fitted, answer) for one in run.members], axis=0)
    found: Array = run.memo[key]
    return found


def _shares(run: RunView, name: str, fitted: str, answer: str) -> Array:
    found = np.full((len(run.tasks) + 1, len(run.tasks)), np.nan)
    for line in reversed(run.probes):  # of two of one cell the first counts
        column = run.matrix.column(line["task"])
        share: Mapping[str, float] = line["fitted_on"].get(fitted, {}).get(name, {})
        if column is not None and line["after"] < len(found):
            found[line["after"], column] = share.get(answer, MISSING)
    return found


def averages(run: RunView, name: str, fitted: str) -> list[float]:
    """The mean over the tasks learned by then, after 0, 1, 2, ... tasks; row 0 over all tasks."""
    return _averages(shares(run, name, fitted))


def _averages(found: Array) -> list[float]:
    return [fmean(row[:after] if after else row) for after, row in enumerate(found.tolist())]


def observed(run: RunView) -> list[float]:
    """The same mean of the method's own scores."""
    return _averages(run.scores)


def numbers(run: RunView) -> dict[str, Any]:
    """By set of classes and probe, the averages after 0, 1, 2, ... tasks and each task's own
    shares, for `--json`; empty without probes."""
    tasks = apart([task.name for task in run.tasks], ["after"])
    return {
        fitted: {
            name: {
                "averages": averages(run, name, fitted),
                "scores": [
                    {"after": k, **dict(zip(tasks, row, strict=True))}
                    for k, row in enumerate(shares(run, name, fitted).tolist())
                ],
            }
            for name in names(run)
        }
        for fitted in (SETS if names(run) else ())
    }


# --- for the page


def sections(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """For each run with probes: a chart for each set of classes, tasks at the end, and matrices."""
    return [_section(run, slot) for slot, run in enumerate(runs) if names(run)]


def _section(run: RunView, slot: int) -> dict[str, Any]:
    found = names(run)
    titles = [OBSERVED, *(TITLES[name] for name in found)]
    drawn = []
    for fitted, words in SETS.items():
        lines = [observed(run), *(averages(run, name, fitted) for name in found)]
        series = [
            (title, i, line) for i, (title, line) in enumerate(zip(titles, lines, strict=True))
        ]
        drawn.append(
            charts.over_tasks(
                title=words[0].upper() + words[1:],
                note="mean over the tasks learned so far",
                series=series,
                axis=charts.score_axis([1.0]),
                show=number,
                y_title="accuracy",
            )
        )
    return {
        "label": run.label,
        "slot": slot,
        "charts": drawn,
        "legend": [{"label": title, "slot": i} for i, title in enumerate(titles)],
        "titles": titles,
        "rows": _at_the_end(run, found),
        "maps": [_map(run, name, fitted) for name in found for fitted in SETS],
    }


def _at_the_end(run: RunView, found: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "task": task.name,
            "cells": [
                number(run.score(run.done, task.name)),
                *(number(value(run, name, "seen", run.done, task.name)) for name in found),
            ],
        }
        for task in telling.tasks([run], caps.LISTED, caps.MOST_LISTED)
    ]


def _map(run: RunView, name: str, fitted: str) -> dict[str, Any]:
    """A matrix as `maps.heatmaps` gives it."""
    found, tasks = shares(run, name, fitted), [task.name for task in run.tasks]
    whole = len(tasks) <= caps.MOST_MAPPED
    return {
        "label": f"{TITLES[name]}, {SETS[fitted]}",
        "told": run.told,
        "slot": 1 + names(run).index(name),
        "metric": "accuracy",
        **maps.grouped(found, tasks, len(tasks) if whole else caps.GROUPS),
    }
