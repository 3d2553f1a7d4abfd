"""A learner's scores as lines to record: every task's, and general ability's."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from perdure.scoring import routed
from perdure.scoring.lines import general_line, task_line

if TYPE_CHECKING:
    from perdure.learners.listener import Listener
    from perdure.models.served import Choice
    from perdure.processes import Progress
    from perdure.scoring import TaskScore
    from perdure.streams.task import Task, TaskStream

Line = tuple[dict[str, Any], Sequence[Mapping[str, Any]]]
Key = tuple[str, "str | None"]
"""What a score is of: ("task", its name), ("general", an lm-eval task, or None for text),
("probe", the task's name)."""


class Scores(Protocol):
    """The part of a learner that is scored; see `perdure.learners.base.Learner`."""

    stream: TaskStream

    def serving(self) -> AbstractContextManager[Any]: ...
    def score(self, task: Task) -> TaskScore | None: ...
    def general(self) -> Mapping[str | None, Callable[[], Any]]: ...
    def looking(self) -> AbstractContextManager[Any]: ...
    def routing(self) -> AbstractContextManager[Any]: ...
    def more_scores(self, after: int, done: Collection[Any]) -> Iterable[Any]: ...
    def passes(self) -> Mapping[str, int]: ...
    def track(self, figures: Mapping[str, float]) -> None: ...


class Routes(Protocol):
    """The part of a learner whose rows are routed."""

    model: Any
    listener: Listener

    def autocast(self) -> AbstractContextManager[Any]: ...
    def score_task(self, task: Task, progress: Progress | None) -> TaskScore | None: ...
    def score_mixed(
        self, task: Task, adapters: Sequence[str], progress: Progress | None
    ) -> TaskScore | None: ...


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

    with learner.serving(), learner.looking(), learner.routing():
        shared: dict[str, TaskScore | None] = {}  # by the task whose test rows they are
        sharing = {task.test_of for task in learner.stream if task.test_of}
        for task in learner.stream:
            if ("task", task.name) in done:
                continue
            started, owner = time.monotonic(), task.test_of or task.name
            found = shared[owner] if owner in shared else learner.score(task)
            if owner in sharing:
                shared[owner] = found
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


def score_routed(
    learner: Routes, task: Task, choices: Sequence[Choice], right: str | None = None
) -> TaskScore | None:
    """Score each row of `task.test` with the adapter chosen for it, and those that another than
    `right` answered by that one too; see `perdure.scoring.routed`.

    The one place where a learner's rows are routed, in a run and in `perdure eval`.
    """
    with learner.autocast():
        return routed.score_routed(
            learner.model,
            task,
            choices,
            learner.score_task,
            learner.score_mixed,
            partial(learner.listener.progress, "scoring", task.name),
            right,
            measure_right=True,
        )
