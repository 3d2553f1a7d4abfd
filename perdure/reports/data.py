"""What a report reads from a run, digested once and shared by all views (page, terminal, figure).

A view is data: it knows no HTML and no colours. Summary figures come from `ScoreMatrix` alone;
a figure that needs a cell which was never scored is None, and is shown as missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from perdure.reports import scenarios
from perdure.reports.caps import MOST_CELLS
from perdure.reports.evidence import Evidence, Margins
from perdure.reports.facts import (
    MISSING,
    TaskFacts,
    facts_of,
    recipe_of,
    stream_facts,
    stream_names,
)
from perdure.run.directory import only_scored, tested_on
from perdure.scoring.lines import UNREAD
from perdure.scoring.matrix import ScoreMatrix, ScoreMissing

SUMMARY: tuple[tuple[str, str, bool, str], ...] = (
    # attribute of ScoreMatrix, heading, higher is better, what it is
    (
        "average_accuracy",
        "Average accuracy",
        True,
        "Mean score over all tasks after the last one was learned.",
    ),
    (
        "average_incremental_accuracy",
        "Average incremental accuracy",
        True,
        "Mean over all steps of the mean score, after that step, over the tasks learned by then.",
    ),
    (
        "backward_transfer",
        "Backward transfer",
        True,
        "Mean change on earlier tasks, from just learned to the end. Negative is forgetting.",
    ),
    (
        "forgetting",
        "Forgetting",
        False,
        "Mean drop on earlier tasks, from the best they ever scored to the end.",
    ),
    (
        "forward_transfer",
        "Forward transfer",
        True,
        "Mean change on a task from the base model to just before it is learned.",
    ),
    (
        "learning_accuracy",
        "Learning accuracy",
        True,
        "Mean score on each task just after it was learned: how well new things are taken in.",
    ),
)

LEVELS = ("average_accuracy", "average_incremental_accuracy", "learning_accuracy")
"""Those that are scores themselves; the others are changes of scores."""


__all__ = [
    "LEVELS",
    "MISSING",
    "SUMMARY",
    "RunData",
    "RunView",
    "TaskFacts",
    "comparable",
    "task_order",
    "views",
]


class RunData(Protocol):
    """The part of `perdure.run.Run` that reports read; the formats are those of its files."""

    @property
    def path(self) -> Path: ...
    @property
    def methods_name(self) -> str: ...
    @property
    def state(self) -> str: ...
    def scores(self) -> list[dict[str, Any]]: ...
    def log_rows(self) -> list[dict[str, Any]]: ...
    def facts(self) -> list[dict[str, Any]]: ...
    def environment(self) -> dict[str, Any]: ...
    def items(self, after: int, task: str) -> list[dict[str, Any]]: ...
    def general_items(self, after: int, task: str | None = None) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class RunView:
    """One run, ready to be shown. Arrays over time have T+1 entries; entry 0 is the base model."""

    label: str
    """Its method; where two runs of a report share it, with the directory's name."""
    method: str
    path: Path
    state: str
    tasks: tuple[TaskFacts, ...]
    """Tasks of the stream, in the order they were learned."""
    unseen: tuple[tuple[str, int, float], ...]
    """(task, after, score) of tasks that are not in the stream (`perdure eval`)."""
    matrix: ScoreMatrix
    general: tuple[float, ...]
    """Perplexity on general text by `after`; nan where it was not measured."""
    general_tasks: tuple[tuple[TaskFacts, tuple[float, ...]], ...]
    """Tasks of lm-eval: how each is scored, and its score by `after`; nan where missing."""
    log: tuple[dict[str, Any], ...]
    environment: dict[str, Any]
    recipe: dict[str, Any]
    recipe_text: str
    scoring_seconds: float
    evidence: Evidence
    """Intervals of all of it; computed when asked for."""
    facts: tuple[dict[str, Any], ...] = ()
    """What was found at the tasks' ends: `after`, `task`, `name`, `value`."""
    counted: tuple[dict[str, Any], ...] = ()
    """Lines of scores.jsonl that count what scoring read."""
    scenario: str = ""
    """Of classes: which of them compete in these scores; else empty."""
    other: RunView | None = None
    """Of classes: the same run in the other scenario."""
    probes: tuple[dict[str, Any], ...] = ()
    """Lines of probes; see `reports.probed`."""
    unread: Mapping[tuple[int, str], float] = field(default_factory=dict)
    """By (after, task) the share of texts in which no answer could be read, where answers are
    tagged."""
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was computed from all of it, by name: computed once."""

    def score(self, after: int, task: str) -> float:
        """Score on `task` after `after` tasks were learned; nan where it was never measured."""
        column = self.matrix.column(task)
        if column is None or after > len(self.tasks):
            return MISSING
        return float(self.scores[after, column])

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """The score matrix, (T+1, T); nan where a cell is missing."""
        return self.matrix.array()

    def over_time(self, task: str) -> list[float]:
        column = self.matrix.column(task)
        if column is None:
            return [MISSING] * (len(self.tasks) + 1)
        return [float(score) for score in self.scores[:, column]]

    def position(self, task: str) -> int | None:
        """Number of tasks learned once `task` is, counted from 1; None if not in this stream."""
        column = self.matrix.column(task)
        return None if column is None else column + 1

    def learned_at(self, task: str) -> int:
        """The same of a task that is in the stream."""
        found = self.matrix.column(task)
        assert found is not None
        return found + 1

    def summary(self, name: str) -> float | None:
        """One of `SUMMARY`, or None where a cell that it needs is missing."""
        if name not in self.memo:  # of a long stream each takes a while
            self.memo[name] = self._figure(name)
        found: float | None = self.memo[name]
        return found

    def _figure(self, name: str) -> float | None:
        figure: Callable[[], float] = getattr(self.matrix, name)
        try:
            value = float(figure())
        except ScoreMissing:
            return None
        return value if math.isfinite(value) else None

    def parts(self, name: str) -> dict[str, float]:
        """Each task's own part of a figure of `SUMMARY`; raises ScoreMissing where it has none."""
        return self.matrix.parts(name)

    @property
    def members(self) -> tuple[RunView, ...]:
        """The runs that this view is made of: itself, or those of several seeds."""
        return (self,)

    @property
    def told(self) -> str:
        """What this is, where it is more than one run: "mean over 3 seeds (0, 1, 2)"."""
        return ""

    @property
    def tasks_key(self) -> tuple[tuple[str, str, bool], ...]:
        """The tasks in their order, how each is scored and whether it is learned: equal where cells
        can be compared."""
        tasks = zip(self.tasks, self.matrix.learned, strict=True)
        return tuple((task.name, task.metric, learned) for task, learned in tasks)

    @cached_property
    def done(self) -> int:
        """How many tasks were learned and scored at least once afterwards."""
        return int(max(np.flatnonzero(~np.isnan(self.scores).all(axis=1)), default=0))

    @property
    def complete(self) -> bool:
        """True once every task was scored at the end. (A report written as the last act of a run
        finds that run still "running".)"""
        end = len(self.tasks)
        return end > 0 and not bool(np.isnan(self.scores[end]).any())

    @property
    def general_before(self) -> float:
        return self.general[0] if self.general else MISSING

    @property
    def general_after(self) -> float:
        return self.general[-1] if self.general else MISSING

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.path.name)

    def logged(self, key: str) -> list[float]:
        """All finite values that were logged under `key`, in order."""
        values = (row.get(key) for row in self.log)
        return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]

    @property
    def tokens_per_second(self) -> float:
        """Median over logged steps, so that start-up and a busy moment do not count."""
        speeds = self.logged("tokens_per_second")
        return median(speeds) if speeds else MISSING

    @property
    def peak_memory_mb(self) -> float:
        return max(self.logged("memory_mb"), default=MISSING)

    @property
    def gauge_keys(self) -> list[str]:
        """Names under which it was logged how far the model had moved, in order."""
        return [k for k in dict.fromkeys(k for row in self.log for k in row) if k[:6] == "gauge/"]

    @property
    def method_keys(self) -> list[str]:
        """Losses of the methods' own, in order of first appearance (`method/replay`)."""
        keys = (key for row in self.log for key in row if key.startswith("method/"))
        return list(dict.fromkeys(keys))


def views(runs: Sequence[RunData]) -> list[RunView]:
    """Digest runs for one report, each under a label of its own."""
    names = [run.methods_name for run in runs]
    labels = [
        name if names.count(name) == 1 else f"{name} ({run.path.name})"
        for name, run in zip(names, runs, strict=True)
    ]
    # Two directories of one name and one method: only a number still tells them apart.
    labels = [
        label if labels.count(label) == 1 else f"{label} #{labels[: i + 1].count(label)}"
        for i, label in enumerate(labels)
    ]
    return [_view(run, label) for run, label in zip(runs, labels, strict=True)]


def _view(run: RunData, label: str) -> RunView:
    pinned = stream_facts(run)
    rows = run.scores()
    scored = [row for row in rows if row.get("kind") == "task" and math.isfinite(row["score"])]
    recipe, text = recipe_of(run.path)
    stream = stream_names(pinned, recipe, rows)
    latest = {(row["after"], row["task"]): row for row in scored}  # scored twice: the last counts
    own = frozenset(stream)
    known = [row for row in latest.values() if row["task"] in own and row["after"] <= len(stream)]
    unseen = [
        (row["task"], row["after"], float(row["score"]))
        for row in latest.values()
        if row["task"] not in own
    ]
    measured = [row for row in rows if row.get("kind") == "general"]
    general = {r["after"]: float(r["score"]) for r in measured if "task" not in r}
    tasks = tuple(facts_of(scored, stream))
    matrix = ScoreMatrix.from_rows(known, stream, only_scored(pinned), tested_on(pinned))
    texts = tuple(general.get(i, MISSING) for i in range(len(stream) + 1)) if general else ()
    scenario = scenarios.scenario_of(known)
    # Of classes each row is looked at for several figures; all rows of a long stream take too much.
    kept = None if len(known) <= MOST_CELLS else MOST_CELLS // 10
    items = lru_cache(kept)(run.items) if scenario else run.items
    found = RunView(
        label=label,
        method=run.methods_name,
        path=run.path,
        state=run.state,
        tasks=tasks,
        unseen=tuple(unseen),
        matrix=matrix,
        general=texts,
        general_tasks=_general_tasks([r for r in measured if "task" in r], len(stream) + 1),
        log=tuple(run.log_rows()),
        environment=run.environment(),
        recipe=recipe,
        recipe_text=text,
        scoring_seconds=sum(float(row.get("seconds") or 0) for row in rows),
        evidence=Evidence(
            tasks, matrix, items, texts, run.general_items, Margins.of(recipe), str(run.path)
        ),
        facts=tuple(run.facts()),
        counted=tuple(row for row in rows if "body_passes" in row),
        scenario=scenario,
        probes=tuple(row for row in rows if row.get("kind") == "probe"),
        unread={key: float(row[UNREAD]) for key, row in latest.items() if UNREAD in row},
    )
    return replace(found, other=_other(found, known, items)) if scenario else found


def _other(
    view: RunView, rows: Sequence[Mapping[str, Any]], items: Callable[[int, str], Any]
) -> RunView:
    scenario, matrix, evidence = scenarios.other_scores(
        view.scenario, view.matrix, view.evidence, rows, items, str(view.path)
    )
    return replace(
        view,
        matrix=matrix,
        evidence=evidence,
        scenario=scenario,
        general=(),
        general_tasks=(),
        unseen=(),
        probes=(),
    )


def _general_tasks(
    rows: Sequence[Mapping[str, Any]], count: int
) -> tuple[tuple[TaskFacts, tuple[float, ...]], ...]:
    """The lm-eval tasks of a run's lines, in order of first appearance, each `count` scores."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row["task"], {})[row["after"]] = float(row["score"])
    return tuple(
        (facts, tuple(found.get(i, MISSING) for i in range(count)))
        for facts, found in zip(facts_of(rows, [*scores]), scores.values(), strict=True)
    )


def task_order(runs: Sequence[RunView]) -> list[TaskFacts]:
    """All tasks of several runs, in order of first appearance."""
    tasks: dict[str, TaskFacts] = {}
    for run in runs:
        for task in run.tasks:
            tasks.setdefault(task.name, task)
    return list(tasks.values())


def comparable(runs: Sequence[RunView]) -> bool:
    """True if all runs learned and scored the same tasks, so that their averages mean the same."""
    return len({frozenset(run.tasks_key) for run in runs}) <= 1
