"""Tokenize every row once, before training begins, and refuse those that are too long."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from perdure.errors import DataError, PerdureError, RecipeError, task_named
from perdure.protocol.labels import labels_of
from perdure.streams.task import Row, Task, TaskStream, place_of

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
TOGETHER = 256
"""Rows that are encoded at once."""
_SHOWN = 60
"""Characters of a general text in a message."""
MOMENT = 2.0
"""Seconds after which it is told how many rows are done."""
Encoded = tuple[dict[str, Any], bool] | DataError
"""A row encoded, and whether it was cut; or what is wrong with it."""


class Keeps(Protocol):
    """Where an encoder keeps the rows of a stream."""

    def begin(self, split: Hashable) -> None:
        """Begin a split of this name, without rows."""

    def add(self, split: Hashable, row: Row, encoded: dict[str, Any], cut: bool) -> None:
        """Keep a row behind the others of its split."""


class RowEncoder(Protocol):
    """What tokenizes a kind's rows before weights are loaded (`Kind.encoder`).

    It keeps what it made of a row and never tokenizes a text again: the learner is given it as
    `prepared_encoder`. It may also have `pin(date)` and `today`, where it writes the date, and
    `encode_together(rows)`, which gives of each row what `encode_and_tell` gives, or the error.
    """

    @property
    def kept(self) -> Keeps:
        """The rows that were encoded."""

    @property
    def cut_told(self) -> str:
        """What happens to a row that is cut: "a text of more than 64 tokens: its end ..."."""

    def encode_and_tell(self, row: Row, limited: bool = True) -> tuple[dict[str, Any], bool]:
        """A row as `{"input_ids": [...], ...}`, and whether it was cut.

        Args: limited: by the length of the rows that are trained on.

        Raises:
            DataError: the row cannot be read; `encode_stream` says where it stands.
        """

    def lengths(self, split: Hashable) -> Sequence[int]:
        """Tokens of each row that was kept of a split."""

    def mistakes(self, task: Task) -> Sequence[PerdureError]:
        """What is wrong with a task as a whole, such as labels of equal tokens."""

    def special_in(self, row: Row) -> tuple[str, bool] | None:
        """A special token in a row's own texts, and whether it stands in the answer."""


def encode_stream(
    stream: TaskStream,
    encoder: RowEncoder,
    context_length: int | None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Have `encoder` tokenize and keep all rows, so that one too long is told now.

    How many rows are cut, and rows whose texts hold special tokens or NULs, are told as warnings.

    Args: progress: told how many rows are done, every few hundred.

    Raises:
        RecipeError: rows longer than `train.max_length` or than the model's context, each with its
            file and line; or labels that the tokenizer cannot tell apart.
    """
    mistakes: list[PerdureError] = []
    special: list[tuple[str, str, bool]] = []
    with_nul: list[str] = []
    done = itertools.count(1)

    def one_more() -> None:
        if (number := next(done)) % TOGETHER == 0 and progress is not None:
            progress(number)

    for task in stream:
        mistakes += encoder.mistakes(task)
        for split in SPLITS:
            mistakes += _keep(task, split, encoder, context_length, one_more)
            shared = split == "test" and task.test_of  # another task's rows, counted there
            for number, row in enumerate(() if shared else getattr(task, split), 1):
                if held := encoder.special_in(row):
                    special.append((_where(task, split, row, number), *held))
                if _holds_nul(row):
                    with_nul.append(_where(task, split, row, number))
    if with_nul:
        logger.warning(
            "%s: its text holds a NUL character, which nobody sees and the model reads; so do %d "
            "rows in all",
            with_nul[0], len(with_nul),
        )  # fmt: skip
    _tell_special(special, _special_labels(stream, encoder))
    if held_by := _special_texts(stream, encoder):
        logger.warning(
            "general.source: %s: the text %r holds the special token %r, which the model reads as "
            "such; so do %d texts in all",
            stream.general.source, *held_by,
        )  # fmt: skip
    if mistakes:
        raise RecipeError(mistakes)


def _keep(
    task: Task,
    split: str,
    encoder: RowEncoder,
    context_length: int | None,
    one_more: Callable[[], None],
) -> list[PerdureError]:
    """Tokenize and keep the rows of one split; return what is wrong with them."""
    rows, cut, name = getattr(task, split), 0, (task.name, split)
    # By reinforcement a prompt is trained on with what the model writes.
    own = task.learn == "rl" and split == "train"
    mistakes: list[PerdureError] = []
    no_room: list[tuple[int, str, str]] = []  # prompt's tokens, place and file
    encoder.kept.begin(name)
    for number, (row, found) in enumerate(_encoded(rows, encoder, not own), 1):
        one_more()
        try:
            if isinstance(found, DataError):
                raise found
            encoded, was_cut = found
            cut += was_cut
            if own and context_length is not None:
                prompt = len(encoded["input_ids"]) - labels_of(encoded)
                if prompt + task.max_new_tokens > context_length:
                    place = place_of(row) or f"{task_named(task.name)}: row {number}"
                    no_room.append((prompt, place, place.rpartition(":")[0]))
            elif context_length is not None:
                _refuse_too_long(encoded, context_length)
            encoder.kept.add(name, row, encoded, was_cut)
        except DataError as error:
            place = _where(task, split, row, number)
            source = place.rpartition(":")[0]
            mistakes.append(DataError(f"{place}: {error.what}", error.remedy, source))
    if no_room and context_length is not None:
        mistakes.append(_no_room(no_room, task.max_new_tokens, context_length))
    if cut:
        logger.warning(
            "%s: %d of %d %s rows have %s",
            task_named(task.name), cut, len(rows), split, encoder.cut_told,
        )  # fmt: skip
    return mistakes


def _holds_nul(row: Row) -> bool:
    turns = row.get("prompt", ())
    texts = (turn.get("content") for turn in turns if isinstance(turn, Mapping))
    return any(isinstance(text, str) and "\0" in text for text in (*texts, *row.values()))


def _tell_special(
    rows: Sequence[tuple[str, str, bool]], labels: Iterable[tuple[str, str, str, int]]
) -> None:
    """Warn of the first row that holds a special token and count the others; labels apart.

    Args: rows: for each its place, the token and whether the answer holds it.
    """
    if rows:
        (place, token, _), answers = rows[0], sum(in_answer for *_, in_answer in rows)
        logger.warning(
            "%s: its own text holds the special token %r, which the model reads as such: a turn "
            "may end or begin there; so do %d rows in all, %d of them in the prompt and %d in the "
            "answer",
            place, token, len(rows), len(rows) - answers, answers,
        )  # fmt: skip
    for place, label, token, count in labels:
        logger.warning(
            "%s: the label %r holds the special token %r, which the model reads as such; so do "
            "%d labels in all",
            place, label, token, count,
        )  # fmt: skip


def _where(task: Task, split: str, row: Row, number: int) -> str:
    """The row's file and line; of a row that came from none, its task, split and number."""
    return place_of(row) or f"{task_named(task.name)}: {split} row {number}"


def _special_texts(stream: TaskStream, encoder: RowEncoder) -> tuple[str, str, int] | None:
    """The beginning of the first general text with a special token, that token, and how many texts
    have one; None where none has."""
    found = [
        (text, special[0])
        for text in dict.fromkeys((*stream.general.replay, *stream.general.held_out))
        if (special := encoder.special_in({"prompt": [], "answer": text, "text": text}))
    ]
    if not found:
        return None
    text, token = found[0]
    return f"{text[:_SHOWN]}..." if len(text) > _SHOWN else text, token, len(found)


def _special_labels(stream: TaskStream, encoder: RowEncoder) -> Iterator[tuple[str, str, str, int]]:
    """The first label with a special token, its task and token, and how many labels have one."""
    found = [
        (task_named(task.name), label, special[0])
        for task in stream
        for label in task.labels
        if (special := encoder.special_in({"prompt": [], "answer": label, "text": ""}))
    ]
    yield from ((*first, len(found)) for first in found[:1])


def told_of_rows(display: Any, name: str, count: int) -> Callable[[int], None] | None:
    """What has a display show how many of `count` rows are done, if that takes more than a moment;
    None where there is no display.

    Args: name: of the recipe.
    """
    if not hasattr(display, "doing"):
        return None
    begun = time.monotonic()

    def tell(done: int) -> None:
        if time.monotonic() - begun > MOMENT:
            display.doing(name, "checking", "rows", done, count)

    return tell


def _encoded(
    rows: Sequence[Row], encoder: RowEncoder, limited: bool
) -> Iterator[tuple[Row, Encoded]]:
    """Each row and what the encoder makes of it, or the error that it raises."""
    together = getattr(encoder, "encode_together", None)
    # An encoder of somebody else's kind may know no such word.
    own: dict[str, bool] = {} if limited else {"limited": False}
    for at in range(0, len(rows), TOGETHER):
        block = [rows[i] for i in range(at, min(at + TOGETHER, len(rows)))]
        found = together(block, **own) if together else _each(block, encoder, own)
        yield from zip(block, found, strict=True)


def _each(rows: Sequence[Row], encoder: RowEncoder, own: Mapping[str, bool]) -> Iterator[Encoded]:
    for row in rows:
        try:
            yield encoder.encode_and_tell(row, **own)
        except DataError as error:
            yield error


def _refuse_too_long(encoded: dict[str, Any], context: int) -> None:
    """Raise `DataError` where a row passes the context, the most tokens that the model takes."""
    width = len(encoded["input_ids"])
    if width > context:
        raise DataError(
            f"{width} tokens, the model's context is {context}",
            "shorten the row, or take a model with a longer context",
        )


def _no_room(found: Sequence[tuple[int, str, str]], written: int, context: int) -> DataError:
    """Prompts of reinforcement that leave too little of the context for the longest completion.

    Args: found: of each its tokens, its place and its file.
    """
    prompt, place, file = max(found)
    rest = "" if len(found) == 1 else f"; of {len(found)} such rows this is the longest"
    room = context - prompt
    remedies = ["shorten the row, or take a model with a longer context"]
    if room > 0:
        remedies.insert(0, f"lower max_new_tokens: {room} would do for all rows")
    return DataError(
        f"{place}: {prompt} tokens of prompt and max_new_tokens: {written} to be written, the "
        f"model's context is {context}{rest}",
        remedies,
        file,
    )
