"""Rows that are there twice, in one split or in two, are counted and told: nothing is taken out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perdure.errors import brief, task_named
from perdure.streams.kinds import kind
from perdure.streams.kinds.base import Row, whole_row
from perdure.streams.task import place_of

if TYPE_CHECKING:
    from perdure.streams.rows import Placed
    from perdure.streams.task import Task

logger = logging.getLogger("perdure")
_PAIRS = (
    ("test", "train", "that is trained on", "the score of these rows shows memory, not skill"),
    (
        "validation",
        "train",
        "that is trained on",
        "what methods measure on these rows shows memory, not skill",
    ),
    (
        "test",
        "validation",
        "of the validation rows",
        "what a method chooses by these rows is not judged by others",
    ),
)


def warn_of_two_classes(source: str, splits: Mapping[str, Sequence[Placed]], label: str) -> None:
    """Tell how many texts of a table bear more than one class, in whatever tasks and splits.

    Args: source: what the table is called; label: the key of a row's class.
    """
    first: dict[str, Placed] = {}
    pairs: dict[str, tuple[Placed, Placed]] = {}
    for rows in splits.values():
        for placed in rows:
            other = first.setdefault(placed.question, placed)
            if other.row[label] != placed.row[label]:
                pairs.setdefault(placed.question, (placed, other))
    if pairs:
        one, other = next(iter(pairs.values()))
        logger.warning(
            '%s: %d %s more than one class (the first: %s is "%s", %s "%s"); where all classes '
            "compete, one of them is always wrong",
            source, len(pairs), "text has" if len(pairs) == 1 else "texts have",
            one.place, brief(one.row[label]), other.place, brief(other.row[label]),
        )  # fmt: skip


def warn_of_shared(tasks: Sequence[Task]) -> None:
    """Tell once how many rows ask what a row of an earlier task asks, with the same answer or not.

    Rows of one kind are compared with each other. Two tasks of which one is scored on the other's
    test rows (`test_of`) are meant to learn from the same rows: of them that alone is told that a
    test row is trained on.
    """
    if len(tasks) < 2:
        return
    first: dict[tuple[str, str], tuple[Task, Row]] = {}
    places: dict[tuple[str, str], str] = {}
    wholes: dict[tuple[str, str], Task] = {}
    trained: dict[tuple[str, str], set[str]] = {}
    tested: list[tuple[str, tuple[str, str]]] = []
    later: list[tuple[Task, Row, Task, Row]] = []
    equal = 0
    for task in tasks:
        home = kind(task.kind)
        splits = {"train": task.train, "validation": task.validation, "test": task.test}
        for split, rows in splits.items():
            if split == "test" and task.test_of:
                continue  # they are the other task's
            for row in rows:
                key = (task.kind, home.question_of(row))
                whole = (task.kind, whole_row(home.item(row)))
                other = first.setdefault(key, (task, row))
                tested_too = "test" in (split, places.setdefault(key, split))
                meant = other[0].name == task.test_of or other[0].test_of == task.name
                if other[0] is not task and (tested_too or not meant):
                    later.append((task, row, *other))
                    equal += wholes.get(whole, task) is not task
                wholes.setdefault(whole, task)
                if split == "train":
                    trained.setdefault(key, set()).add(task.name)
                elif split == "test":
                    tested.append((task.name, key))
    if not later:
        return
    elsewhere = sum(bool(trained.get(key, set()) - {name}) for name, key in tested)
    rows_have = "1 row has" if len(later) == 1 else f"{len(later)} rows have"
    tests = "1 test row is" if elsewhere == 1 else f"{elsewhere} test rows are"
    more = f"; {tests} trained on in another task, which shows in the scores"
    task, row, early, same = later[0]
    logger.warning(
        "tasks: %s the prompt of a row of an earlier task (the first: %s of %s, as %s of "
        "%s), %d of them equal in everything; each is used in both%s",
        rows_have, place_of(row), task_named(task.name), place_of(same), task_named(early.name),
        equal, more if elsewhere else "",
    )  # fmt: skip


def warn_of_repeats(task: str, splits: Mapping[str, Sequence[Placed]]) -> None:
    """Tell how many rows of a split have a prompt of another one of it, or of another split.

    A prompt is the same as its kind's `question` says; a row, if it is the same in everything.
    """
    for split, rows in splits.items():
        first: dict[str, Placed] = {}
        again = [p for p in rows if first.setdefault(p.question, p) is not p]
        equal = _equal([first[placed.question] for placed in again], again)
        if again:
            logger.warning(
                "%s: %d of %d %s rows have the prompt of an earlier one (the first: %s, as "
                "%s), %d of them equal in everything; each is used as often as it is there",
                task_named(task), len(again), len(rows), split, again[0].place,
                first[again[0].question].place, equal,
            )  # fmt: skip
    for one, other, which, so in _PAIRS:
        seen = {placed.question: placed.place for placed in reversed(splits[other])}
        both = [n for n, placed in enumerate(splits[one]) if placed.question in seen]
        if both:
            asked = {splits[one][n].question for n in both}
            # Rows that are equal in everything ask the same: no other row need be looked at.
            same = {whole_row(p.row) for p in splits[other] if p.question in asked}
            whole_rows = sum(whole_row(splits[one][n].row) in same for n in both)
            at = splits[one][both[0]]
            logger.warning(
                "%s: %d of %d %s rows have a prompt %s (the first: %s, as %s), %d of them "
                "equal in everything; %s",
                task_named(task), len(both), len(splits[one]), one, which, at.place,
                seen[at.question], whole_rows, so,
            )  # fmt: skip


def _equal(first: Sequence[Placed], again: Sequence[Placed]) -> int:
    """How many of `again`, each with the prompt of one of `first`, are equal in everything to a row
    before them."""
    known, equal = {whole_row(placed.row) for placed in first}, 0
    for placed in again:
        whole = whole_row(placed.row)
        equal += whole in known
        known.add(whole)
    return equal
