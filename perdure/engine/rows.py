"""Tokenize every row once, before training begins, and refuse those that are too long."""

from __future__ import annotations

import logging

from perdure.errors import DataError, PerdureError, RecipeError
from perdure.models.chat import Encoder
from perdure.streams.labels import same_tokens
from perdure.streams.task import TaskStream, place_of

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")


def encode_stream(stream: TaskStream, encoder: Encoder, context_length: int | None) -> None:
    """Have `encoder` tokenize and keep all rows, so that one too long is told now.

    How many prompts lose their middle, and rows whose texts hold special tokens, are told as
    warnings.

    Raises:
        RecipeError: rows longer than `train.max_length` or than the model's context, each with its
            file and line; or labels that the tokenizer cannot tell apart.
    """
    mistakes: list[PerdureError] = []
    special: list[tuple[str, str, bool]] = []
    for task in stream:
        mistakes += same_tokens(task.name, task.labels, encoder.answer_ids)
        for split in SPLITS:
            rows, cut, name = getattr(task, split), 0, (task.name, split)
            encoder.kept.begin(name)
            for number, row in enumerate(rows, 1):
                try:
                    encoded, was_cut = encoder.encode_and_tell(row)
                    width = len(encoded["input_ids"])
                    cut += was_cut
                    if context_length is not None and width > context_length:
                        raise DataError(
                            f"{width} tokens, the model's context is {context_length}",
                            "shorten the row, or take a model with a longer context",
                        )
                    encoder.kept.add(name, row, encoded, was_cut)
                except DataError as error:
                    place = place_of(row) or f"task {task.name}: {split} row {number}"
                    source = place.rpartition(":")[0]
                    mistakes.append(DataError(f"{place}: {error.what}", error.remedy, source))
            for number, row in enumerate(rows, 1):
                if found := encoder.special_in(row):
                    place = place_of(row) or f"task {task.name}: {split} row {number}"
                    special.append((place, *found))
            if cut:
                logger.warning(
                    "task %s: %d of %d %s rows have a prompt of more than %s tokens: its middle "
                    "is left out",
                    task.name, cut, len(rows), split, encoder.max_prompt_length,
                )  # fmt: skip
    if special:
        (place, token, _), answers = special[0], sum(in_answer for *_, in_answer in special)
        logger.warning(
            "%s: its own text holds the special token %r, which the model reads as such: a turn "
            "may end or begin there; so do %d rows in all, %d of them in the prompt and %d in the "
            "answer",
            place, token, len(special), len(special) - answers, answers,
        )  # fmt: skip
    if mistakes:
        raise RecipeError(mistakes)
