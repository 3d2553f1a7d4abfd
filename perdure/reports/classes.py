"""What a report says of classes: both scenarios' scores, where rows went, which classes were lost.

A run of classes records two answers of each row: among all classes learned so far
(class-incremental), and among those of the row's own task (task-incremental). One is its score;
the other one is shown beside it as a view of its own (`RunView.other`), with the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from perdure.reports import caps
from perdure.reports.format import between, number, step_name
from perdure.run.kept import kept_labels
from perdure.scoring.classes import ClassLoss, Confusion, Pair, confusion, losses
from perdure.scoring.matrix import ScoreMatrix

if TYPE_CHECKING:
    from perdure.reports.data import RunView

WORST = 10
"""Classes shown at once; the others are folded away."""
MOST = 200
"""Classes that a page has at most."""


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


def undefined(run: RunView, key: str) -> str:
    """Why classes have no forward transfer: their head is not there before they are learned."""
    gone = key == "forward_transfer" and run.scenario and run.summary(key) is None
    if not gone or not run.matrix.terms(key):
        return ""
    return "not defined: classes have no score before they are learned"


# --- where rows went


def steps(run: RunView) -> list[tuple[int, Confusion]]:
    """After each task, where old and new rows went while all learned classes competed; the mean
    over the runs of several seeds. Empty where a run did not keep both answers; of a run that is
    too long to read all its rows, evenly spaced steps."""
    if "steps" not in run.memo:
        run.memo["steps"] = _of_members(run)
    found: list[tuple[int, Confusion]] = run.memo["steps"]
    return found


def _of_members(run: RunView) -> list[tuple[int, Confusion]]:
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
    brought = _brought(run)
    every = range(1, run.done + 1)
    # Each step reads the rows of all tasks so far: of a long stream some steps are read.
    for after in caps.some_of(every, caps.LISTED) if run.evidence.large else every:
        pairs = [_pairs(run, after, name) for name in names[:after]]
        if pairs[-1] and run.matrix.learned[after - 1]:
            found.append(
                (after, confusion([p for rows in pairs for p in rows], brought[after - 1]))
            )
    return found


def _brought(run: RunView) -> list[set[str]]:
    """The classes that each task brought: those of its labels that no earlier one had. A class may
    have no test row, so that rows alone do not say it; they are asked where nothing else does."""
    found: list[set[str]] = []
    known: set[str] = set()
    labels = kept_labels(run.path, len(run.tasks))
    for after, (task, own) in enumerate(zip(run.tasks, labels, strict=True), start=1):
        there = set(own) or {answer for answer, _ in _pairs(run, after, task.name)}
        if not run.matrix.learned[after - 1]:
            there = set()
        found.append(there - known)
        known |= there
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
    classes competed; the mean over the runs of several seeds. A class that came again is there once
    for each task that has it."""
    if "by_loss" not in run.memo:
        run.memo["by_loss"] = _by_loss(run)
    found: list[ClassLoss] = run.memo["by_loss"]
    return found


def _by_loss(run: RunView) -> list[ClassLoss]:
    every = [{(one.task, one.name): one for one in _losses([member])} for member in run.members]
    together = {(one.task, one.name): one for one in _losses(run.members)}
    merged = [
        replace(
            first,
            learned=fmean(found[key].learned for found in every),
            end=fmean(found[key].end for found in every),
            most=together[key].most,
        )
        for key, first in every[0].items()
        if all(key in found for found in every)
    ]
    return sorted(merged, key=lambda one: (-one.loss, one.name))


def _losses(runs: Sequence[RunView]) -> list[ClassLoss]:
    """Those of all rows of some runs of the same tasks."""
    first, last = dict[str, list[Pair]](), dict[str, list[Pair]]()
    for run in runs:
        if not run.scenario:
            return []
        for after, task in enumerate(run.tasks[: run.done], start=1):
            first.setdefault(task.name, []).extend(_pairs(run, after, task.name))
            last.setdefault(task.name, []).extend(_pairs(run, run.done, task.name))
    return losses(first, last)


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
        trained = sum(run.matrix.learned[: run.done])
        rows = [
            {
                "step": step_name(after, run.tasks[after - 1].name),
                "cells": [number(getattr(one, name)) for name in
                          ("right", "other_old", "as_new", "as_old")],
            }
            for after, one in caps.listed(moved)
        ]  # fmt: skip
        listed = [
            {"name": one.name, "task": one.task, "most": one.most, "rows": one.rows,
             "cells": [number(value) for value in (one.learned, one.end, -one.loss)]}
            for one in lost[:MOST]
        ]  # fmt: skip
        found.append(
            {"label": run.label, "slot": slot, "steps": rows, "classes": listed[:WORST],
             "rest": listed[WORST:], "count": len(lost),
             "cut": caps.listed_words(trained, "steps") if len(rows) < trained else ""}
        )  # fmt: skip
    return found
