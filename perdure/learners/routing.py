"""A learner's scores by the adapters that a router chooses; the rows themselves are in `scores`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from perdure.errors import UsageError, task_named
from perdure.learners.scores import score_routed
from perdure.models.served import base_of, check_base, router_of
from perdure.scoring.routed import Routed, as_prompt, prompts_of
from perdure.streams.task import shown

if TYPE_CHECKING:
    from pathlib import Path

    from perdure.engine.session import TaskSession
    from perdure.learners.listener import Listener
    from perdure.models.served import Router
    from perdure.processes import Progress
    from perdure.protocol.method import Method
    from perdure.recipe.schema import Recipe
    from perdure.scoring import TaskScore
    from perdure.streams.task import Row, Task, TaskStream


class Routing:
    """Mixed into `perdure.learners.base.Learner`: how its rows come to their adapters."""

    model: Any
    stream: TaskStream
    recipe: Recipe
    methods: Sequence[Method]
    listener: Listener
    routed: Routed | None = None
    """While scores are made: what was chosen for the prompts of all tasks. None: no router, and
    the active adapters answer."""
    _session: TaskSession

    def autocast(self) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def score_task(self, task: Task, progress: Progress | None) -> TaskScore | None:
        raise NotImplementedError

    def score_mixed(
        self, task: Task, adapters: Sequence[str], progress: Progress | None
    ) -> TaskScore | None:
        raise NotImplementedError

    @property
    def router(self) -> Router | None:
        """What chooses an adapter for each request: a method's, or that of a loaded model."""
        for method in self.methods:
            if (found := method.router(self._session.context)) is not None:
                return found
        return router_of(self.model)

    def refuse_other_base(self, folder: Path) -> None:
        """Raise `UsageError` where the adapters that were taken from `folder` are for another base
        model than this one."""
        check_base(self.router, base_of(self.model), folder)

    @contextmanager
    def routing(self) -> Iterator[None]:
        """Have scores made inside be routed, where there is a router. It sees the prompts of all
        tasks and the general texts in one list."""
        if self.routed is None and (router := self.router) is not None:
            prompts = prompts_of(self.stream, self.recipe.scoring.max_test_rows)
            texts = map(as_prompt, self.stream.general.held_out)
            self.routed = Routed(router, [*prompts, *texts], self.recipe.seed)
        try:
            yield
        finally:
            self.routed = None

    def score(self, task: Task) -> TaskScore | None:
        """Score a task's test rows with the weights as they are, by the adapters that a router
        chooses; None where the kind has no score for it yet."""
        task = replace(task, test=shown(task, self.recipe.scoring.max_test_rows))
        with nullcontext() if self.routed is not None else self.routing():
            if self.routed is None:
                return self._score_alone(task)
            choices = self.routed.choose(list(prompts_of([task])))
            return score_routed(self, task, choices, self.routed.right(task.name))

    def _score_alone(self, task: Task) -> TaskScore | None:
        with self.autocast():
            return self.score_task(task, partial(self.listener.progress, "scoring", task.name))

    def _score_for_methods(self, task: Task, rows: Sequence[Row]) -> float:
        """A score of the weights as they are, which is never routed: a method asks for it of what
        it is about to change. How many rows it looks at is its own option."""
        found = self._score_alone(replace(task, test=rows))
        if found is None:
            raise UsageError(f"method: {task_named(task.name)} has no score before it was learned")
        return found.score
