"""The rows that each task of a run trains on, counted without any weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from perdure.engine.batching import drawn_rows, steps_of
from perdure.methods import registry
from perdure.protocol.labels import labels_of

if TYPE_CHECKING:
    from perdure.engine.rows import RowEncoder
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import Task, TaskStream


class Work(NamedTuple):
    """The tasks whose rows a task trains on, and how many of those a step draws."""

    tasks: tuple[Task, ...]
    batch: int

    @property
    def rows(self) -> int:
        return sum(len(task.train) for task in self.tasks)

    def widths(self, encoder: RowEncoder) -> list[int]:
        """Tokens of each row that is trained on; by reinforcement, of its prompt."""
        if self.tasks and self.tasks[-1].learn == "rl":
            rows = (encoder.encode_and_tell(row)[0] for row in self.tasks[-1].train)
            return [len(row["input_ids"]) - labels_of(row) for row in rows]
        return [n for task in self.tasks for n in encoder.lengths((task.name, "train"))]

    def steps(self, recipe: Recipe, task: Task) -> int:
        """Optimizer steps of the task: those of its one phase, where it has no others."""
        if task.learn == "none" or not self.tasks:
            return 0
        own, batches = recipe.of_task(task.learn), math.ceil(self.rows / self.batch)
        again = own.rl.iterations if task.learn == "rl" and own.rl is not None else 1
        return steps_of(own, batches * again, batch_size=1)


def works(recipe: Recipe, stream: TaskStream, learned: int) -> Sequence[Work]:
    """Each task's: `joint` trains on all rows so far, `mix: half` on half a batch of new ones.

    Args: learned: tasks that are learned already, and train on none.
    """
    methods = registry.build(recipe.methods)
    all_rows = any(method.needs_old_rows for method in methods)
    halves = any(method.halves for method in methods)
    found: list[Work] = []
    before: tuple[Task, ...] = ()
    for number, task in enumerate(stream):
        drawn = drawn_rows(recipe.of_task(task.learn), task.learn)
        batch = drawn // (2 if halves and before else 1)
        rows = (*before, task) if all_rows else (task,)
        found.append(Work(() if number < learned else rows, batch))
        before += () if task.learn == "none" else (task,)
    return found
