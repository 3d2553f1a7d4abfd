"""A buffer of kept rows for methods that replay, as plain JSON values so that it can be saved.

Rows are kept as text, not as token ids: they outlive a change of tokenizer or template.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perdure.errors import UsageError

Kept = list[dict[str, Any]]
"""Kept rows, each `{"task": name, "row": {...}}`, with "class" where it is kept by its class."""


def reservoir(
    kept: Kept, seen: int, task: str, rows: Sequence[Mapping[str, Any]], size: int, seed: str
) -> tuple[Kept, int]:
    """Offer `rows` to a reservoir of `size` that has seen `seen` rows before.

    Every row ever offered is kept with the same chance, size / seen, whatever its task.
    Returns: the new rows and the new count; the inputs are left as they are.
    Source: Vitter 1985, "Random sampling with a reservoir", algorithm R.
    """
    rng, kept = random.Random(seed), list(kept)
    for row in rows:
        seen += 1
        place = len(kept) if len(kept) < size else rng.randrange(seen)
        if place < size:
            kept[place : place + 1] = [{"task": task, "row": dict(row)}]
    return kept, seen


def balanced(
    kept: Kept, task: str, rows: Sequence[Mapping[str, Any]], size: int, seed: str
) -> Kept:
    """Add `rows` as a new task and shrink all tasks to equal shares of `size`.

    A share is cut from the end of a list in random order, so what stays is a uniform sample.
    A task smaller than its share leaves the rest to the others.
    """
    rng = random.Random(seed)
    by_task: dict[str, Kept] = {}
    for entry in kept:
        by_task.setdefault(entry["task"], []).append(entry)
    chosen = rng.sample(list(rows), min(size, len(rows)))
    by_task[task] = [{"task": task, "row": dict(row)} for row in chosen]
    counts = shares([len(entries) for entries in by_task.values()], size)
    return [
        entry for entries, n in zip(by_task.values(), counts, strict=True) for entry in entries[:n]
    ]


def shares(available: Sequence[int], size: int) -> list[int]:
    """Split `size` as equally as `available` allows; what is left over goes to the first."""
    given = [0] * len(available)
    while size > 0 and (open_ := [i for i, n in enumerate(available) if given[i] < n]):
        each = max(1, size // len(open_))
        for i in open_:
            take = min(each, available[i] - given[i], size)
            given[i], size = given[i] + take, size - take
    return given


def by_class(kept: Kept, size: int, room: int) -> Kept:
    """The first `size // classes` entries of each class, which an entry names as "class".

    Args: room: classes that must have a row each, those kept included.

    Raises:
        UsageError: there is less than one row for each.
    """
    quota = class_quota(size, room)
    found: Kept = []
    counts: dict[int, int] = {}
    for entry in kept:
        counts[entry["class"]] = counts.get(entry["class"], 0) + 1
        if counts[entry["class"]] <= quota:
            found.append(entry)
    return found


def class_quota(size: int, classes: int) -> int:
    """Rows of each class in a buffer of `size` rows: the whole part of size / classes.

    Raises:
        UsageError: that is none.
    """
    if size < classes:
        raise UsageError(
            f"method: buffer_size: {size}: fewer rows than the {classes} classes, and each keeps "
            "at least one",
            f"write {classes} or more, or balance: task",
        )
    return size // max(1, classes)


def herded(features: Tensor, count: int) -> list[int]:
    """Rows whose running mean stays nearest to the mean of all, in the order chosen.

    Args: features: (rows, width), taken at length 1; count: the most rows.
    Returns: row numbers; of equally near ones the first.
    Source: iCaRL, Rebuffi et al. 2017 (arXiv 1611.07725), algorithm 4.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    mean, total = unit.mean(0), torch.zeros_like(unit[0])
    left = list(range(len(unit)))
    chosen: list[int] = []
    while left and len(chosen) < count:
        apart = (mean - (total + unit[left]) / (len(chosen) + 1)).norm(dim=-1)
        nearest = left.pop(int((apart <= apart.min() + 1e-12).nonzero()[0]))
        chosen.append(nearest)
        total = total + unit[nearest]
    return chosen
