"""The page's section on training: the tasks' own losses, the methods' terms, their sum, gauges."""

from __future__ import annotations

import math
from collections.abc import Sequence

from perdure.reports import charts, curves, glossary
from perdure.reports.data import RunView
from perdure.reports.format import significant

SUM = "their sum: what was trained on"
"""Title of a single run's chart, which stands beside those of its parts."""


def losses(runs: Sequence[RunView]) -> list[charts.Chart]:
    """The tasks' own loss of each run on one shared axis; of older runs the whole loss."""
    own = all(run.logged("task_loss") for run in runs if run.log)
    titles = [run.label if len(runs) > 1 else f"{run.label}: the task’s own loss" for run in runs]
    return step_charts(runs, *(("task_loss", titles) if own else ("loss", _labels(runs))))


def sums(runs: Sequence[RunView]) -> list[charts.Chart]:
    """What was trained on, where methods add terms: the task's own loss and all of them."""
    adding = [run for run in runs if run.logged("task_loss") != run.logged("loss")]
    adding = [run for run in adding if run.logged("task_loss")]
    shown = {run.label if len(runs) > 1 else SUM for run in adding}
    every = step_charts(runs, "loss", _labels(runs) if len(runs) > 1 else [SUM])
    return [chart for chart in every if chart.title in shown]


def _labels(runs: Sequence[RunView]) -> list[str]:
    return [run.label for run in runs]


def logged_words(runs: Sequence[RunView]) -> list[tuple[str, str]]:
    """What the figures are that these runs logged."""
    keys = [key for run in runs for key in ("task_loss", "loss", *run.method_keys, *run.gauge_keys)]
    return glossary.explained(
        key for key in dict.fromkeys(keys) if any(run.logged(key) for run in runs)
    )


def method_losses(runs: Sequence[RunView]) -> list[charts.Chart]:
    """The methods' terms and figures (`method/...`), each name on an axis of its own.

    A term is drawn as it is, its weight stands beside its name.
    """
    every = dict.fromkeys(key for run in runs for key in run.method_keys)
    drawn = []
    for key in (key for key in every if not glossary.is_weight(key, every)):
        # method/gere_margin of the run "gere": the label says gere already.
        name = key.removeprefix("method/")
        titles = [f"{run.label}: {_without(name, run.method)}" for run in runs]
        drawn += step_charts(runs, key, titles, [_times(run, key) for run in runs])
    return drawn


def gauges(runs: Sequence[RunView]) -> list[charts.Chart]:
    """How far the model moved from its base, each gauge on an axis of its own."""
    keys = dict.fromkeys(key for run in runs for key in run.gauge_keys)
    format = {
        "gauge/flip_share": "share of states that moved",
        "gauge/kl": "KL from the base model",
    }
    return [
        chart
        for key in keys
        for chart in step_charts(runs, key, [f"{r.label}: {format.get(key, key)}" for r in runs])
    ]


def _unit(key: str, run: RunView) -> str:
    """A class is one prediction a text; a decoder's warm-up alone predicts tokens there."""
    unit = glossary.unit_of(key) or _said(key)
    if key in ("loss", "task_loss") and run.logged("rl/reward"):
        return "loss"  # a policy's is in no unit, and near 0 whatever is learned
    return "nats" if run.scenario and unit == glossary.NATS else unit


def _said(key: str) -> str:
    """The unit of a foreign method's figure is its name."""
    return key.partition("/")[2] or key


def _without(name: str, method: str) -> str:
    rest = name.removeprefix(method).lstrip("_/")
    return rest if rest and name.startswith((f"{method}_", f"{method}/")) else name


def _times(run: RunView, key: str) -> str:
    """The weight of a term, for beside its name: "times 0.86", or from least to most."""
    found = run.logged(glossary.weight_of(key))
    if not found:
        return ""
    ends = list(dict.fromkeys(map(significant, (min(found), max(found)))))
    return f"times a weight of {' to '.join(ends)}"


def step_charts(
    runs: Sequence[RunView], key: str, titles: Sequence[str], notes: Sequence[str] = ()
) -> list[charts.Chart]:
    """A chart for each run that logged a figure, over its steps, all on one axis.

    Args: titles, notes: one of each for a run.
    """
    parts = {slot: stretches(run, key) for slot, run in enumerate(runs)}
    values = [v for found in parts.values() for s in found for _, v in s.values]
    if not values:
        return []
    axis = charts.value_axis(values, from_zero=min(values) >= 0)
    return [
        curves.over_steps(
            title=titles[slot],
            note=notes[slot] if notes else "",
            slot=slot,
            stretches=found,
            axis=axis,
            show=significant,
            y_title=_unit(key, runs[slot]),
        )
        for slot, found in parts.items()
        if any(s.values for s in found)
    ]


def stretches(run: RunView, key: str) -> list[curves.Stretch]:
    """What was logged under `key`, by task and phase, steps counted on over the whole run."""
    groups: dict[tuple[int, str, str], dict[int, float]] = {}
    lengths: dict[tuple[int, str, str], int] = {}
    made: dict[tuple[int, str, str], int] = {}
    for row in run.log:
        group = (int(row.get("after", 0)), str(row.get("task", "")), str(row.get("phase", "main")))
        step = int(row.get("step", 0))
        lengths[group] = max(lengths.get(group, 0), step, int(row.get("steps") or 0))
        made[group] = max(made.get(group, 0), step)
        value = row.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            # Steps done again after a resume replace what a killed process had logged.
            groups.setdefault(group, {})[step] = float(value)
    going_on = None if run.complete or not lengths else max(lengths, key=lambda group: group[0])
    # What is over may have ended before its last step, as a warm-up does.
    lengths = {g: n if g == going_on else made[g] for g, n in lengths.items()}
    found, start = [], 0
    phases = {(after, task): 0 for after, task, _ in lengths}
    for after, task, _ in lengths:
        phases[(after, task)] += 1
    for group, length in sorted(lengths.items(), key=lambda item: item[0][0]):
        after, task, phase = group
        name = f"{task} ({phase})" if phases[(after, task)] > 1 else task
        pairs = sorted(groups.get(group, {}).items())
        values = tuple((float(start + s), v) for s, v in pairs)
        found.append(curves.Stretch(name, float(start), float(start + length), values))
        start += length
    return found
