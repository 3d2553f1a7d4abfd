"""Learners turn a task into gradient steps: what they share in `base`, and one file a kind."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from perdure.errors import UsageError, task_named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from perdure.learners.base import Learner
    from perdure.learners.listener import Folders, Listener
    from perdure.protocol.method import Method
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import TaskStream

__all__ = ["build", "build_saved", "learner_class"]


def build(
    recipe: Recipe,
    stream: TaskStream,
    *,
    precision: str,
    folders: Folders,
    listener: Listener | None = None,
    methods: Sequence[Method],
    encoder: Any = None,
    batch_split: tuple[int, int] | None = None,
    lm_eval_tasks: Mapping[str, Any] | None = None,
) -> Learner:
    """Load the base model and make the learner of the stream's kind of task, with its methods.

    Args:
        precision: "fp32" or "bf16", see `perdure.models.choose_precision`.
        methods: the recipe's, made; see `perdure.prepare`.
        encoder: has tokenized the stream's rows; None: the learner does it.
        batch_split: rows of a micro-batch, and micro-batches in a step; None: by the recipe.
        lm_eval_tasks: the recipe's, as lm-eval loads them; None: the learner loads them.

    Raises:
        UsageError: tasks of several kinds, of one that is not known, or learned in a way that is
            not known; and what the learner refuses.
    """
    from perdure.learners.kind import drawn

    found = learner_class(stream)
    model, tokenizer = drawn(lambda: found.load(recipe, precision), recipe.seed)
    return found(
        model,
        tokenizer,
        stream,
        methods,
        recipe,
        precision,
        folders,
        listener,
        encoder,
        batch_split,
        lm_eval_tasks,
    )


def build_saved(
    recipe: Recipe,
    stream: TaskStream,
    folder: Path | None,
    learned: int,
    *,
    precision: str,
    folders: Folders,
    listener: Listener | None = None,
    today: date | None = None,
    lm_eval_tasks: Mapping[str, Any] | None = None,
) -> Learner:
    """Make the learner of a model that is only scored: it has no methods.

    Args:
        folder: what a learner saved of its model after `learned` tasks; None: the base model.
        today: the day whose date a chat template writes; None is that of now.
        lm_eval_tasks: as of `build`.

    Raises:
        UsageError, ModelError: as `build`, and as `perdure.models.load_saved`.
    """
    from perdure.learners.kind import drawn

    found = learner_class(stream)
    # Nothing is trained, so nothing is sharded, and no tracker hears of the scores.
    quiet = recipe.train.model_copy(update={"report_to": []})
    whole = recipe.model.model_copy(update={"fsdp_size": 0})
    recipe = recipe.model_copy(update={"train": quiet, "model": whole})
    saved = None if folder is None else found.load_saved(folder, recipe, precision)
    model, tokenizer = saved or drawn(lambda: found.load(recipe, precision), recipe.seed)
    encoder = found.make_encoder(tokenizer, recipe)
    if today is not None and hasattr(encoder, "pin"):
        encoder.pin(today)
    made = found(
        model,
        tokenizer,
        stream,
        (),
        recipe,
        precision,
        folders,
        listener,
        encoder,
        (recipe.train.batch_size, 1),
        lm_eval_tasks,
    )
    if folder is not None and saved is None:
        made.show(folder, learned)
    return made


def learner_class(stream: TaskStream) -> type[Learner]:
    """The learner of the kind that all tasks of `stream` have.

    Raises:
        UsageError: there are several kinds, or it is not known; or a task's `learn` is not.
    """
    from perdure.streams import kinds

    for task in stream:
        ways = kinds.kind(task.kind).ways
        if task.learn not in ways:
            raise UsageError(
                f"{task_named(task.name)}: learn: {task.learn}: tasks cannot be learned in this "
                "way",
                f"ways to learn are: {', '.join(ways)}",
            )
    first = stream.tasks[0]
    for task in stream:
        if task.kind != first.kind:
            raise UsageError(
                f"stream: {task_named(first.name)} is of kind {first.kind}, "
                f"{task_named(task.name)} of kind {task.kind}",
                "put tasks of one kind into a stream",
            )
    module, _, name = kinds.kind(first.kind).learner.partition(":")
    found: type[Learner] = getattr(importlib.import_module(module), name)
    return found
