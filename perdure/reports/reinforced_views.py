"""Tasks learned from rewards, and warm-ups, as the page and the terminal show them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perdure.errors import printable
from perdure.reports import charts, glossary, training
from perdure.reports.facts import MISSING
from perdure.reports.format import DASH, count, duration, significant, titled
from perdure.reports.reinforced import (
    COMPARED,
    FIGURES,
    PHASES,
    REWARD,
    SECONDS,
    UNTIL,
    Reinforced,
    ended,
    is_look,
    tasks,
    warm_ups,
)

if TYPE_CHECKING:
    from rich.table import Table

    from perdure.reports.data import RunView

_SHADES = (50, 34, 18, 8)
"""Of the bar's phases: shades of one colour, the first the darkest."""
_SHARES = ("rl/dead_groups", "rl/truncated", "rl/clipped")
INTRO = (
    "Tasks that are learned from rewards: the model writes several answers to each prompt, and "
    "those that earn more than others of their group become more likely. The loss says little "
    "here: it is near 0 whatever is learned."
)
SECONDS_INTRO = (
    "Mean seconds of an optimizer step. Generation: the completions are written. Rewards: they are "
    "judged. Reference: passes of a frozen model for a method that compares with one. Update: all "
    "else, which is the policy’s forward and backward passes and the optimizer’s step."
)
WARM_INTRO = (
    "A task with until ends at the first look at which answers, sampled from the model as it is, "
    "reach what the recipe asks for: a mean reward from 0 to 1."
)


# --- on the page


def section(runs: Sequence[RunView]) -> dict[str, Any]:
    """What the template prints; its lists are empty where no task is learned from rewards."""
    found = [(slot, run, own) for slot, run in enumerate(runs) if (own := tasks(run))]
    warmed = [
        (slot, member, one)
        for slot, run in enumerate(runs)
        for member in run.members
        for one in warm_ups(member)
    ]
    every = [one for _, _, own in found for one in own]
    heads = [name for name in COMPARED if any(name in one.end for one in every)]
    rows = [
        {
            "label": run.label,
            "slot": slot,
            "task": one.task,
            "steps": count(one.steps),
            "cells": [_change(one, name) for name in heads],
            "bar": _bar(one),
            "step": seconds_of(one.whole) if one.seconds else DASH,
        }
        for slot, run, own in found
        for one in own
    ]
    drawn = list(dict.fromkeys(name for one in every for name in one.end))
    shown = [name for name in _order(drawn) if not _says_nothing(runs, name)]
    until = dict.fromkeys(UNTIL + name for _, _, one in warmed for name in one.found)
    return {
        "intro": INTRO,
        "heads": [FIGURES[name] for name in heads],
        "rows": rows,
        "seconds_intro": SECONDS_INTRO,
        "phases": [
            {"name": PHASES[phase], "shade": _SHADES[i]}
            for i, phase in enumerate(PHASES)
            if any(phase in one.seconds for one in every)
        ],
        "charts": [chart for name in shown for chart in _curves(runs, name)],
        "seconds": [
            chart
            for phase in PHASES
            if SECONDS + phase in drawn
            for chart in _curves(runs, SECONDS + phase)
        ],
        "warm_intro": WARM_INTRO,
        "warm": [
            {"label": member.label if len(runs) > 1 or len(runs[slot].members) > 1 else "",
             "slot": slot, "said": ended(one)}
            for slot, member, one in warmed
        ],
        "warm_charts": [chart for name in until for chart in _looks(runs, name)],
        "words": glossary.explained([*shown, *until]),
    }  # fmt: skip


def _order(names: Sequence[str]) -> list[str]:
    """The figures that are drawn: the reward, its parts, then all others."""
    parts = [name for name in names if name.startswith(f"{REWARD}/")]
    others = [name for name in FIGURES if name in names and name != REWARD]
    return [*(name for name in names if name == REWARD), *parts, *others]


def _says_nothing(runs: Sequence[RunView], name: str) -> bool:
    """Of what is 0 by its nature with one pass over the completions no chart is drawn."""
    return name == "rl/clipped" and not any(any(run.logged(name)) for run in runs)


def _change(one: Reinforced, name: str) -> str:
    if name not in one.end:
        return DASH
    return f"{printed(name, one.begin.get(name, MISSING))} → {printed(name, one.end[name])}"


def printed(name: str, value: float) -> str:
    """A figure of the log with the digits that it is worth."""
    if math.isnan(value):
        return DASH
    return f"{100 * value:.0f} %" if name in _SHARES else significant(value)


def _bar(one: Reinforced) -> list[dict[str, Any]]:
    """A step's seconds by phase: where a part of the bar begins, and how wide it is, in percent."""
    parts, left = [], 0.0
    for shade, phase in zip(_SHADES, PHASES, strict=True):
        if phase not in one.seconds or not one.whole:
            continue
        width = 100 * one.seconds[phase] / one.whole
        parts.append(
            {
                "name": PHASES[phase],
                "seconds": seconds_of(one.seconds[phase]),
                "share": f"{width:.0f} %",
                "left": round(left, 2),
                "width": round(width, 2),
                "shade": shade,
            }
        )
        left += width
    return parts


def seconds_of(seconds: float) -> str:
    """Seconds of a phase, which may be a fraction of one."""
    return f"{significant(seconds, 2)} s" if seconds < 10 else duration(seconds)


def _title(name: str) -> str:
    if name.startswith(f"{REWARD}/"):
        return f"reward: {name.removeprefix(f'{REWARD}/')}"
    if name.startswith(SECONDS):
        return f"seconds of {PHASES[name.removeprefix(SECONDS)]}"
    return f"sampled {name.removeprefix(UNTIL)}" if is_look(name) else FIGURES[name]


def _curves(runs: Sequence[RunView], name: str) -> list[charts.Chart]:
    """One figure of all runs on a shared axis, over the steps of tasks learned from rewards."""
    own = [_only(run, [run.position(one.task) for one in tasks(run)]) for run in runs]
    return training.step_charts(own, name, _titles(runs, name))


def _looks(runs: Sequence[RunView], name: str) -> list[charts.Chart]:
    own = [_only(run, [run.position(one.task) for one in warm_ups(run)]) for run in runs]
    return training.step_charts(own, name, _titles(runs, name))


def _titles(runs: Sequence[RunView], name: str) -> list[str]:
    return [f"{run.label}: {_title(name)}" if len(runs) > 1 else _title(name) for run in runs]


def _only(run: RunView, positions: Sequence[int | None]) -> RunView:
    """A run whose log has the lines of these tasks alone."""
    return replace(run, log=tuple(row for row in run.log if row.get("after") in positions))


# --- in a terminal


def tables(runs: Sequence[RunView]) -> Iterator[Table]:
    """A table over all runs with tasks that were learned from rewards, a column for each task."""
    from rich.text import Text

    found = [(run, one) for run in runs for one in tasks(run)]
    if not found:
        return
    table = titled("Learned from rewards: first tenth of the steps → last tenth")
    table.add_column("figure", overflow="fold")
    for run, one in found:
        named = f"{run.label}: {one.task}" if len(runs) > 1 else one.task
        table.add_column(Text(printable(named)), justify="right", overflow="fold")
    for name in COMPARED:
        if any(name in one.end for _, one in found):
            table.add_row(Text(FIGURES[name]), *(Text(_change(one, name)) for _, one in found))
    for phase in PHASES:
        if any(phase in one.seconds for _, one in found):
            cells = [seconds_words(one, phase) for _, one in found]
            table.add_row(Text(f"seconds a step: {PHASES[phase]}"), *map(Text, cells))
    yield table


# --- as columns of a table of runs


def csv_heads(runs: Sequence[RunView]) -> list[str]:
    """Columns of each task that some run learned from rewards: first and last tenth of its steps,
    and the seconds of a step."""
    ends = [f"{_plain(name)}_{at}" for name in COMPARED for at in ("begin", "end")]
    return [f"rl:{task}:{end}" for task in _learned(runs) for end in (*ends, "step_seconds")]


def csv_cells(run: RunView, runs: Sequence[RunView]) -> list[float | None]:
    """One run's cells of `csv_heads`; None where there is no figure."""
    own = {one.task: one for one in tasks(run)}
    cells: list[float | None] = []
    for task in _learned(runs):
        one = own.get(task)
        for name in COMPARED:
            cells += [None, None] if one is None else [one.begin.get(name), one.end.get(name)]
        cells.append(one.whole if one is not None and one.seconds else None)
    return cells


def short_heads(runs: Sequence[RunView]) -> list[str]:
    """As `csv_heads`, what a rounded table has room for: each task's reward."""
    return [f"Reward: {task} ↑" for task in _learned(runs)]


def short_cells(run: RunView, runs: Sequence[RunView]) -> list[str]:
    own = {one.task: one for one in tasks(run)}
    return [_change(own[task], REWARD) if task in own else DASH for task in _learned(runs)]


def _learned(runs: Sequence[RunView]) -> list[str]:
    return list(dict.fromkeys(one.task for run in runs for one in tasks(run)))


def _plain(name: str) -> str:
    return name.rpartition("/")[2]


def seconds_words(one: Reinforced, phase: str) -> str:
    """Seconds of a phase and its share of a step: "0.16 (41 %)"."""
    if phase not in one.seconds:
        return DASH
    value = one.seconds[phase]
    return f"{significant(value, 2)} ({100 * value / one.whole:.0f} %)"


def lines(runs: Sequence[RunView]) -> Iterator[str]:
    """Where each warm-up ended, a line each."""
    for run in runs:
        for member in run.members:
            for one in warm_ups(member):
                yield f"{member.label}: {ended(one)}"
