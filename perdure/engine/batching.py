"""How rows become optimizer steps, and what must hold of them before training begins."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from perdure.errors import UsageError

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import Task

logger = logging.getLogger(__name__)


def split_batch(recipe: Recipe, world: int, learn: str = "sft") -> tuple[int, int]:
    """Rows of a micro-batch on one process, and micro-batches in an optimizer step.

    Args: learn: how the task is learned; by `rl` a batch is of completions.

    Raises:
        UsageError: the global batch cannot be divided so.
    """  # fmt: skip
    own, rl = recipe.of_task(learn).train, recipe.rl if learn == "rl" else None
    batch, micro = own.batch_size, own.micro_batch_size
    if micro is None and batch % world == 0:
        micro = batch // world
    if micro is None or batch % (micro * world):
        key = "rl.batch_size" if rl is not None and rl.batch_size else "train.batch_size"
        smaller = "rl" if rl is not None and rl.micro_batch_size else "train"
        over = f" over {world} processes" if world > 1 else ""
        raise UsageError(
            f"{recipe.place(key)}: {batch} {'rows' if rl is None else 'completions'} cannot be "
            f"split{over}" + (f" into micro-batches of {micro}" if micro else ""),
            f"make it a multiple of {smaller}.micro_batch_size"
            if world == 1
            else f"it counts all processes: make it a multiple of processes x "
            f"{smaller}.micro_batch_size",
        )
    return micro, batch // (micro * world)


def drawn_rows(recipe: Recipe, learn: str) -> int:
    """Rows of a task that an optimizer step draws, over all processes: the batch, or by
    reinforcement its prompts, each with a group of completions.

    Args: recipe: with the task's own settings (`Recipe.of_task`).
    """
    batch = recipe.train.batch_size
    return batch if learn != "rl" or recipe.rl is None else batch // recipe.rl.group


def epoch_rows(recipe: Recipe, task: Task, rows: int) -> int:
    """Rows that an epoch trains on, of which `train.batch_size` go into a step: those of the task,
    or by reinforcement completions, each as often as it is trained on; of prompts that fill no
    batch, the batch is filled up.
    """
    own = recipe.of_task(task.learn)
    if task.learn != "rl" or own.rl is None:
        return rows
    steps = math.ceil(rows / drawn_rows(own, task.learn)) * own.rl.iterations
    return steps * own.train.batch_size


def halved(micro: int, accumulation: int) -> tuple[int, int]:
    """The split of a batch of which half is left to kept rows.

    Args: micro, accumulation: of the whole batch, see `split_batch`.

    Raises:
        UsageError: a process's part of the batch has no half.
    """
    if micro * accumulation % 2:
        raise UsageError(
            f"method: mix: half: a process's part of the batch, {micro * accumulation} rows, has "
            "no half",
            "make train.batch_size an even number of rows for each process",
        )
    return (micro // 2, accumulation) if micro % 2 == 0 else (micro, accumulation // 2)


def steps_of(
    recipe: Recipe, rows: int, epochs: float | None = None, batch_size: int | None = None
) -> int:
    """Optimizer steps of one phase over `rows` rows.

    Args: batch_size: the task's rows in a step (`drawn_rows`); None: the recipe's.
    """
    train = recipe.train
    per_epoch = math.ceil(rows / (batch_size or train.batch_size))
    steps = max(1, math.ceil(per_epoch * (train.epochs if epochs is None else epochs)))
    return steps if train.max_steps is None else min(steps, train.max_steps)
