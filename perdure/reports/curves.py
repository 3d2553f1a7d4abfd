"""Charts of what was logged at each step of training: faint values under their moving mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from perdure.reports import caps
from perdure.reports.charts import (
    CHARACTER,
    Axis,
    Chart,
    Line,
    Mark,
    Point,
    Scale,
    Table,
    Tick,
    nice_ticks,
    polyline,
    tick_label,
    x_scale,
)


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of one task: its name, and (step counted over the run, value) pairs."""

    task: str
    start: float
    end: float
    values: tuple[tuple[float, float], ...]


_FEW = 4
"""Values of a stretch up to which each is marked."""
_MARKED = 8
"""Beginnings of tasks that are marked where there are many."""


def over_steps(
    *,
    title: str,
    note: str,
    slot: int,
    stretches: Sequence[Stretch],
    axis: Axis,
    show: Callable[[float], str],
    y_title: str = "",
) -> Chart:
    """A value logged at each step, faintly, under its moving mean within each task; of many tasks
    over all."""
    end = max((s.end for s in stretches), default=1.0)
    across = x_scale(0, end)
    lines: list[Line] = []
    rows = []
    many = len(stretches) > caps.MOST_MAPPED
    if many:  # a line for each would be a thousand of a few points
        every = [value for stretch in stretches for value in stretch.values]
        raw = [(across(x), axis.scale(v)) for x, v in _thin(every, 600)]
        smooth = [(across(x), axis.scale(v)) for x, v in _thin(moving_mean(every), 240)]
        lines = [Line(slot, polyline(raw), faint=True), Line(slot, polyline(smooth))]
    for stretch in caps.some_of(stretches, caps.LISTED) if many else stretches:
        if not many:
            lines += _of_stretch(stretch, slot, across, axis, show)
        seen = [v for _, v in stretch.values]
        tail = seen[-max(1, len(seen) // 10) :]
        if seen:
            rows.append(
                (
                    stretch.task,
                    str(len(seen)),
                    show(seen[0]),
                    show(min(seen)),
                    show(max(seen)),
                    show(sum(tail) / len(tail)),
                )
            )
    ticks = [t for t in nice_ticks(0, end) if t <= end * 1.001 and t == int(t)]
    return Chart(
        title=title,
        note=note,
        y_title=y_title,
        description="; ".join(f"{r[0]}: first {r[2]}, at the end {r[5]}" for r in rows) + ".",
        lines=tuple(lines),
        x_ticks=tuple(Tick(across(t), tick_label(t)) for t in ticks),
        y_ticks=axis.ticks,
        x_title="optimizer steps",
        marks=tuple(_marked(stretches, across)),
        table=Table(
            ("task", "logged", "first", "lowest", "highest", "mean of last tenth"),
            tuple(rows),
            f"Of {caps.LISTED} of {len(stretches):,} tasks, evenly spaced." if many else "",
        ),
    )


def _of_stretch(
    stretch: Stretch, slot: int, across: Scale, axis: Axis, show: Callable[[float], str]
) -> list[Line]:
    """What was logged of one task, faintly, and its moving mean."""
    raw = [(across(x), axis.scale(v)) for x, v in _thin(stretch.values, 240)]
    smooth = [(across(x), axis.scale(v)) for x, v in _thin(moving_mean(stretch.values), 120)]
    few = len(smooth) <= _FEW  # a line of one value would not be seen
    dots = [
        Point(*spot, f"{stretch.task}, step {x - stretch.start:g}: {show(v)}")
        for spot, (x, v) in zip(raw, stretch.values, strict=False)
        if few
    ]
    return [Line(slot, polyline(raw), faint=True), Line(slot, polyline(smooth), tuple(dots))]


def _marked(stretches: Sequence[Stretch], across: Scale) -> list[Mark]:
    """Where tasks begin; of many tasks some, by their numbers."""
    if len(stretches) <= caps.MOST_MAPPED:
        return [Mark(across(s.start), _fitting(s, i, across)) for i, s in enumerate(stretches)]
    places = caps.spaced(len(stretches), _MARKED + 1)[:-1]
    return [Mark(across(stretches[i].start), f"{i + 1:,}") for i in places]


def _fitting(stretch: Stretch, index: int, across: Scale) -> str:
    """The task's name as far as its stretch has room for it, or its number."""
    room = int((across(stretch.end) - across(stretch.start)) / CHARACTER)
    if len(stretch.task) <= room:
        return stretch.task
    return f"{stretch.task[: room - 1]}…" if room >= 6 else str(index + 1)


def moving_mean(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred mean over a twentieth of the points on either side; near an end, of fewer."""
    reach = len(values) // 20
    sums = [0.0, *accumulate(v for _, v in values)]  # a window's sum is a difference of two
    means = []
    for i, (x, _) in enumerate(values):
        near = min(reach, i, len(values) - 1 - i)  # symmetric: an end is not pulled inwards
        means.append((x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)))
    return means


def _thin(values: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: each the mean of as many neighbours."""
    size = math.ceil(len(values) / most) or 1
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return [(sum(x for x, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]
