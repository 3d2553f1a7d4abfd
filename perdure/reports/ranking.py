"""Which run is ahead of which: only where their difference lies beyond its interval.

Runs that were scored on the same rows are compared row by row. A run is best at a figure if it is
ahead of every other one; where two cannot be told apart, neither is. General ability is ranked like
the figures of the tasks. A mean over seeds is ahead only if the seeds and the rows both say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from perdure.reports import findings, seeds, words
from perdure.reports.data import SUMMARY, RunView, comparable
from perdure.reports.evidence import general_difference
from perdure.reports.format import listing
from perdure.scoring.resampling import Interval

GENERAL = "general"
"""Beside the figures of `SUMMARY`: the change on general text since the base model."""
_HIGHER = {key: higher for key, _, higher, _ in SUMMARY}


def ahead(first: RunView, second: RunView, key: str) -> bool:
    """Whether `first` was shown to be better than `second` at a figure."""
    if len(first.members) > 1 or len(second.members) > 1:
        return _ahead_over_seeds(first, second, key)
    if key == GENERAL:
        difference = general_difference(first.evidence, second.evidence)
        return difference is not None and difference.low > 0
    ends = _by_rows(first, second, key)
    return ends is not None and _better(ends, key)


def _by_rows(first: RunView, second: RunView, key: str) -> Interval | None:
    ours, theirs = first.evidence.figure(key), second.evidence.figure(key)
    return None if ours is None or theirs is None else ours.minus(theirs).interval()


def _better(ends: Interval, key: str) -> bool:
    return ends.low > 0 if _HIGHER.get(key, True) else ends.high < 0


def _ahead_over_seeds(first: RunView, second: RunView, key: str) -> bool:
    """By seeds, and by rows: all seeds may be scored on the same few rows."""
    if key == GENERAL:
        ends = seeds.difference(first, second, _general_gain)
        # Without any spread nothing is known of the seeds; general texts are not asked again.
        return ends is not None and ends.low > 0 and ends.low < ends.value
    ends = seeds.difference(first, second, lambda run: run.summary(key))
    rows = _by_rows(first, second, key)
    return ends is not None and rows is not None and _better(ends, key) and _better(rows, key)


def _general_gain(run: RunView) -> float | None:
    change = run.evidence.general_change
    return None if change is None or math.isnan(change.mean) else change.mean


def best(runs: Sequence[RunView], key: str) -> int | None:
    """The number of the run that is ahead of all others; None where there is none."""
    if len(runs) < 2 or not comparable(runs):
        return None
    for index, run in enumerate(runs):
        if all(ahead(run, other, key) for other in runs if other is not run):
            return index
    return None


def leading(runs: Sequence[RunView], key: str) -> list[RunView]:
    """The runs that are ahead of another one and behind none."""
    behind = [any(ahead(other, run, key) for other in runs if other is not run) for run in runs]
    return [run for run, back in zip(runs, behind, strict=True) if not back] if any(behind) else []


def headline(runs: Sequence[RunView]) -> str:
    """The finding of the whole report in one line."""
    if len(runs) == 1:
        return words.headline(runs[0])
    if not comparable(runs):
        alike = len({frozenset(task.name for task in run.tasks) for run in runs}) == 1
        how = "of the same tasks, not all learned and scored alike"
        return f"{len(runs)} runs {how if alike else 'over different tasks'}"
    if any(run.summary("average_accuracy") is None for run in runs):
        return f"{len(runs)} methods over the same tasks, not all of them finished"
    knows, general = leading(runs, "average_accuracy"), leading(runs, GENERAL)
    clauses = []
    if knows and _labels(knows) == _labels(general):
        one = len(knows) == 1
        clauses.append(f"{_names(knows)} know{'s' * one} the most at the end and "
                       f"{'has' if one else 'have'} the best general ability")  # fmt: skip
    else:
        if knows:
            rest = [run for run in runs if run not in knows]
            more = (
                f"more at the end than {rest[0].label}" if len(runs) == 2 else "the most at the end"
            )
            clauses.append(f"{_names(knows)} know{'s' * (len(knows) == 1)} {more}")
        if general:
            verb = "has" if len(general) == 1 else "have"
            clauses.append(f"{_names(general)} {verb} the best general ability")
    lost = {run.label: findings.account(run).lost for run in runs}
    losers = [label for label, names in lost.items() if names]
    if len(losers) == 1:
        clauses.append(f"{losers[0]} lost {words.some(lost[losers[0]], len(lost[losers[0]]))}")
    elif losers and len(losers) < len(runs):
        who = listing(losers) if len(losers) < 3 else f"{len(losers)} others"
        clauses.append(f"{who} lost what they had known")
    elif losers and not clauses:
        clauses.append("All of them lost something, and none is clearly ahead at the end")
    return "; ".join(clauses) or "No method is clearly ahead at the end"


def _labels(runs: Sequence[RunView]) -> set[str]:
    return {run.label for run in runs}


def _names(runs: Sequence[RunView]) -> str:
    return listing([run.label for run in runs]) if len(runs) <= 3 else f"{len(runs)} methods"
