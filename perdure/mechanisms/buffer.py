"""A buffer of kept rows for methods that replay, as plain JSON values so that it can be saved.

Rows are kept as text, not as token ids: they outlive a change of tokenizer or template.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

Kept = list[dict[str, Any]]
"""Kept rows, each `{"task": name, "row": {...}}`."""


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
