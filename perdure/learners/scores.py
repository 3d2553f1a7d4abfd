"""A learner's scores as lines to record: every task's, and general ability's."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from perdure.scoring.lines import general_line, task_line

if TYPE_CHECKING:
    from perdure.processes import Progress
    from perdure.scoring import TaskScore
    from perdure.streams.task import Task, TaskStream

Line = tuple[dict[str, Any], Sequence[Mapping[str, Any]]]
Key = tuple[str, "str | None"]
"""What a score is of: ("task", its name), ("general", an lm-eval task, or None for text),
("probe", the task's name)."""


class Scores(Protocol):
    """The part of a learner that is scored; see `perdure.learners.base.Learner`."""

    model: Any
    stream: TaskStream

    def serving(self) -> AbstractContextManager[Any]: ...
    def autocast(self) -> AbstractContextManager[Any]: ...
    def score(self, task: Task) -> TaskScore | None: ...
    def score_task(self, task: Task, progress: Progress | None) -> TaskScore | None: ...
    def general(self) -> Mapping[str | None, Callable[[], Any]]: ...
    def looking(self) -> AbstractContextManager[Any]: ...
    def more_scores(self, after: int, done: Collection[Any]) -> Iterable[Any]: ...
    def passes(self) -> Mapping[str, int]: ...
    def track(self, figures: Mapping[str, float]) -> None: ...


def scored(learner: Scores, after: int, done: Collection[Key]) -> Iterator[Line]:
    """Score what is not `done`, with the weights that are served; yield each line when it is there.

    A task that has no score yet (`Learner.score` gives None) has no line. Trackers get all figures
    at the end.

    Returns: a line of scores.jsonl and the scored rows.
    """
    figures: dict[str, float] = {}
    counts = learner.passes()

    def counted(line: dict[str, Any]) -> dict[str, Any]:
        nonlocal counts
        before, counts = counts, learner.passes()
        return line | {name: count - before[name] for name, count in counts.items()}

    with learner.serving(), learner.looking():
        for task in learner.stream:
            if ("task", task.name) in done:
                continue
            started = time.monotonic()
            found = learner.score(task)
            if found is None:
                continue
            line = task_line(after, task.name, found, time.monotonic() - started)
            figures[f"score/{task.name}"] = found.score
            others = {k: v for k, v in found.measures.items() if k != found.metric}
            figures |= {f"score/{task.name}/{k}": v for k, v in others.items()}
            yield counted(line), found.items
        for name, measure in learner.general().items():
            if ("general", name) in done:
                continue
            started = time.monotonic()
            whole = measure()
            line = general_line(after, name, whole, time.monotonic() - started)
            figures[f"score/general_{name or line['metric']}"] = line["score"]
            # Each text's own loss: a change of the mean is judged text by text.
            yield line, getattr(whole, "items", ())
        for line, items in learner.more_scores(after, done):
            yield counted(line), items
    learner.track(figures)


def score_routed(learner: Scores, task: Task, adapters: Sequence[str]) -> TaskScore | None:
    """Score each row of `task.test` with the adapter chosen for it, by name in `adapters`.

    Items come back in the order of the rows; a measure beside the task's metric is the mean over
    all rows.
    """
    from perdure.scoring.score import numbered_copies, pooled

    model: Any = learner.model
    active = model.active_adapter
    parts: list[TaskScore] = []
    items: dict[int, dict[str, Any]] = {}
    measures: dict[str, float] = {}
    try:
        for name in sorted(set(adapters)):
            model.set_adapter(name)
            at = [i for i, adapter in enumerate(adapters) if adapter == name]
            rows = [task.test[i] for i in at]
            with learner.autocast():
                found = learner.score_task(replace(task, test=rows), None)
            if found is None:
                return None
            parts.append(found)
            items |= dict(zip(at, found.items, strict=True))
            for measure, value in found.measures.items():
                measures[measure] = measures.get(measure, 0.0) + value * len(at) / len(adapters)
    finally:
        model.set_adapter(active)
    ordered = numbered_copies([items[i] for i in range(len(adapters))])
    score = pooled(task.metric, ordered)
    return replace(parts[0], score=score, items=ordered, measures=measures)
