"""What a report says of classes: both scenarios' scores, where rows went, which classes were lost.

A run of classes records two answers of each row: among all classes learned so far
(class-incremental), and among those of the row's own task (task-incremental). One is its score;
the other one is shown beside it as a view of its own (`RunView.other`), with the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from perdure.reports.evidence import Evidence, Items
from perdure.reports.format import between, number
from perdure.scoring.classes import ClassLoss, Confusion, Pair, confusion, losses
from perdure.scoring.matrix import ScoreMatrix
from perdure.streams.kinds.classes import AMONG_ALL, WITHIN_TASK

if TYPE_CHECKING:
    from perdure.reports.data import RunView

ALL, OWN = "class-incremental", "task-incremental"
MEANING = {
    ALL: "all classes learned so far compete",
    OWN: "only those of the row’s own task compete, as if the task were known",
}
_OTHER = {WITHIN_TASK: OWN, AMONG_ALL: ALL}
_GUESS = {OWN: "within_task", ALL: "among_all"}
WORST = 10
"""Classes shown at once; the others are folded away."""


def scenario_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scenario that the scores are of; empty where a run knows only one answer."""
    named = [name for row in rows for name in row.get("measures") or () if name in _OTHER]
    return "" if not named else (OWN if _OTHER[named[0]] == ALL else ALL)


def other_view(
    view: RunView, rows: Sequence[Mapping[str, Any]], items: Callable[[int, str], Items]
) -> RunView:
    """The same run scored by its other answer, which every line has in its measures."""
    other = OWN if view.scenario == ALL else ALL
    name = next(measure for measure, scenario in _OTHER.items() if scenario == other)
    kept = [
        {**row, "score": row["measures"][name]} for row in rows if name in row.get("measures", {})
    ]
    tasks = view.matrix.tasks
    only = [t for t, learned in zip(tasks, view.matrix.learned, strict=True) if not learned]
    matrix = ScoreMatrix.from_rows(kept, tasks, only)

    def answered(after: int, task: str) -> Items:
        key = _GUESS[other]
        return [
            {**row, "score": float(row[key] == row["answer"])}
            for row in items(after, task)
            if key in row
        ]

    evidence = Evidence(
        view.tasks, matrix, answered, (), view.evidence.general_rows, view.evidence.margins,
        f"{view.path} {other}",
    )  # fmt: skip
    return replace(
        view, matrix=matrix, evidence=evidence, scenario=other, general=(), general_tasks=(),
        unseen=(), probes=(),
    )  # fmt: skip


def both(run: RunView) -> list[RunView]:
    """A run's scores by its own scenario, and by the other one where that is known."""
    return [run] if run.other is None else [run, run.other]


def by_sample(run: RunView, digits: int) -> list[str]:
    """Accuracy over all test rows and its interval, where test sets differ in size; else none."""
    value = run.summary(ScoreMatrix.BY_SAMPLE) if run.matrix.uneven else None
    if value is None:
        return []
    ends = run.evidence.interval(ScoreMatrix.BY_SAMPLE)
    said = [f"by sample {number(value, digits)}"]
    return said if ends is None else [*said, between(ends.low, ends.high, digits)]


# --- where rows went


def steps(run: RunView) -> list[tuple[int, Confusion]]:
    """After each task, where old and new rows went while all learned classes competed; the mean
    over the runs of several seeds. Empty where a run did not keep both answers."""
    every = [dict(_steps(member)) for member in run.members]
    return [
        (after, _mean([found[after] for found in every]))
        for after in every[0]
        if all(after in found for found in every)
    ]


def _steps(run: RunView) -> list[tuple[int, Confusion]]:
    names, found = [task.name for task in run.tasks], []
    if not run.scenario:
        return []
    for after in range(1, run.done + 1):
        pairs = {name: _pairs(run, after, name) for name in names[:after]}
        newest = pairs[names[after - 1]]
        if not newest:
            continue
        old = {a for name in names[: after - 1] for a, _ in pairs[name]}
        new = {answer for answer, _ in newest} - old
        found.append((after, confusion([p for rows in pairs.values() for p in rows], new)))
    return found


def _mean(found: Sequence[Confusion]) -> Confusion:
    def mean(name: str) -> float | None:
        values = [getattr(one, name) for one in found]
        return None if None in values else fmean(values)

    return Confusion(*(mean(name) for name in ("right", "other_old", "as_new", "as_old")))


def _pairs(run: RunView, after: int, task: str) -> list[Pair]:
    rows = run.evidence.rows(after, task)
    return [(row["answer"], row["among_all"]) for row in rows if "among_all" in row]


def by_loss(run: RunView) -> list[ClassLoss]:
    """Classes from the largest loss since they were learned to the largest gain, while all learned
    classes competed; the mean over the runs of several seeds."""
    every = [{one.name: one for one in _losses(member)} for member in run.members]
    merged = [
        replace(
            first,
            learned=fmean(found[name].learned for found in every),
            end=fmean(found[name].end for found in every),
        )
        for name, first in every[0].items()
        if all(name in found for found in every)
    ]
    return sorted(merged, key=lambda one: (-one.loss, one.name))


def _losses(run: RunView) -> list[ClassLoss]:
    if not run.scenario:
        return []
    names = [task.name for task in run.tasks[: run.done]]
    return losses(
        {name: _pairs(run, i, name) for i, name in enumerate(names, start=1)},
        {name: _pairs(run, run.done, name) for name in names},
    )


def numbers(run: RunView) -> dict[str, Any]:
    """The same as data, for `--json`; lists are empty where a run has no classes."""
    return {
        "scenario": run.scenario or None,
        "confusion": [{"after": after, **asdict(found)} for after, found in steps(run)],
        "classes": [{**asdict(one), "loss": one.loss} for one in by_loss(run)],
    }


# --- for the page


def sections(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """For each run of classes its tables: confusion by step, and classes by loss."""
    found = []
    for slot, run in enumerate(runs):
        moved, lost = steps(run), by_loss(run)
        if not moved:
            continue
        rows = [
            {
                "after": after,
                "task": run.tasks[after - 1].name,
                "cells": [number(getattr(one, name)) for name in
                          ("right", "other_old", "as_new", "as_old")],
            }
            for after, one in moved
        ]  # fmt: skip
        listed = [
            {"name": one.name, "task": one.task, "most": one.most, "rows": one.rows,
             "cells": [number(value) for value in (one.learned, one.end, -one.loss)]}
            for one in lost
        ]  # fmt: skip
        found.append(
            {"label": run.label, "slot": slot, "steps": rows, "classes": listed[:WORST],
             "rest": listed[WORST:], "count": len(listed)}
        )  # fmt: skip
    return found
