"""Settings that no model of this size and no tasks like these can use, told before any weight."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.errors import PerdureError, RecipeError, task_named
from perdure.streams.kinds import kind

if TYPE_CHECKING:
    from perdure.models.inspect import ModelFacts
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import TaskStream

logger = logging.getLogger("perdure")
AGAIN = 100
"""Times that one optimizer step may read each row of a task: a batch is filled by repeating."""
USUAL_RATE = 1.0
"""A higher learning rate is told: AdamW moves each weight by about the rate in a step."""


def refuse_senseless(recipe: Recipe, stream: TaskStream, facts: ModelFacts | None) -> None:
    """Raise `RecipeError` for all settings that go with neither tasks nor model, each at its key.

    Args: facts: of the base model; None: it is not known.
    """
    found = [*_of_tasks(recipe, stream), *(_of_model(recipe, facts) if facts else ())]
    if found:
        raise RecipeError(found)
    for told in _without_effect(recipe, stream):
        logger.warning("%s", told)
    rate = max(recipe.of_task(task.learn).train.learning_rate for task in stream)
    if rate > USUAL_RATE:
        logger.warning(
            "%s: %g is so high that the loss may not be finite after a step; usual are 1e-6 to "
            "1e-2",
            recipe.place("train.learning_rate"),
            rate,
        )


def _without_effect(recipe: Recipe, stream: TaskStream) -> Iterator[str]:
    """What these tasks have too few steps or rows for. It is told alone: a trial has few."""
    from perdure.learners.work import works

    steps = {
        task.name: work.steps(recipe, task)
        for task, work in zip(stream, works(recipe, stream, 0), strict=True)
        if task.train_kept and task.learn != "none"
    }
    for task in stream:
        rows, whose = task.validation or task.train, "validation" if task.validation else "training"
        if task.until is not None and len(rows) < task.until.rows:
            yield (
                f"{task_named(task.name)}: until looks at {len(rows):,} {whose} rows, as there are "
                f"no more (until.rows is {task.until.rows:,}): what so few earn says little"
            )
        if task.until is not None and steps.get(task.name, math.inf) < task.until.every:
            yield (
                f"{task_named(task.name)}: until has no effect: it is looked at each "
                f"{task.until.every:,} steps, and the task has {steps[task.name]:,}: lower "
                "until.every, or train for more steps"
            )
    budget, every = recipe.stop_when, recipe.gauges.every
    if budget is not None and budget.action == "stop" and max(steps.values(), default=0) < every:
        yield (
            f"{recipe.place('stop_when')}: has no effect: gauges are read each {every:,} steps, "
            f"and no task has more than {max(steps.values(), default=0):,}: lower gauges.every"
        )


def _of_tasks(recipe: Recipe, stream: TaskStream) -> Iterator[PerdureError]:
    of = kind(stream.tasks[0].kind)
    general = recipe.general
    if of.classes and general is not None and (stream.general.held_out or general.tasks):
        yield PerdureError(
            f"{recipe.place('general')}: tasks of kind {of.name} have no measure of general "
            "ability",
            "leave general out, or for a method that holds states on texts: held_out_rows: 0",
        )
    if of.classes and recipe.stop_when is not None:
        yield PerdureError(
            f"{recipe.place('stop_when')}: tasks of kind {of.name} have no gauges", "leave it out"
        )
    for learn in dict.fromkeys(task.learn for task in stream if task.train_kept):
        own = recipe.of_task(learn)
        rows, name = max((len(task.train), task.name) for task in stream if task.learn == learn)
        if learn != "none" and 0 < rows * AGAIN < own.train.batch_size:
            in_rl = learn == "rl" and recipe.rl is not None and recipe.rl.batch_size
            key = "rl.batch_size" if in_rl else "train.batch_size"
            yield PerdureError(
                f"{recipe.place(key)}: {own.train.batch_size:,} rows a step, and "
                f"{task_named(name)} has {rows:,}: each would be read "
                f"{own.train.batch_size // rows:,} times in a step",
                f"lower it to at most {rows:,}",
            )


def _of_model(recipe: Recipe, facts: ModelFacts) -> Iterator[PerdureError]:
    rank = recipe.model.lora.r
    if recipe.model.tuning == "lora" and facts.hidden and rank > facts.hidden:
        yield PerdureError(
            f"{recipe.place('model.lora.r')}: {rank:,} is above the model's width, "
            f"{facts.hidden:,}, and no matrix of it has a higher rank",
            "8 to 64 are usual",
        )
