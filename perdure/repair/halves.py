"""Texts and test rows of a repair, each dealt to one of two halves: one searches, one reports."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from perdure.errors import DataError, RecipeError, UsageError, task_named
from perdure.recipe.general import TEXT_FILES
from perdure.recipe.load import load
from perdure.streams import build_stream
from perdure.streams.cells import one_spaced
from perdure.streams.general_text import file_texts
from perdure.streams.judge import StreamJudge
from perdure.streams.kinds import kind
from perdure.streams.named.demo import pydoc_texts
from perdure.streams.rows import shuffle_key
from perdure.streams.sources import Reader
from perdure.streams.tables import Mistakes
from perdure.streams.task import Task, TaskStream

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Half:
    """What one half of the search's or the report's measurements is made on."""

    texts: tuple[str, ...]
    tasks: tuple[Task, ...]
    """The tasks with their test rows of this half."""

    @property
    def counts(self) -> dict[str, int]:
        """How many texts, and rows of each task."""
        rows = {task.name: len(task.test) for task in self.tasks}
        return {"general texts": len(self.texts), **rows}


def read_texts(source: str) -> list[str]:
    """Read general texts: `pydoc` (Python's reference), a .txt of paragraphs, or a .jsonl.

    Raises:
        RecipeError: the file is missing, empty, of another kind, or has no column `text`.
    """
    if source == "pydoc":
        return list(pydoc_texts(0).held_out)
    mistakes = Mistakes()
    texts: list[str] | None = None
    if source.lower().endswith(TEXT_FILES):
        texts = file_texts(Reader(Path(), mistakes), source, "text", key="")
    else:
        what = f'--general {source}: files ending in "{Path(source).suffix}" are not read'
        mistakes.add(source, what, "name a .txt or .jsonl file, or pydoc")
    if mistakes:
        raise RecipeError(mistakes.listed())
    return texts or []


def read_tasks(
    files: Sequence[Path], check: Callable[[Recipe, TaskStream], None] = lambda recipe, stream: None
) -> list[Task]:
    """Read the tasks of recipes; a recipe for this may hold its tasks alone.

    Args: check: is called with each recipe and what was read of it.

    Raises:
        RecipeError: a recipe or its data is wrong.
        UsageError: two tasks of one name.
    """
    found: dict[str, Task] = {}
    for file in files:
        recipe = load(file, tasks_only=True, judge=StreamJudge())
        stream = build_stream(recipe.stream, None, recipe.folder, recipe.seed)
        check(recipe, stream)
        for task in stream:
            if task.name in found:
                raise UsageError(
                    f"--task {file}: a task called {task.name} was given already",
                    "give each task its own name",
                )
            found[task.name] = task
    return list(found.values())


def halve(
    texts: Sequence[str], tasks: Sequence[Task], most: tuple[int, int], seed: int
) -> tuple[Half, Half]:
    """Deal texts and test rows to a half that searches and one that reports.

    Which half an item is in depends on `seed` and its content alone. Texts and rows that occur
    twice count once; rows of the same prompt stay on one side.

    Args:
        most: texts, and rows a task, of both halves together.
    Raises:
        DataError: too little to have something in each half.
    """
    once = list({one_spaced(text): text for text in texts}.values())
    of_texts = deal(once, one_spaced, seed, most[0])
    if not all(of_texts):
        raise DataError("general text: there are no two different texts", "give some dozens")
    of_tasks = [_halves_of(task, seed, most[1]) for task in tasks]
    search, report = (
        Half(tuple(side), tuple(both[at] for both in of_tasks)) for at, side in enumerate(of_texts)
    )
    return search, report


def _halves_of(task: Task, seed: int, most: int) -> tuple[Task, Task]:
    rows = list(task.test)
    own = kind(task.kind)
    once = list({repr(own.item(row)): at for at, row in enumerate(rows)}.values())
    search, report = deal(once, lambda at: own.question_of(rows[at]), seed, most)
    if not search or not report:
        raise DataError(
            f"{task_named(task.name)}: has no two test rows with different prompts",
            "give it some dozens: one half chooses, the other reports",
        )
    return (
        replace(task, test=[rows[at] for at in search]),
        replace(task, test=[rows[at] for at in report]),
    )


def deal(
    items: Sequence[T], content: Callable[[T], str], seed: int, most: int
) -> tuple[list[T], list[T]]:
    """Deal the first `most` items of a seeded shuffle to two sides in turn.

    Items of the same content go to the same side; the shuffle depends on content only, so the
    order of `items` decides nothing.
    """
    groups: dict[str, list[T]] = {}
    for item in dict.fromkeys(items):
        groups.setdefault(content(item), []).append(item)
    sides: tuple[list[T], list[T]] = ([], [])
    for turn, name in enumerate(sorted(groups, key=lambda name: shuffle_key(seed, name))):
        if len(sides[0]) + len(sides[1]) + len(groups[name]) > most and turn > 1:
            break
        sides[turn % 2].extend(groups[name])
    return sides
