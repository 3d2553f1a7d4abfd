"""How a run's tasks are scored, as the lines of its scores.jsonl tell it, and which they are."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perdure.reports.caps import MOST_CELLS
from perdure.run.damage import doubts, verify_scores
from perdure.run.directory import Run
from perdure.streams.kinds import known_metric

logger = logging.getLogger("perdure")

MISSING = math.nan


@dataclass(frozen=True)
class TaskFacts:
    """How one task is scored. `rows` is the size of its test set, 0 where not recorded.

    `label` is the metric as people read it, `low` to `high` the range of its scores.
    """

    name: str
    metric: str
    higher_is_better: bool
    rows: int
    label: str = ""
    low: float = 0.0
    high: float | None = None
    """None: 1 where higher is better, else without an end."""

    @property
    def bounded(self) -> bool:
        """Whether scores have a highest and a lowest value, so that the noise of one is known."""
        if self.high is None:
            return self.higher_is_better
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def top(self) -> float:
        """The highest score, infinity where there is none."""
        if self.high is None:
            return 1.0 if self.higher_is_better else math.inf
        return self.high

    @property
    def sign(self) -> float:
        """What turns a change of the score so that more is better."""
        return 1.0 if self.higher_is_better else -1.0

    def share(self, score: float) -> float:
        """Where a score lies from the worst (0) to the best (1); only where they are known."""
        high = 1.0 if self.high is None else self.high
        part = min(max((score - self.low) / (high - self.low), 0.0), 1.0)
        return part if self.higher_is_better else 1.0 - part


def facts_of(scored: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[TaskFacts]:
    """The facts of these tasks by the first line of each."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in scored:
        first.setdefault(row["task"], row)
    return [_facts_of(first.get(name, {}), name) for name in names]


def _facts_of(row: Mapping[str, Any], name: str) -> TaskFacts:
    metric = str(row.get("metric", "not scored yet"))
    facts = TaskFacts(
        name=name,
        metric=metric,
        higher_is_better=bool(row.get("higher_is_better", True)),
        rows=int(row.get("rows") or 0),
    )
    if "high" in row:  # of a metric that is not Perdure's, the line itself says all
        return replace(facts, label=row["label"], low=float(row["low"]), high=float(row["high"]))
    # lm-eval's metrics are its own, whatever they are called.
    if row.get("kind") == "task" and (known := known_metric(metric)) is not None:
        return replace(facts, label=known.label, low=known.low, high=known.high)
    return facts


def stream_facts(run: object) -> list[dict[str, str]]:
    """What stream.json says of the tasks; nothing in a run not begun, or a folder made by hand.

    Raises:
        RunError: it, or the scores, are not what was written.
    """
    if not isinstance(run, Run):
        return []
    verify_scores(run, MOST_CELLS)
    for told in doubts(run):
        logger.warning("%s", told)
    return run.stream_facts()


def stream_names(
    pinned: Sequence[Mapping[str, str]],
    recipe: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Names of the tasks that the run learns, in order; `perdure eval` may have scored others.

    The recipe names tasks of one's own. Those of a built-in stream are what was scored first: the
    base model on the whole stream, before anything was learned.
    """
    if pinned:
        return [str(task["name"]) for task in pinned]
    own = recipe.get("stream")
    own = own if isinstance(own, Mapping) else {}
    if names := own.get("order") or [task["name"] for task in own.get("tasks") or []]:
        return [str(name) for name in names]
    first: dict[str, None] = {}
    for row in rows:
        if row["after"] != 0:
            break
        if row.get("kind") == "task":
            first[row["task"]] = None
    return list(first)


def recipe_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The resolved recipe as data and as the text that was written; empty if there is none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except OSError:
        return {}, ""
    try:
        data = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        data = None  # a report of a damaged run still shows the text
    return (data if isinstance(data, dict) else {}), text
