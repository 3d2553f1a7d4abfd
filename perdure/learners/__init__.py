"""Learners turn a task into gradient steps: what they share in `base`, and one file a kind."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from perdure.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.learners.base import Learner
    from perdure.learners.listener import Folders, Listener
    from perdure.protocol.method import Method
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import TaskStream

__all__ = ["build", "chosen_methods", "learner_class"]


def chosen_methods(recipe: Recipe, stream: TaskStream) -> list[Method]:
    """Make the recipe's methods; they must go together and find what they need in `stream`.

    Raises:
        UsageError: two methods clash, or one needs validation rows that are not there.
    """
    from perdure.engine.attach import refuse_clashes
    from perdure.methods import registry

    chosen = registry.build(recipe.methods)
    refuse_clashes(chosen, recipe.order_matters)
    bare = [task.name for task in stream if task.learn != "none" and not task.validation]
    for method, spec in zip(chosen, recipe.methods, strict=True):
        if method.needs_validation and bare:
            raise UsageError(
                f"method: {spec.name} measures on validation rows, and task {bare[0]} has none",
                "give it `validation:` rows, or a `validation_share:` above 0",
            )
    return chosen


def build(
    recipe: Recipe,
    stream: TaskStream,
    *,
    precision: str,
    folders: Folders,
    listener: Listener | None = None,
    methods: Sequence[Method] | None = None,
) -> Learner:
    """Load the base model and make the learner of the stream's kind of task, with its methods.

    Args:
        precision: "fp32" or "bf16", see `perdure.models.choose_precision`.
        methods: as `chosen_methods` makes them; None makes them here.

    Raises:
        UsageError: tasks of several kinds, of one that is not known, or learned in a way that is
            not known; and what `chosen_methods` and the learner refuse.
    """
    from perdure.learners.kind import drawn
    from perdure.streams import lm_eval_tasks

    found = learner_class(stream)
    chosen = chosen_methods(recipe, stream) if methods is None else methods
    lm_eval_tasks.load(recipe.general)  # what cannot be read is told before weights are loaded
    model, tokenizer = drawn(lambda: found.load(recipe, precision), recipe.seed)
    return found(model, tokenizer, stream, chosen, recipe, precision, folders, listener)


def learner_class(stream: TaskStream) -> type[Learner]:
    """The learner of the kind that all tasks of `stream` have.

    Raises:
        UsageError: there are several kinds, or it is not known; or a task's `learn` is not.
    """
    from perdure.learners.base import WAYS

    for task in stream:
        if task.learn not in WAYS:
            raise UsageError(
                f"task {task.name}: learn: {task.learn}: tasks cannot be learned in this way",
                f"ways to learn are: {', '.join(WAYS)}",
            )
    first = stream.tasks[0]
    for task in stream:
        if task.kind != first.kind:
            raise UsageError(
                f"stream: task {first.name} is of kind {first.kind}, "
                f"task {task.name} of kind {task.kind}",
                "put tasks of one kind into a stream",
            )
    module, _, name = _place(first.kind).partition(":")
    found: type[Learner] = getattr(importlib.import_module(module), name)
    return found


def _place(kind: str) -> str:
    """ "module:Class" of the learner of a kind, Perdure's own or another package's."""
    if kind == "generation":
        return "perdure.learners.generation:GenerationLearner"
    for point in entry_points(group="perdure.kinds", name=kind):
        record: Any = point.load()
        return str(record.learner)
    raise UsageError(f"stream: no kind of task is called {kind}", "is its package installed?")
