"""Check every row before training begins."""

from __future__ import annotations

import logging
from functools import lru_cache

from perdure.errors import DataError, PerdureError, RecipeError
from perdure.models.chat import IGNORE, Encoder
from perdure.streams.task import TaskStream

logger = logging.getLogger(__name__)
_SHOWN = 10


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
