"""What a run cost, from its facts, and accuracy against it: a chart a cost, a point a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from perdure.reports import charts
from perdure.reports.facts import MISSING
from perdure.reports.format import count, duration, number

if TYPE_CHECKING:
    from perdure.reports.data import RunView


def _facts(run: RunView, name: str) -> list[float]:
    return [float(fact["value"]) for fact in run.facts if fact["name"] == name]


def trained_parameters(run: RunView) -> float:
    """Parameters that a task trained, the mean over tasks; nan where not recorded."""
    return fmean(fmean(_facts(one, "trained_parameters") or [MISSING]) for one in run.members)


def learning_seconds(run: RunView) -> float:
    """Seconds of learning all tasks; of older runs those between logged steps."""
    return fmean(
        sum(found) if (found := _facts(one, "seconds")) else training_seconds(one)
        for one in run.members
    )


def training_seconds(run: RunView) -> float:
    """Seconds between logged steps of a task; pauses (a run killed and resumed) do not count."""
    gaps: list[float] = []
    for first, second in pairwise(run.log):
        if (first.get("after"), first.get("phase")) == (second.get("after"), second.get("phase")):
            try:
                start, end = (
                    datetime.fromisoformat(str(row["time"]).replace("Z", "+00:00"))
                    for row in (first, second)
                )
                gaps.append((end - start).total_seconds())
            except (KeyError, ValueError, TypeError):
                continue
    gaps = [gap for gap in gaps if gap >= 0]
    if not gaps:
        return MISSING
    pause = max(60.0, 20 * median(gaps))
    return sum(gap for gap in gaps if gap <= pause)


def seconds(run: RunView) -> float:
    """Seconds of learning and of scoring; those of probes, which are analysis, do not count."""
    probes = fmean(sum(line["seconds"] for line in one.probes) for one in run.members)
    return learning_seconds(run) + run.scoring_seconds - probes


def passes(run: RunView, name: str = "body_passes") -> float:
    """Texts that a classifier's body read in all, or (`body_passes_needed`) had to read."""

    def of(one: RunView) -> float:
        found = [*_facts(one, name), *(row[name] for row in one.counted if name in row)]
        return sum(found) if found else MISSING

    return fmean(of(one) for one in run.members)


def numbers(run: RunView) -> dict[str, float | None]:
    """The same as data, for `--json`; None where it is not known."""
    found = {
        "trained_parameters": trained_parameters(run),
        "seconds": seconds(run),
        "learning_seconds": learning_seconds(run),
        "body_passes": passes(run),
        "body_passes_needed": passes(run, "body_passes_needed"),
    }
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def tradeoffs(runs: Sequence[RunView]) -> list[charts.Chart]:
    """Accuracy against seconds, and against trained parameters; none of a single run."""
    if len(runs) < 2:
        return []
    wanted: list[tuple[str, str, Callable[[RunView], float], Callable[[float], str]]] = [
        ("Accuracy against time", "seconds, learning and scoring", seconds, duration),
        ("Accuracy against trained parameters", "parameters, mean over tasks",
         trained_parameters, count),
    ]  # fmt: skip
    drawn = [_chart(runs, title, axis, cost, show) for title, axis, cost, show in wanted]
    return [chart for chart in drawn if chart is not None]


def _chart(
    runs: Sequence[RunView],
    title: str,
    axis: str,
    spent_on: Callable[[RunView], float],
    show: Callable[[float], str],
) -> charts.Chart | None:
    found: list[tuple[int, Any, float, float]] = []
    for slot, run in enumerate(runs):
        score, spent = run.summary("average_accuracy"), spent_on(run)
        if score is not None and math.isfinite(spent) and spent > 0:
            found.append((slot, run, spent, score))
    if len(found) < 2:
        return None
    scores = charts.score_axis([score for *_, score in found])
    costs = [x for _, _, x, _ in found]
    low, high = min(costs), max(costs)
    log = high / low > 8
    marks = charts.log_ticks(low, high) if log else charts.nice_ticks(0, high)
    across = charts.x_scale(marks[0], marks[-1], log=log)
    # Names of ticks that would touch are left out.
    every = max(1, math.ceil(len(marks) / 6))
    points = [
        charts.Line(
            slot,
            "",
            (
                charts.Point(
                    across(x),
                    scores.scale(score),
                    f"{run.label}: {number(score)}, {show(x)}",
                ),
            ),
        )
        for slot, run, x, score in found
    ]
    return charts.Chart(
        title=title,
        note="logarithmic" if log else "",
        description="; ".join(f"{r.label}: {number(y)}, {show(x)}" for _, r, x, y in found) + ".",
        lines=tuple(points),
        x_ticks=tuple(charts.Tick(across(m), charts.short_label(m)) for m in marks[::every]),
        y_ticks=scores.ticks,
        x_title=axis,
        y_title="average accuracy",
        table=charts.Table(
            ("method", "average accuracy", axis),
            tuple((r.label, number(y, 3), show(x)) for _, r, x, y in found),
        ),
    )
