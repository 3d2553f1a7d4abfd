"""What classes a run may learn after those that it has learned already."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.errors import DataError, PerdureError, RecipeError, UsageError, brief, task_named
from perdure.streams.cells import folded
from perdure.streams.kinds import kind
from perdure.streams.tables import Mistakes
from perdure.streams.task import Task, place_of

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe


def spelling(label: str) -> str:
    """What two spellings of one class have in common: all but case, blanks and Unicode form."""
    plain = unicodedata.normalize("NFKC", folded(label)).casefold()
    return "".join(unicodedata.normalize("NFKC", plain).split())


def check_homes(tasks: Sequence[Task], mistakes: Mistakes) -> None:
    """Note classes that two listed tasks learn, with the first row of both, and tasks that are only
    scored although no task learns one of their classes."""
    homes: dict[str, Task] = {}
    of_classes = [task for task in tasks if kind(task.kind).classes]
    for task in of_classes:
        for label in task.labels if task.learn != "none" else ():
            if (home := homes.setdefault(label, task)) is not task:
                here, there = _first(task, label), _first(home, label)
                what = f'{here}: the class "{brief(label)}" is in the task "{brief(task.name)}", '
                what += f'and at {there} in "{brief(home.name)}"'
                remedy = "give each class to one task; one that does come again needs one table, "
                mistakes.add(task.name, what, remedy + "stream.data with by and repeat: true")
    for task in of_classes:
        for label in task.labels:
            if label not in homes:
                what = f'{_first(task, label)}: the class "{brief(label)}" is learned by no task, '
                what += f'and the task "{brief(task.name)}" is only scored'
                mistakes.add(task.name, what, "take its rows out, or a task in that learns it")


def refuse_classes(recipe: Recipe, old: Sequence[Task], new: Sequence[Task]) -> None:
    """Refuse new tasks' classes that are old ones in another spelling, that come again although
    the recipe does not say so, or that are more than `model.head.preallocate` has room for.

    Args: recipe: the extension's; old: the tasks learned, new: those to come.

    Raises:
        RecipeError: each such class by name, with the place of its first row and the remedy.
    """
    data = recipe.stream.data
    again = data is not None and data.repeat
    homes = {label: task.name for task in reversed(old) for label in task.labels}
    spelt = {spelling(label): label for label in reversed(homes)}
    wrong: list[PerdureError] = []
    fresh: dict[str, None] = {}
    for task in new:
        for label in task.labels:
            where = _first(task, label)
            if label in homes:
                if not again:
                    what = f'{where}: the class "{brief(label)}" was learned in the task '
                    what += f'"{brief(homes[label])}" already'
                    remedy = "if it does come again, write stream.data.repeat=true behind the file"
                    wrong.append(DataError(what, remedy))
            elif (other := spelt.get(spelling(label))) is not None:
                what = f'{where}: the class "{brief(label)}" is "{brief(other)}" of the task '
                what += f'"{brief(homes[other])}" in another spelling ({_difference(label, other)})'
                remedy = f'if it is the same class, write it "{brief(other)}"'
                other_name = "if not, give it a name that differs in more than that"
                wrong.append(DataError(what, [remedy, other_name]))
            else:
                fresh[label] = None
    room, count = recipe.model.head.preallocate, len(homes) + len(fresh)
    if isinstance(room, int) and 0 < room < count:
        what = f"model.head.preallocate: {room}: with {len(fresh)} new classes the run has {count}"
        remedy = "take some classes out; another run may allocate more, or 0: heads grow"
        wrong.append(UsageError(what, remedy))
    if wrong:
        raise RecipeError(wrong)


def refuse_beyond(recipe: Recipe, classes: int) -> None:
    """Raise `UsageError` for more classes than `model.head.preallocate` has room for."""
    room = recipe.model.head.preallocate
    if isinstance(room, int) and 0 < room < classes:
        raise UsageError(
            f"{recipe.place('model.head.preallocate')}: {room}: the stream has {classes} classes",
            "write a higher number, or all, or 0: heads grow by themselves",
        )


def _first(task: Task, label: str) -> str:
    """Where a class's first row stands."""
    for row in (*task.train, *task.validation, *task.test):
        if row.get("label") == label and (place := place_of(row)):
            return place
    return task_named(task.name)


def _difference(label: str, other: str) -> str:
    """What two spellings of a class differ in."""
    for what, same in (
        ("blanks", lambda text: "".join(text.split())),
        ("case", str.casefold),
        ("Unicode form", lambda text: unicodedata.normalize("NFKC", text)),
    ):
        if same(label) == same(other):
            return what
    return "case, blanks or Unicode form"
