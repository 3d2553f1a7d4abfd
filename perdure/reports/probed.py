"""Observed against probed: what the method's heads answer, and what the features still know.

A run with `scoring.probes` has, beside its scores, the shares that classifiers fitted afresh on the
features reach after each task (`perdure.scoring.probes`). They are shown in the run's own scenario.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

from perdure.recipe.schema import Probe
from perdure.reports import charts
from perdure.reports.colours import STEPS
from perdure.reports.facts import MISSING
from perdure.reports.format import DASH, number
from perdure.reports.scenarios import OWN

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


def value(run: RunView, name: str, fitted: str, after: int, task: str) -> float:
    """What a probe reaches on a task after so many; nan where it was not measured."""
    answer = "within_task" if run.scenario == OWN else "among_all"
    found = [_share(member, name, fitted, after, task, answer) for member in run.members]
    return fmean(found)


def _share(
    run: RunView, name: str, fitted: str, after: int, task: str, answer: str
) -> float:  # fmt: skip
    for line in run.probes:
        if (line["after"], line["task"]) == (after, task):
            share: Mapping[str, float] = line["fitted_on"].get(fitted, {}).get(name, {})
            return share.get(answer, MISSING)
    return MISSING


def averages(run: RunView, name: str, fitted: str) -> list[float]:
    """The mean over the tasks learned by then, after 0, 1, 2, ... tasks; row 0 over all tasks."""
    tasks = [task.name for task in run.tasks]
    return [
        fmean(value(run, name, fitted, after, task) for task in (tasks[:after] or tasks))
        for after in range(len(tasks) + 1)
    ]


def observed(run: RunView) -> list[float]:
    """The same mean of the method's own scores."""
    tasks = [task.name for task in run.tasks]
    return [
        fmean(run.score(after, task) for task in (tasks[:after] or tasks))
        for after in range(len(tasks) + 1)
    ]


def numbers(run: RunView) -> dict[str, Any]:
    """By set of classes and probe, the averages after 0, 1, 2, ... tasks and each task's own
    shares, for `--json`; empty without probes."""
    tasks = [task.name for task in run.tasks]
    return {
        fitted: {
            name: {
                "averages": averages(run, name, fitted),
                "scores": [
                    {"after": k, **{t: value(run, name, fitted, k, t) for t in tasks}}
                    for k in range(len(tasks) + 1)
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
        for task in run.tasks
    ]


def _map(run: RunView, name: str, fitted: str) -> dict[str, Any]:
    """A matrix as `sections.heatmaps` gives it."""

    def cell(after: int, position: int, task: str) -> dict[str, Any]:
        share = value(run, name, fitted, after, task)
        kind = "learned" if after == position else ("before" if after < position else "after")
        known = not math.isnan(share)
        return {
            "text": number(share) if known else DASH,
            "kind": kind,
            "missing": not known,
            "step": round(share * (STEPS - 1)) if known else 0,
            "interval": "",
        }

    return {
        "label": f"{TITLES[name]}, {SETS[fitted]}",
        "told": run.told,
        "slot": 1 + names(run).index(name),
        "many": True,
        "tasks": [{"name": task.name, "metric": ""} for task in run.tasks],
        "metric": "accuracy",
        "rows": [
            {
                "title": run.tasks[after - 1].name if after else "base model",
                "after": after,
                "cells": [cell(after, i, task.name) for i, task in enumerate(run.tasks, start=1)],
            }
            for after in range(len(run.tasks) + 1)
        ],
    }
