"""How rows become optimizer steps, and what must hold of them before training begins."""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from perdure.errors import DataError, PerdureError, RecipeError, UsageError
from perdure.learners.encoding import IGNORE, Encoder
from perdure.streams.task import TaskStream

if TYPE_CHECKING:
    from perdure.config import Recipe

logger = logging.getLogger(__name__)
_SHOWN = 10


def split_batch(recipe: Recipe, world: int) -> tuple[int, int]:
    """Rows of a micro-batch on one process, and micro-batches in an optimizer step.

    Raises:
        UsageError: the global batch cannot be divided so.
    """
    batch, micro = recipe.train.batch_size, recipe.train.micro_batch_size
    if micro is None and batch % world == 0:
        micro = batch // world
    if micro is None or batch % (micro * world):
        raise UsageError(
            f"train.batch_size: {batch} rows cannot be split over {world} processes"
            + (f" in micro-batches of {micro}" if micro else ""),
            "train.batch_size counts all processes: make it a multiple of "
            "processes x train.micro_batch_size",
        )
    return micro, batch // (micro * world)


def steps_of(recipe: Recipe, rows: int, epochs: float | None = None) -> int:
    """Optimizer steps of one phase over `rows` rows."""
    train = recipe.train
    per_epoch = math.ceil(rows / train.batch_size)
    steps = max(1, math.ceil(per_epoch * (train.epochs if epochs is None else epochs)))
    return steps if train.max_steps is None else min(steps, train.max_steps)


def recipe_encoder(tokenizer: Any, recipe: Recipe) -> Encoder:
    """The encoder of a recipe's rows."""
    model, longest = recipe.model, recipe.train.max_length
    return Encoder(tokenizer, model.chat_template, longest, model.max_prompt_length)


def check_rows(stream: TaskStream, encoder: Encoder, context_length: int | None) -> None:
    """Encode every row once, so that one too long is told now and not hours into training.

    How many prompts lose their middle is told as a warning, once.

    Raises:
        RecipeError: rows longer than `train.max_length` or than the model's context; up to ten
            are named.
    """
    mistakes: list[PerdureError] = []
    for task in stream:
        for split in ("train", "validation", "test"):
            rows, cut = getattr(task, split), 0
            for number, row in enumerate(rows, 1):
                try:
                    encoded = encoder.encode(row)
                    width = len(encoded["input_ids"])
                    # Only a prompt of just the most tokens can be one that was cut.
                    full = encoded["labels"].count(IGNORE) == encoder.max_prompt_length
                    cut += full and encoder.is_cut(row)
                    if context_length is not None and width > context_length:
                        raise DataError(
                            f"{width} tokens, the model's context is {context_length}",
                            "shorten the row, or take a model with a longer context",
                        )
                except DataError as error:
                    what = f"task {task.name}: {split} row {number}: {error.what}"
                    mistakes.append(DataError(what, error.remedy))
            if cut:
                most = encoder.max_prompt_length
                _warn_once(
                    f"task {task.name}: {cut} of {len(rows)} {split} rows have a prompt of more "
                    f"than {most} tokens: its middle is left out"
                )
    if mistakes:
        shown = mistakes[:_SHOWN]
        if len(mistakes) > _SHOWN:
            shown.append(DataError(f"... and {len(mistakes) - _SHOWN} more rows"))
        raise RecipeError(shown)


@lru_cache
def _warn_once(message: str) -> None:
    """Rows are checked before a run and again at its start."""
    logger.warning("%s", message)
