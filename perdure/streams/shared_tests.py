"""Test rows that two tasks share (`test_of`), so that they are answered once for both."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from perdure.errors import task_named
from perdure.streams.kinds import Kind, metric_of
from perdure.streams.rows import Placed
from perdure.streams.tables import Mistakes
from perdure.streams.task import Task, place_of

if TYPE_CHECKING:
    from perdure.recipe.data import TaskConfig

logger = logging.getLogger("perdure")


def with_test_of(
    section: TaskConfig | None,
    other: Task,
    config: TaskConfig,
    kind: Kind,
    labels: tuple[str, ...],
    splits: dict[str, list[Placed]],
    mistakes: Mistakes,
) -> dict[str, list[Placed]]:
    """The splits of a task with the test rows of another one.

    Where those were set aside from the other task's training rows, they are set aside here too:
    the same row of the same file, and a row of the same prompt, is not trained on.

    Args: section, other: the other task as the recipe has it (None: another recipe had it) and as
        it was read; config, kind, labels, splits: this one's.
    """
    _refuse_other_reading(config, kind, labels, other, mistakes)
    test = [
        Placed(row, place_of(row), "", kind.question_of(row), row.get("group", ""))
        for row in other.test
    ]
    found = {**splits, "test": test}
    if section is None or section.test is None:
        places, questions = {one.place for one in test}, {one.question for one in test}
        for split in ("train", "validation"):
            rows = splits.get(split)
            if rows is None:
                continue
            found[split] = [
                one for one in rows if one.place not in places and one.question not in questions
            ]
            if out := len(rows) - len(found[split]):
                logger.warning(
                    "%s: %d of %d %s rows are set aside as test rows of %s",
                    task_named(config.name), out, len(rows), split, other.name,
                )  # fmt: skip
    return found


def _refuse_other_reading(
    config: TaskConfig, kind: Kind, labels: tuple[str, ...], other: Task, mistakes: Mistakes
) -> None:
    """Note what makes one score of the same rows mean two things in two tasks."""
    theirs = {
        "kind": (kind.name, other.kind),
        "metric": (metric_of(config), other.metric),
        "answer": (config.answer, other.answer),
        "prefill": (config.prefill, other.prefill),
        "max_new_tokens": (config.max_new_tokens, other.max_new_tokens),
        "labels": (", ".join(labels), ", ".join(other.labels)),
    }
    for key, (mine, own) in theirs.items():
        if mine != own:
            what = (
                f'{config.place("test_of")}: "{other.name}" is scored with {key}: {own or "none"}'
            )
            what += (
                f", and this task with {key}: {mine or 'none'}; the rows are scored once for both"
            )
            remedy = f"write the same {key} in both, or give this task a test of its own"
            mistakes.add(config.name, what, remedy)
