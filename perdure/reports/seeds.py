"""Runs that differ in nothing but their seed, shown as one method: means and intervals over seeds.

A mean over seeds has Student's interval with one degree of freedom less than there are runs, as two
to ten runs are what people have. It says how far another set of seeds may lie. What other test rows
would say it does not know where all seeds are scored on the same rows, so the rows are asked too:
an interval is the wider at each end of Student's and of the mean of the runs' own, and a method is
ahead of another only if the seeds and the rows say so. Two methods that ran with the same seeds are
compared seed by seed, since a seed decides what both were trained and scored on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from perdure.reports.data import MISSING, RunView, TaskFacts
from perdure.reports.evidence import Evidence
from perdure.scoring.change import Change
from perdure.scoring.matrix import ScoreMatrix
from perdure.scoring.resampling import Drawn, Interval, difference_over_seeds, normal_interval

SAME = 1e-12
"""Spread below which values of several seeds count as equal."""


@dataclass(frozen=True)
class Spread:
    """A figure over seeds. `sd` is nan of one seed; `low` and `high` also where all are equal,
    since no spread was seen to judge by."""

    mean: float
    sd: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation (n - 1) and Student's 95 % interval of values by seed."""
    found = normal_interval(values)
    if len(values) < 2:
        return Spread(found.value, math.nan, math.nan, math.nan, len(values))
    sd = float(np.std(np.asarray(values), ddof=1))
    if sd < SAME:
        return Spread(found.value, 0.0, math.nan, math.nan, len(values))
    return Spread(found.value, sd, found.low, found.high, len(values))


@dataclass(frozen=True)
class SeedsView(RunView):
    """Several runs as one: matrix, general text and log are means over them, cell by cell."""

    runs: tuple[RunView, ...] = ()

    @property
    def members(self) -> tuple[RunView, ...]:
        return self.runs

    def summary(self, name: str) -> float | None:
        """The mean of the runs' own figures: forgetting, a maximum, is not that of the means."""
        found = [run.summary(name) for run in self.runs]
        known = [value for value in found if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(found) else None

    @property
    def told(self) -> str:
        return f"mean over {len(self.runs)} seeds ({', '.join(map(seed_of, self.runs))})"

    def parts(self, name: str) -> dict[str, float]:
        found = [run.parts(name) for run in self.runs]
        return {task: math.fsum(one[task] for one in found) / len(found) for task in found[0]}

    @property
    def tokens_per_second(self) -> float:
        return fmean(run.tokens_per_second for run in self.runs)

    @property
    def peak_memory_mb(self) -> float:
        return max(run.peak_memory_mb for run in self.runs)


class SeedsEvidence(Evidence):
    """`Evidence` of several runs, the same questions answered over their seeds."""

    def __init__(self, runs: Sequence[RunView]) -> None:
        self.runs = tuple(runs)
        self.margins = runs[0].evidence.margins
        self.large = any(run.evidence.large for run in runs)

    def figure(self, name: str) -> Drawn | None:
        """Draws of the mean over the runs; rows that they share have the same weights in all."""
        found = [run.evidence.figure(name) for run in self.runs]
        known = [one for one in found if one is not None]
        return Drawn.mean(known) if len(known) == len(found) else None

    def interval(self, name: str) -> Interval | None:
        values = [run.summary(name) for run in self.runs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return wider(known, [run.evidence.interval(name) for run in self.runs])

    def cell(self, after: int, task: str) -> Interval | None:
        values = [run.score(after, task) for run in self.runs]
        if any(map(math.isnan, values)):
            return None
        return wider(values, [run.evidence.cell(after, task) for run in self.runs])

    def change(self, task: TaskFacts, before: int, after: int) -> Change | None:
        return over_seeds([run.evidence.change(task, before, after) for run in self.runs])

    @cached_property
    def general_change(self) -> Change | None:
        return over_seeds([run.evidence.general_change for run in self.runs])

    @property
    def general_last(self) -> int:
        return min(run.evidence.general_last for run in self.runs)


def wider(values: Sequence[float], by_rows: Sequence[Interval | None]) -> Interval | None:
    """The wider end of Student's interval and of the mean of the runs' own, as `over_seeds` has it;
    where one of the two is not known, the other."""
    found, known = spread(values), [ends for ends in by_rows if ends is not None]
    ends = [] if math.isnan(found.low) else [(found.low, found.high)]
    if len(known) == len(by_rows):
        ends.append((fmean(one.low for one in known), fmean(one.high for one in known)))
    if not ends:
        return None
    return Interval(found.mean, min(low for low, _ in ends), max(high for _, high in ends))


def over_seeds(changes: Sequence[Change | None]) -> Change | None:
    """One change of several runs, with the wider end of two intervals on either side.

    One is Student's over the runs' changes. The other is the mean of the runs' own, which were made
    of rows: as the runs may share them, they are not taken for independent.
    """
    known = [change for change in changes if change is not None]
    if len(known) < len(changes):
        return None
    found = spread([change.mean for change in known])
    low, high = (fmean(getattr(change, end) for change in known) for end in ("low", "high"))
    if math.isfinite(found.low):
        low, high = min(low, found.low), max(high, found.high)
    return replace(
        known[0], mean=found.mean, low=low, high=high, rows=min(change.rows for change in known),
        paired=all(change.paired for change in known), needed=None, seeds=len(known),
    )  # fmt: skip


# --- which runs belong together


def seed_of(run: RunView) -> str:
    return str(run.recipe.get("seed", ""))


def grouped(runs: Sequence[RunView]) -> list[RunView]:
    """Runs of one method, with the same options and data and another seed each, as one view.

    A run that is not finished stands for itself, and so does a second run of the same seed, which
    says nothing about seeds. Where no seed repeats anything, the runs are returned as they are.
    """
    groups: list[list[RunView]] = []
    for run in runs:
        home = next((g for g in groups if run.complete and _joins(run, g)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    if len(groups) == len(runs):
        return list(runs)
    labels = _labels(groups)
    return [
        replace(group[0], label=label) if len(group) == 1 else _merged(group, label)
        for group, label in zip(groups, labels, strict=True)
    ]


def _joins(run: RunView, group: Sequence[RunView]) -> bool:
    first = group[0]
    alike = bool(first.recipe) and _options(run) == _options(first) and first.complete
    return alike and run.tasks_key == first.tasks_key and seed_of(run) not in map(seed_of, group)


def _options(run: RunView) -> str:
    """All of a recipe but its seed and its name."""
    kept = {key: value for key, value in run.recipe.items() if key not in ("seed", "name")}
    return json.dumps(kept, sort_keys=True, default=str)


def _labels(groups: Sequence[Sequence[RunView]]) -> list[str]:
    """The methods' names; where two groups share one, with the first directory's name."""
    names = [group[0].method for group in groups]
    labels = [
        name if names.count(name) == 1 else f"{name} ({group[0].path.name})"
        for name, group in zip(names, groups, strict=True)
    ]
    return [
        label if labels.count(label) == 1 else f"{label} #{labels[: i + 1].count(label)}"
        for i, label in enumerate(labels)
    ]


def _merged(runs: Sequence[RunView], label: str) -> SeedsView:
    first = runs[0]
    matrix = _mean_matrix([run.matrix for run in runs])
    evidence, others = SeedsEvidence(runs), [run.other for run in runs]
    general = tuple(
        math.exp(fmean(map(math.log, values))) if min(values) > 0 else MISSING
        for values in zip(*(run.general for run in runs), strict=False)
    )
    fewest = {
        task.name: min(t.rows for run in runs for t in run.tasks if t.name == task.name)
        for task in first.tasks
    }
    return SeedsView(
        label=label,
        method=first.method,
        path=first.path,
        state="finished" if all(run.state == "finished" for run in runs) else first.state,
        tasks=tuple(replace(task, rows=fewest[task.name]) for task in first.tasks),
        unseen=tuple(line for run in runs for line in run.unseen),
        matrix=matrix,
        general=general,
        general_tasks=_mean_tasks(runs),
        log=mean_log([run.log for run in runs]),
        environment=first.environment,
        recipe={**first.recipe, "seed": ", ".join(map(seed_of, runs))},
        recipe_text=first.recipe_text,
        scoring_seconds=fmean(run.scoring_seconds for run in runs),
        evidence=evidence,
        scenario=first.scenario,
        other=_merged([one for one in others if one is not None], label) if all(others) else None,
        probes=first.probes,
        runs=tuple(runs),
    )


def _mean_matrix(matrices: Sequence[ScoreMatrix]) -> ScoreMatrix:
    """Cell by cell; a cell that one run lacks is missing."""
    first = matrices[0]
    found = ScoreMatrix(
        first.tasks, first.higher_is_better, first.in_shares, first.learned, first.rows,
        first.tested_on,
    )  # fmt: skip
    mean = np.mean([matrix.array() for matrix in matrices], axis=0)
    for after, row in enumerate(mean):
        for task, score in zip(first.tasks, row, strict=True):
            if not math.isnan(score):
                found.record(after, task, float(score))
    return found


def _mean_tasks(runs: Sequence[RunView]) -> tuple[tuple[TaskFacts, tuple[float, ...]], ...]:
    """lm-eval's tasks that all runs have, each one's mean scores."""
    every = [{task.name: scores for task, scores in run.general_tasks} for run in runs]
    return tuple(
        (task, tuple(map(fmean, zip(*(one[task.name] for one in every), strict=True))))
        for task, _ in runs[0].general_tasks
        if all(task.name in one for one in every)
    )


_PLACE = ("after", "task", "phase", "step")


def mean_log(logs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[dict[str, Any], ...]:
    """The steps' lines, each number a mean over the runs that logged it at that step.

    Times are left out: they are no one's. A step done again after a resume counts once, the last.
    """
    places: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for log in logs:
        mine = {
            tuple(line.get(k) for k in ("after", "task", "phase", "step")): line for line in log
        }
        for place, line in mine.items():
            places.setdefault(place, []).append(dict(line))
    found = []
    for lines in places.values():
        merged = {k: v for k, v in lines[0].items() if k != "time"}
        for key in dict.fromkeys(k for line in lines for k in line):
            values = [
                float(v) for line in lines if _is_number(v := line.get(key)) and v is not None
            ]
            if values and key not in ("after", "step", "steps"):
                merged[key] = fmean(values)
        found.append(merged)
    return tuple(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- which of two methods is ahead


def difference(
    first: RunView, second: RunView, value: Callable[[RunView], float | None]
) -> Interval | None:
    """How much higher a figure is in the first, with its interval over seeds.

    Paired where both ran with the same seeds, else Welch's of two samples; None where one of them
    has a single run or a figure is missing.
    """
    ours = {seed_of(run): value(run) for run in first.members}
    theirs = {seed_of(run): value(run) for run in second.members}
    a = {k: v for k, v in ours.items() if v is not None}
    b = {k: v for k, v in theirs.items() if v is not None}
    if len(a) < len(ours) or len(b) < len(theirs):
        return None
    return difference_over_seeds(a, b)
