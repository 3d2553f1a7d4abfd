"""A task and a stream of tasks: what is learned and how it is scored, and nothing about models.

Every row of a task, wherever it came from, has the schema of the task's kind
(`perdure.streams.kinds`). That of the kind "generation":

    {"prompt": [{"role": "user", "content": "..."}, ...], "answer": "..."}
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from perdure.errors import UsageError, task_named
from perdure.recipe.data import Scenario
from perdure.recipe.until import UntilConfig
from perdure.streams.kinds import Row as Row
from perdure.streams.kinds import metric


class PlacedRow(Row):
    """A row that knows where it was read, "file:line"; equal to the same row without it.

    It keeps its place through shuffles, splits and caps; nothing that is made of a row's content
    (hashes, tokens, files) shows it.
    """

    __slots__ = ("place",)

    def __init__(self, row: Row, place: str) -> None:
        super().__init__(row)
        self.place = place

    def __reduce__(self) -> Any:
        return PlacedRow, (dict(self), self.place)


def place_of(row: Row) -> str:
    """Where a row was read, "" where that is not known."""
    return row.place if isinstance(row, PlacedRow) else ""


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    `labels` is the declared set of answers of a labelled task, () where answers are free text.
    `metric` is a metric's name, or a user's own as "module:function"; its record
    (`perdure.streams.kinds.metric`) says the range of scores and which direction is better.
    `learn` is how it is learned: "sft" (supervised, on its rows' answers), or "none": it is only
    scored. `until` ends its training early. `answer` is how what the model writes is read: as it
    is, or by `perdure.streams.tagged.parse_tagged`; `prefill` is what the prompt of each of its
    rows ends in, and rows that need it carry it themselves. `test_of` names the task whose test
    rows these are, so that one score is both tasks'. `train_kept` is False for a task that a run
    learned before it was extended: its training rows may be gone, and `train` is empty.
    """

    name: str
    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    metric: str
    kind: str = "generation"
    version: str = "1"
    labels: tuple[str, ...] = ()
    max_new_tokens: int = 32
    source: str = ""
    learn: str = "sft"
    answer: Literal["plain", "tagged"] = "plain"
    prefill: str = ""
    test_of: str = ""
    until: UntilConfig | None = None
    train_kept: bool = True

    @property
    def higher_is_better(self) -> bool:
        return metric(self.metric).higher_is_better


def shown(task: Task, most: int | None) -> list[Row]:
    """A task's rows that are scored where `most` are, None for all: the first ones in their order,
    and where it has labels so many of each as nearly as there are, as files are often sorted."""
    if most is None or len(task.test) <= most:
        return list(task.test)
    turn: Counter[Any] = Counter()
    turns = []
    for i, row in enumerate(task.test):
        label = row.get("label", row.get("answer")) if task.labels else None
        turns.append((turn[label] if task.labels else i, i))
        turn[label] += 1
    return [task.test[i] for i in sorted(i for _, i in sorted(turns)[:most])]


class Gone(Sequence[Row]):
    """In place of rows that a run no longer has: whoever looks at them is told."""

    def __init__(self, task: str) -> None:
        self.task = task

    def _told(self) -> UsageError:
        return UsageError(
            f"method: the training rows of {task_named(self.task)} are not kept",
            "a method that trains on earlier tasks' rows says so: needs_old_rows = True",
        )

    def __len__(self) -> int:
        raise self._told()

    def __getitem__(self, index: Any) -> Any:
        raise self._told()


@dataclass(frozen=True)
class GeneralText:
    """Ordinary text that stands for what the model could already do.

    `replay` may be trained on by methods; `held_out` only measures, and shares no text with it.
    """

    replay: Sequence[str] = ()
    held_out: Sequence[str] = ()
    source: str = ""

    @property
    def version(self) -> str:
        """A hash of all texts."""
        texts = json.dumps([list(self.replay), list(self.held_out)])
        return hashlib.sha256(texts.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class NoClass:
    """Texts of no class, such as questions that no intent answers. No task has them, none is
    learned: they show whether a classifier knows what it does not know."""

    validation: Sequence[str] = ()
    test: Sequence[str] = ()


@dataclass(frozen=True)
class TaskStream:
    """Tasks in the order they are learned."""

    tasks: tuple[Task, ...]
    general: GeneralText = field(default_factory=GeneralText)
    scenario: Scenario = "task-incremental"
    name: str = ""
    no_class: NoClass = field(default_factory=NoClass)

    def __post_init__(self) -> None:
        names = [t.name for t in self.tasks]
        if twice := {n for n in names if names.count(n) > 1}:
            raise UsageError(f"stream: task name used twice: {', '.join(sorted(twice))}")

    @property
    def classes(self) -> dict[str, int]:
        """Every class by the number of the first task that learns it, in the order learned."""
        found: dict[str, int] = {}
        for number, task in enumerate(self.tasks):
            for label in task.labels if task.learn != "none" else ():
                found.setdefault(label, number)
        return found

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)
