"""Which candidates are tried, and which of them is taken. Nothing here knows of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from perdure.repair.candidates import BASE, TUNED, Candidate, rewind
from perdure.repair.halves import Half
from perdure.repair.result import Point, goodness, percent
from perdure.streams import kinds

EQUAL = 0.02
"""Candidates that differ by at most this share of the lost general ability count as equal."""
MOST_EQUAL = 4
"""So many of them, those that kept most, are compared further."""
_ROUNDING = 1e-9


class Changed(Protocol):
    """What the search must know of the two models; a `perdure.repair.path.Line` has it."""

    @property
    def adapter(self) -> bool: ...
    @property
    def groups(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Grid:
    """What is tried."""

    factors: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Factors for all weights alike."""
    group_steps: tuple[float, ...] = (0.0, 0.5)
    """What a group's factor is multiplied by; each group is also undone alone."""
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    """Shares of each tensor's entries to undo; full models only, as the product of an adapter's
    matrices has no entries that could go back one by one."""

    def evaluations(self, changed: Changed) -> int:
        """The most candidates that `find` measures, base and tuned model among them."""
        groups = len(set(changed.groups.values()))
        of_groups = groups * (len(self.group_steps) + 1) if groups > 1 else 0
        return 2 + len(self.factors) + of_groups + (0 if changed.adapter else len(self.shares))


def find(
    measure: Callable[[Candidate], Point], changed: Changed, grid: Grid, max_task_loss: float
) -> list[Point]:
    """Measure candidates: base and tuned model first, then the grids.

    From the best common factor, the groups' factors are changed one after the other, the lowest
    layers first. Each group is also undone alone, in the tuned model. The next group's turn begins
    at the best candidate so far that qualifies.
    """
    tuned = measure(TUNED)
    points = [measure(BASE), tuned]
    points += [measure(rewind(factor)) for factor in grid.factors]

    def best() -> Candidate:
        fit = [point for point in points if qualifies(point, tuned, max_task_loss)]
        return min(fit or [tuned], key=lambda point: point.figures.general).candidate

    present = sorted(set(changed.groups.values()))
    tried = {point.candidate.factors for point in points}
    for group in present if len(present) > 1 else ():
        begin = best().factors
        ways = [_with(begin, group, begin[group] * step) for step in grid.group_steps]
        for factors in (*ways, _with(TUNED.factors, group, 0.0)):
            if factors not in tried:
                tried.add(factors)
                points.append(measure(Candidate("groups", factors)))
    if not changed.adapter:
        points += [measure(Candidate("prune", share=share)) for share in grid.shares]
    return points


def _with(factors: tuple[float, ...], group: int, factor: float) -> tuple[float, ...]:
    """The factors with one of them replaced."""
    return tuple(round(factor, 6) if at == group else f for at, f in enumerate(factors))


def qualifies(point: Point, tuned: Point, max_task_loss: float) -> bool:
    """Whether a candidate keeps enough of every task and loses less on general texts."""
    kept = all(share >= 1 - max_task_loss - _ROUNDING for share in point.kept.values())
    return kept and point.figures.general < tuned.figures.general


def contenders(points: Sequence[Point], max_task_loss: float) -> list[Point]:
    """The qualified candidates about as good as the best one; base is none.

    A loss below the base's is no reason to give up more of the task: all of those are as good as
    the base's. The candidate that kept most comes first, of equal ones the lowest general loss.

    Args:
        points: as `find` returns them: base, tuned, and the others.
    """
    base, tuned = points[0], points[1]
    lost = tuned.figures.general - base.figures.general
    if not (lost > 0 and gained(points)):
        return []
    fit = [point for point in points[2:] if qualifies(point, tuned, max_task_loss)]
    fit.sort(key=lambda point: point.figures.general)
    least = max(fit[0].figures.general if fit else math.inf, base.figures.general)
    near = [point for point in fit if point.figures.general <= least + EQUAL * lost]
    return sorted(near, key=lambda point: -point.worst)[:MOST_EQUAL]


def gained(points: Sequence[Point]) -> bool:
    """Whether the tuned model is better than the base on any task.

    The base keeps the whole of a gain only where there is none.
    """
    return any(share <= 0 for share in points[0].kept.values())


def reason(points: Sequence[Point], max_task_loss: float) -> str:
    """Why no candidate qualifies."""
    base, tuned = points[0], points[1]
    if not gained(points):
        return "the tuned model is no better than the base on any task: take the base"
    if tuned.figures.general <= base.figures.general:
        return "the tuned model lost nothing on the general texts"
    return (
        f"no candidate keeps {percent(1 - max_task_loss)} of the gain on every task and has a "
        "lower loss on general texts than the tuned model"
    )


def notes(
    points: Sequence[Point], search: Half, metrics: Mapping[str, str], max_task_loss: float
) -> Iterator[str]:
    """What the number of rows does not let the search tell."""
    base, tuned = points[0].figures.scores, points[1].figures.scores
    for task in search.tasks:
        metric = metrics[task.name]
        gain = goodness(metric, tuned[task.name]) - goodness(metric, base[task.name])
        if not gain > 0:
            yield f"{task.name}: the tuned model gained nothing on it; its score must not drop"
        elif kinds.metric(metric).scores_items and math.isfinite(gain):
            row = 1 / (len(task.test) * gain)
            if row > max_task_loss + _ROUNDING:
                yield (
                    f"{task.name}: one search row is {percent(row)} of the gain, so a loss of "
                    f"{percent(max_task_loss)} cannot be told: no row may be lost"
                )
