"""What a run's tasks with `learn: rl` earned, step by step, where their time went, and warm-ups.

    curves       what was logged as `rl/...` at each step, over the steps of these tasks alone
    begin, end   means over the first and the last tenth of a task's steps
    seconds      of a step by phase: generation, rewards, reference, update
    warm-ups     what sampled answers reached (`until/...`), and at which step that ended a task

All of it comes from log.jsonl; what a warm-up was to reach from the recipe. Of several seeds all
figures are means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from perdure.errors import printable
from perdure.reports import charts, glossary, training
from perdure.reports.facts import MISSING
from perdure.reports.format import DASH, count, duration, significant, titled

if TYPE_CHECKING:
    from rich.table import Table

    from perdure.reports.data import RunView

REWARD, KL, UNTIL = "rl/reward", "method/kl", "until/"
SECONDS = "rl/seconds_"
PHASES: Mapping[str, str] = {
    "generation": "generation",
    "rewards": "rewards",
    "reference": "reference",
    "update": "update",
}
"""Phases of a step in their order, as they are logged after `rl/seconds_`, and what they are
called; colours of the bar are shades of one, of which the first is the darkest."""
_SHADES = (50, 34, 18, 8)
FIGURES: Mapping[str, str] = {
    REWARD: "reward",
    "rl/reward_std": "spread in a group",
    "rl/dead_groups": "dead groups",
    "rl/truncated": "truncated",
    "rl/length": "length",
    "rl/entropy": "entropy",
    "rl/clipped": "clipped",
    KL: "KL from the reference",
}
"""What is drawn, in this order, and its title; parts of the reward come after the reward."""
COMPARED = (REWARD, "rl/reward_std", "rl/dead_groups", "rl/truncated", "rl/length", KL)
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


@dataclass(frozen=True)
class Reinforced:
    """Of one task, means over seeds; a name that was not logged is not there."""

    task: str
    steps: float
    begin: Mapping[str, float]
    """By the name in the log, the mean over the first tenth of its steps."""
    end: Mapping[str, float]
    """The same over the last tenth."""
    seconds: Mapping[str, float]
    """Of a step, by phase."""

    @property
    def whole(self) -> float:
        """Seconds of a step."""
        return math.fsum(self.seconds.values())


@dataclass(frozen=True)
class Warmed:
    """How a task with `until` ended."""

    task: str
    step: int
    """Its last one so far, of at most `steps`."""
    steps: int
    found: Mapping[str, float]
    """At the last look, by reward."""
    wanted: Mapping[str, tuple[float, float | None]]
    """Least and most; None: no limit."""

    @property
    def reached(self) -> bool:
        return bool(self.found) and all(
            value >= self.wanted.get(name, (0.0, None))[0] for name, value in self.found.items()
        )


def tasks(run: RunView) -> list[Reinforced]:
    """Each task that was learned from rewards, in order; empty without one."""
    found = []
    for after, task in enumerate(run.tasks, start=1):
        each = [own for one in run.members if (own := _of_one(one, after, task.name))]
        if each:
            found.append(
                Reinforced(
                    task.name,
                    fmean(one.steps for one in each),
                    _mean([one.begin for one in each]),
                    _mean([one.end for one in each]),
                    _mean([one.seconds for one in each]),
                )
            )
    return found


def _of_one(run: RunView, after: int, task: str) -> Reinforced | None:
    lines = sorted(_lines(run, after).items())
    if not any(REWARD in line for _, line in lines):
        return None
    # A line is the mean of the steps since the one before it, of which the last has fewer.
    before = [0, *(step for step, _ in lines)]
    counts = [step - last for (step, _), last in zip(lines, before, strict=False)]
    tenth = max(1, len(lines) // 10)
    names = [n for n in dict.fromkeys(n for _, line in lines for n in line) if _is_figure(n)]

    def mean(part: slice) -> dict[str, float]:
        chosen = list(zip(lines[part], counts[part], strict=True))
        every = {n: [(line[n], k) for (_, line), k in chosen if n in line] for n in names}
        return {
            name: math.fsum(value * k for value, k in pairs) / sum(k for _, k in pairs)
            for name, pairs in every.items()
            if sum(k for _, k in pairs)
        }

    whole = mean(slice(None))
    return Reinforced(
        task,
        lines[-1][0],
        mean(slice(0, tenth)),
        mean(slice(-tenth, None)),
        {phase: whole[SECONDS + phase] for phase in PHASES if SECONDS + phase in whole},
    )


def _lines(run: RunView, after: int) -> dict[int, Mapping[str, Any]]:
    """Of a task, by step: steps done again after a resume replace those of a killed process."""
    return {int(row["step"]): row for row in run.log if row.get("after") == after}


def _is_figure(name: str) -> bool:
    return name.startswith("rl/") or name == KL


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in found for name in one)
    return {name: fmean(one[name] for one in found if name in one) for name in names}


def warm_ups(run: RunView) -> list[Warmed]:
    """Each task of one run that ends by what is sampled, in order."""
    found = []
    for after, task in enumerate(run.tasks, start=1):
        lines = _lines(run, after)
        looks = [line for _, line in sorted(lines.items()) if any(map(_is_look, line))]
        if not looks:
            continue
        values = {n.removeprefix(UNTIL): float(v) for n, v in looks[-1].items() if _is_look(n)}
        last = max(lines)
        steps = int(lines[last].get("steps") or last)
        found.append(Warmed(task.name, last, steps, values, _wanted(run, task.name)))
    return found


def _is_look(name: str) -> bool:
    return name.startswith(UNTIL)


def _wanted(run: RunView, task: str) -> dict[str, tuple[float, float | None]]:
    stream = run.recipe.get("stream")
    listed = stream.get("tasks") if isinstance(stream, Mapping) else None
    own: Mapping[str, Any] = next((one for one in listed or () if one.get("name") == task), {})
    reach = (own.get("until") or {}).get("reach") or {}
    return {
        name: (float(given[0]), float(given[1])) if isinstance(given, list) else (given, None)
        for name, given in reach.items()
    }


def ended(one: Warmed) -> str:
    """Where a warm-up ended, in a sentence."""
    told = []
    for name, value in one.found.items():
        low, high = one.wanted.get(name, (None, None))
        asked = "" if low is None else f" (asked for: {low:g} or more)"
        asked = f" (asked for: {low:g} to {high:g})" if high is not None else asked
        told.append(f"{name} {significant(value)}{asked}")
    looked = ", ".join(told)
    if not one.reached:
        return f"{one.task} did not reach it in its {one.step} steps; at the last look {looked}"
    over = [
        name
        for name, value in one.found.items()
        if (high := one.wanted.get(name, (0.0, None))[1]) is not None and value > high
    ]
    late = f"; {over[0]} was above its limit by then, so that less is left to learn" if over else ""
    return f"{one.task} ended at step {one.step} of at most {one.steps}: {looked}{late}"


# --- as numbers


def numbers(run: RunView) -> list[dict[str, Any]]:
    """The same for `--json`: a line for each task; names are those of the log after `rl/`."""
    return [
        {
            "task": one.task,
            "steps": one.steps,
            "begin": _named(one.begin),
            "end": _named(one.end),
            "seconds": {**one.seconds, "step": one.whole},
        }
        for one in tasks(run)
    ]


def warm_up_numbers(run: RunView) -> list[dict[str, Any]]:
    return [
        {
            "run": str(member.path),
            "task": one.task,
            "step": one.step,
            "steps": one.steps,
            "found": dict(one.found),
            "reached": one.reached,
        }
        for member in run.members
        for one in warm_ups(member)
    ]


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {
        name.rpartition("method/")[2].removeprefix("rl/"): value
        for name, value in values.items()
        if not name.startswith(SECONDS)
    }


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
    return f"sampled {name.removeprefix(UNTIL)}" if _is_look(name) else FIGURES[name]


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
