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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from perdure.recipe.data import short_name
from perdure.reports.format import significant

if TYPE_CHECKING:
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
called."""
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
    chosen = list(zip([line for _, line in lines], counts, strict=True))
    names = [n for n in dict.fromkeys(n for _, line in lines for n in line) if _is_figure(n)]
    # Of several passes over the same completions only the first has what they earned.
    every = {n: [(line[n], k) for line, k in chosen if n in line] for n in names}
    tenths = {name: max(1, len(pairs) // 10) for name, pairs in every.items()}
    # No completions are made in the others, which takes no time.
    spent = {p: [(line.get(SECONDS + p, 0.0), k) for line, k in chosen] for p in PHASES}
    return Reinforced(
        task,
        lines[-1][0],
        _means({name: pairs[: tenths[name]] for name, pairs in every.items()}),
        _means({name: pairs[-tenths[name] :] for name, pairs in every.items()}),
        _means({phase: pairs for phase, pairs in spent.items() if SECONDS + phase in every}),
    )


def _means(every: Mapping[str, Sequence[tuple[float, int]]]) -> dict[str, float]:
    """Of each name, the mean of its values, each for so many steps."""
    return {
        name: math.fsum(value * k for value, k in pairs) / sum(k for _, k in pairs)
        for name, pairs in every.items()
        if sum(k for _, k in pairs)
    }


def _lines(run: RunView, after: int) -> dict[int, Mapping[str, Any]]:
    """Of a task, by step: steps done again after a resume replace those of a killed process."""
    if "log by task" not in run.memo:
        found: dict[Any, dict[int, Mapping[str, Any]]] = {}
        for row in run.log:
            found.setdefault(row.get("after"), {})[int(row["step"])] = row
        run.memo["log by task"] = found
    lines: dict[int, Mapping[str, Any]] = run.memo["log by task"].get(after, {})
    return lines


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
        looks = [line for _, line in sorted(lines.items()) if any(map(is_look, line))]
        if not looks:
            continue
        values = {n.removeprefix(UNTIL): float(v) for n, v in looks[-1].items() if is_look(n)}
        last = max(lines)
        steps = int(lines[last].get("steps") or last)
        found.append(Warmed(task.name, last, steps, values, _wanted(run, task.name)))
    return found


def is_look(name: str) -> bool:
    return name.startswith(UNTIL)


def _wanted(run: RunView, task: str) -> dict[str, tuple[float, float | None]]:
    stream = run.recipe.get("stream")
    listed = stream.get("tasks") if isinstance(stream, Mapping) else None
    own: Mapping[str, Any] = next((one for one in listed or () if one.get("name") == task), {})
    reach = (own.get("until") or {}).get("reach") or {}
    return {
        short_name(name): (float(given[0]), float(given[1]))
        if isinstance(given, list)
        else (given, None)
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
        return f"{one.task} did not reach its until in {one.step} steps; at the last look {looked}"
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
