"""Cut one labelled source into tasks by its classes.

    stream:
      data: {train: intents.csv, columns: {text: utterance, label: intent}, tasks: 10}

Classes are dealt to tasks in an order that the recipe names; validation and test rows follow their
class. A split that is not given is taken from the training rows of each class, so that every class
has rows in it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from perdure.errors import brief
from perdure.streams.rows import Placed, capped, hold_out
from perdure.streams.tables import Mistakes, choices

if TYPE_CHECKING:
    from perdure.recipe.data import DataConfig

Splits = dict[str, list[Placed]]


def cut(
    splits: Splits, key: str, config: DataConfig, seed: int, mistakes: Mistakes
) -> list[tuple[str, tuple[str, ...], Splits]]:
    """Return each task's name, classes and rows, in the order in which they are learned.

    Args:
        splits: "train" and, where the source has them, "validation" and "test".
        key: a row's key that holds its class.
        seed: of the splits that are taken from the training rows.
    """
    if config.by is not None:
        return _by_column(splits, key, config, seed, mistakes)
    order = class_order([placed.row[key] for placed in splits["train"]], config)
    if isinstance(config.tasks, list):
        tasks = [tuple(task) for task in config.tasks]
        _check_listed(tasks, order, config, mistakes)
    else:
        tasks = dealt(order, config.tasks or 1)
        if len(order) < (config.tasks or 1):
            what = f"{config.place('tasks')}: {config.tasks} tasks of {len(order)} classes"
            mistakes.add(config.name, what, f"write at most {len(order)}")
    _check_repeats(tasks, config, mistakes)
    found = []
    for number, classes in enumerate(tasks, 1):
        rows = {
            split: [placed for placed in placed_rows if placed.row[key] in set(classes)]
            for split, placed_rows in splits.items()
        }
        whole = _whole(rows, key, classes, config, seed, mistakes)
        found.append((config.task_name(number, len(tasks)), classes, whole))
    return found


def class_order(labels: Sequence[str], config: DataConfig) -> list[str]:
    """The classes of these rows in the order that the recipe asks for."""
    counts = Counter(labels)
    first = list(counts)  # as they come first
    if config.order_seed is not None:
        order = sorted(first)
        random.Random(config.order_seed).shuffle(order)
        return order
    if config.order == "alphabetical":
        return sorted(first)
    if config.order == "frequency":
        return sorted(first, key=lambda label: (-counts[label], first.index(label)))
    return first


def dealt(order: Sequence[str], tasks: int) -> list[tuple[str, ...]]:
    """Classes in `tasks` stretches of about equal length; earlier ones take what is left over."""
    size, more = divmod(len(order), tasks)
    ends = [0]
    for number in range(tasks):
        ends.append(ends[-1] + size + (number < more))
    return [tuple(order[a:b]) for a, b in pairwise(ends)]


def _by_column(
    splits: Splits, key: str, config: DataConfig, seed: int, mistakes: Mistakes
) -> list[tuple[str, tuple[str, ...], Splits]]:
    names = list(dict.fromkeys(placed.part for placed in splits["train"]))
    found = []
    for name in names:
        rows = {
            split: [placed for placed in placed_rows if placed.part == name]
            for split, placed_rows in splits.items()
        }
        classes = tuple(dict.fromkeys(placed.row[key] for placed in rows["train"]))
        found.append((name, classes, rows))
    _check_repeats([classes for _, classes, _ in found], config, mistakes, names)
    return [
        (name, classes, _whole(rows, key, classes, config, seed, mistakes))
        for name, classes, rows in found
    ]


def _check_listed(
    tasks: Sequence[Sequence[str]], known: Sequence[str], config: DataConfig, mistakes: Mistakes
) -> None:
    listed = [name for task in tasks for name in task]
    for number, task in enumerate(tasks):
        for name in task:
            if name not in known:
                what = f'{config.place(f"tasks.{number}")}: no class is called "{brief(name)}"'
                mistakes.add(config.name, what, choices(name, known, "classes there are"))
    for name in known:
        if name not in listed:
            what = f'{config.place("tasks")}: the class "{brief(name)}" is in no task'
            mistakes.add(config.name, what, "name every class once, or take its rows out")


def _check_repeats(
    tasks: Sequence[Sequence[str]],
    config: DataConfig,
    mistakes: Mistakes,
    names: Sequence[str] | None = None,
) -> None:
    if config.repeat:
        return
    first: dict[str, int] = {}
    for number, task in enumerate(tasks):
        for name in task:
            other = first.setdefault(name, number)
            if other != number:
                here, there = (
                    f"task {names[k]}" if names else f"stream.data.tasks.{k}"
                    for k in (number, other)
                )
                what = f'{config.place("by" if names else "tasks")}: the class "{brief(name)}" '
                what += f"is in {there} and in {here}"
                mistakes.add(config.name, what, "if it does come again, write repeat: true")


def _whole(
    rows: Splits,
    key: str,
    classes: Sequence[str],
    config: DataConfig,
    seed: int,
    mistakes: Mistakes,
) -> Splits:
    """The task's splits, those that were not given taken from its training rows class by class."""
    train: list[Placed] = []
    held: Splits = {"validation": rows.get("validation", []), "test": rows.get("test", [])}
    for name in classes:
        own = [placed for placed in rows["train"] if placed.row[key] == name]
        count = len(own)
        if "test" not in rows and count:
            own, some = hold_out(own, config.test_share, seed)
            held["test"] = [*held["test"], *some]
        if "validation" not in rows and config.validation_share > 0 and own:
            own, some = hold_out(own, config.validation_share * count / len(own), seed)
            held["validation"] = [*held["validation"], *some]
        if not own:
            what = f'{config.place("train")}: the class "{brief(name)}" has {count} row'
            what += ("s" if count != 1 else "") + ", too few to learn and to test"
            mistakes.add(config.name, what, "give it more, or a test file of its own")
        train += capped(own, config.rows_per_class, seed)
    order = {id(placed): i for i, placed in enumerate(rows["train"])}
    train.sort(key=lambda placed: order[id(placed)])
    if not held["test"]:
        what = f"{config.place('test')}: no test row has one of these classes: "
        mistakes.add(config.name, what + ", ".join(map(brief, classes[:5])), "give it test rows")
    return {"train": train, **held}
