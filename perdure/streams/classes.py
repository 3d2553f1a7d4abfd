"""Cut one labelled source into tasks by its classes.

    stream:
      data: {train: intents.csv, columns: {text: utterance, label: intent}, tasks: 10}

Classes are dealt to tasks in an order that the recipe names; validation and test rows follow their
class. A split that is not given is taken from the training rows of each class, so that every class
has rows in it. Caps are of a task and go by class: its classes keep as equal shares as they can.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from perdure.errors import brief, task_named
from perdure.recipe.data import DataConfig
from perdure.streams.cells import folded
from perdure.streams.rows import Placed, capped, hold_out, shuffle_key
from perdure.streams.tables import Mistakes, choices, listed
from perdure.streams.task import NoClass

if TYPE_CHECKING:
    from perdure.recipe.data import TaskConfig

logger = logging.getLogger("perdure")
Splits = dict[str, list[Placed]]


class Part(NamedTuple):
    """A task to be: its name, its classes in the order of their columns, its rows."""

    name: str
    classes: tuple[str, ...]
    rows: Splits


def cut(
    splits: Splits,
    key: str,
    config: DataConfig,
    seed: int,
    mistakes: Mistakes,
    own: Sequence[Sequence[str]] = (),
) -> list[Part]:
    """Return the tasks in the order in which they are learned; none where there is a mistake.

    Args:
        splits: "train" and, where the source has them, "validation" and "test".
        key: a row's key that holds its class.
        seed: of the splits that are taken from the training rows, and of caps.
        own: a named stream's own tasks, each its classes; the recipe may deal them anew.
    """
    before = len(mistakes)
    if config.by is not None:
        parts = _by_column(splits, key, config, mistakes)
    else:
        parts = _by_class(splits, key, config, mistakes, own)
    if len(mistakes) > before:
        return []
    found = [part._replace(rows=whole(part, key, config, seed, mistakes)) for part in parts]
    tell_untested(found, key, config)
    return found if len(mistakes) == before else []


def tell_untested(parts: Sequence[Part], key: str, config: TaskConfig) -> None:
    """Warn of classes without a test row."""
    untested = [
        name
        for part in parts
        for name in part.classes
        if not any(placed.row[key] == name for placed in part.rows["test"])
    ]
    if untested and config.max_test_rows is None:
        have = "1 class has" if len(untested) == 1 else f"{len(untested)} classes have"
        told = "%s: %s no test row and will have no score: %s"
        logger.warning(told, config.name, have, listed(untested))


def apart(
    splits: Splits, key: str, config: DataConfig, seed: int, mistakes: Mistakes
) -> tuple[Splits, NoClass]:
    """Return the splits without rows of no class, and the texts of those.

    Nothing is learned of them. Where only the training split has some, they are dealt to
    validation and test in halves; else those in it are left out.
    """
    if config.no_class is None:
        if "no_class" in config.model_fields_set and any(
            p.row[key] == "null" for rows in splits.values() for p in rows
        ):
            what = (
                f'{config.place("no_class")}: null means no label, and rows have the label "null"'
            )
            mistakes.add(config.name, what, 'write it in quotes, "null", or leave no_class out')
        return splits, NoClass()
    wanted = folded(config.no_class)
    none = {s: [p for p in rows if folded(p.row[key]) == wanted] for s, rows in splits.items()}
    rest = {s: [p for p in rows if folded(p.row[key]) != wanted] for s, rows in splits.items()}
    if not any(none.values()):
        what = f'{config.place("no_class")}: no row has the label "{brief(config.no_class)}"'
        known = dict.fromkeys(p.row[key] for p in splits["train"])
        mistakes.add(config.name, what, choices(config.no_class, known, "labels there are"))
    if not none.get("validation") and not none.get("test") and len(none["train"]) > 1:
        none["validation"], none["test"] = hold_out(none["train"], 0.5, seed)
    texts = {s: tuple(p.row["text"] for p in rows) for s, rows in none.items()}
    return rest, NoClass(texts.get("validation", ()), texts.get("test", ()))


def class_order(labels: Sequence[str], config: DataConfig) -> list[str]:
    """The classes of these rows in the order that the recipe asks for."""
    counts = Counter(labels)
    first = list(counts)  # as they come first
    if config.order_seed is not None:
        order = sorted(first)
        random.Random(config.order_seed).shuffle(order)
        return order
    if config.order == "alphabetical":
        # Capitals among the others, in any locale; names that differ in case alone: capitals first.
        return sorted(first, key=lambda label: (label.casefold(), label))
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


def capped_by_class(rows: list[Placed], key: str, most: int | None, seed: int) -> list[Placed]:
    """Return `most` rows in file order, of each class as nearly the same number as there are.

    Which ones of a class decides a seeded shuffle; None returns all.
    """
    if most is None or len(rows) <= most:
        return rows
    turn: Counter[str] = Counter()
    order: list[tuple[int, bytes, int]] = []
    keys = [shuffle_key(seed, placed.question) for placed in rows]
    for i in sorted(range(len(rows)), key=lambda i: (keys[i], i)):
        label = rows[i].row[key]
        order.append((turn[label], keys[i], i))
        turn[label] += 1
    return [rows[i] for i in sorted(i for _, _, i in sorted(order)[:most])]


def _by_class(
    splits: Splits,
    key: str,
    config: DataConfig,
    mistakes: Mistakes,
    own: Sequence[Sequence[str]],
) -> list[Part]:
    order = class_order([placed.row[key] for placed in splits["train"]], config)
    if isinstance(config.tasks, list):
        tasks = [tuple(task) for task in config.tasks]
        _check_listed(tasks, order, config, mistakes)
        _check_twice(tasks, config, mistakes)
    else:
        shuffled = config.order != "file" or config.order_seed is not None
        if own and not shuffled:
            _check_listed(own, order, config, mistakes)
            order = [name for task in own for name in task]
        tasks = [tuple(task) for task in own]
        if shuffled or not own or config.tasks is not None:
            wanted = config.tasks or len(own) or 1
            if len(order) < wanted:
                what = f"{config.place('tasks')}: {wanted} tasks of {len(order)} classes"
                mistakes.add(config.name, what, f"write at most {len(order)}")
                return []
            tasks = dealt(order, wanted)
    homes: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        for name in task:
            homes.setdefault(name, []).append(number)
    called = [config.task_name(number, len(tasks)) for number in range(1, len(tasks) + 1)]
    parts = [Part(name, task, {}) for name, task in zip(called, tasks, strict=True)]
    for split, rows in splits.items():
        turn: Counter[str] = Counter()
        for part in parts:
            part.rows[split] = []
        for placed in rows:
            # A class that comes again has other rows each time: they are dealt in turn.
            name = placed.row[key]
            if at := homes.get(name):
                parts[at[turn[name] % len(at)]].rows[split].append(placed)
                turn[name] += 1
    return parts


def _by_column(splits: Splits, key: str, config: DataConfig, mistakes: Mistakes) -> list[Part]:
    names = list(dict.fromkeys(placed.part for placed in splits["train"]))
    first: dict[str, Placed] = {}
    classes: dict[str, dict[str, None]] = {name: {} for name in names}
    for placed in splits["train"]:
        label = placed.row[key]
        classes[placed.part][label] = None
        other = first.setdefault(label, placed)
        if other.part != placed.part and not config.repeat:
            first[label] = placed  # each further task is told once
            what = f'{placed.place}: the class "{brief(label)}" is in the task '
            what += f'"{brief(placed.part)}", and at {other.place} in "{brief(other.part)}"'
            remedy = f"if it does come again, write repeat: true ({config.place('by')})"
            mistakes.add(placed.source, what, remedy)
    for split, rows in splits.items():
        for placed in rows:
            if placed.part not in classes:
                what = f'{placed.place}: the task "{brief(placed.part)}" has no training row'
                mistakes.add(placed.source, what, choices(placed.part, names, "tasks there are"))
            elif placed.row[key] not in classes[placed.part]:
                what = f'{placed.place}: the class "{brief(placed.row[key])}" is not learned in '
                what += f'the task "{brief(placed.part)}"'
                mistakes.add(placed.source, what, f"put the {split} row into a task that learns it")
    return [
        Part(
            name,
            tuple(classes[name]),
            {split: [p for p in rows if p.part == name] for split, rows in splits.items()},
        )
        for name in names
    ]


def _check_listed(
    tasks: Sequence[Sequence[str]], known: Sequence[str], config: DataConfig, mistakes: Mistakes
) -> None:
    """Note names in a list that no row bears, and classes of rows that are in no list."""
    names = {name for task in tasks for name in task}
    for number, task in enumerate(tasks):
        for place, name in enumerate(task):
            if name not in known:
                what = f"{config.place(f'tasks.{number}.{place}')}: no class is called "
                what += f'"{brief(name)}"'
                mistakes.add(config.name, what, choices(name, known, "classes there are"))
    if left := [brief(name) for name in known if name not in names]:
        more = f" and {len(left) - 10} more" if len(left) > 10 else ""
        are = "1 class is" if len(left) == 1 else f"{len(left)} classes are"
        what = f"{config.place('tasks')}: {are} in no task: {', '.join(left[:10])}{more}"
        mistakes.add(config.name, what, "name every class once, or take its rows out")


def _check_twice(tasks: Sequence[Sequence[str]], config: DataConfig, mistakes: Mistakes) -> None:
    first: dict[str, tuple[int, int]] = {}
    for number, task in enumerate(tasks):
        for place, name in enumerate(task):
            other = first.setdefault(name, (number, place))
            if other == (number, place) or (config.repeat and other[0] != number):
                continue
            here = config.place(f"tasks.{number}.{place}")
            there = config.place("tasks.{}.{}".format(*other))
            what = f'{here}: the class "{brief(name)}" is in a task already: {there}'
            again = "if it does come again, write repeat: true"
            mistakes.add(config.name, what, "name it once" if other[0] == number else again)


def whole(part: Part, key: str, config: TaskConfig, seed: int, mistakes: Mistakes) -> Splits:
    """Return the task's splits within its caps, those that were not given taken from its training
    rows class by class, so that each class is learned and tested.

    Args: part: its rows by split, as they were given; key: a row's key that holds its class.
    """
    train: list[Placed] = []
    given = part.rows
    held: Splits = {"validation": given.get("validation", []), "test": given.get("test", [])}
    by_class: dict[str, list[Placed]] = {name: [] for name in part.classes}
    for placed in given["train"]:
        by_class[placed.row[key]].append(placed)
    for name, rows in by_class.items():
        own, count = rows, len(rows)
        if "test" not in given and count:
            own, some = hold_out(own, config.test_share, seed)
            held["test"] = [*held["test"], *some]
        if "validation" not in given and config.validation_share > 0 and len(own) > 1:
            rest, some = hold_out(own, config.validation_share * count / len(own), seed)
            if rest:  # else all of them ask the same
                own, held["validation"] = rest, [*held["validation"], *some]
        if not own:
            where = rows[0].place if rows else f"{config.place('train')}: {task_named(part.name)}"
            what = f'{where}: the class "{brief(name)}" has {count} row{"s" * (count != 1)}'
            if count > 1:
                what += " that ask the same"
            remedy = "give it more, or a test file of its own"
            mistakes.add(config.name, f"{what}, too few to learn and to test", remedy)
        most = config.rows_per_class if isinstance(config, DataConfig) else None
        train += capped(own, most, seed)
    most = config.max_train_rows
    if most is not None and most < len(part.classes):
        what = f"{config.place('max_train_rows')}: {most} rows for the {len(part.classes)} classes"
        what += f' of the task "{brief(part.name)}"'
        remedy = "write more"
        if isinstance(config, DataConfig):
            remedy += ", or rows_per_class instead"
        mistakes.add(config.name, what, remedy)
    order = {id(placed): i for i, placed in enumerate(given["train"])}
    train.sort(key=lambda placed: order[id(placed)])
    if not held["test"]:
        what = f"{config.place('test')}: no test row has one of the classes of the task "
        what += f'"{brief(part.name)}": {listed(part.classes)}'
        mistakes.add(config.name, what, "give it test rows, or leave test out: some are set aside")
    return {
        "train": capped_by_class(train, key, most, seed),
        "validation": capped_by_class(held["validation"], key, config.max_validation_rows, seed),
        "test": capped_by_class(held["test"], key, config.max_test_rows, seed),
    }
