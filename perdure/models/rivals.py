"""Which classes compete for a row whose task is known (task-incremental)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def rivals_of(
    owners: Sequence[int], again: Mapping[int, Sequence[int]], to_come: int = 0
) -> Tensor:
    """The columns that compete with each class: those of the newest task that has it.

    A class that comes again is learned, and scored, beside the classes of the task at hand; rows of
    its earlier tasks that are replayed are taken for rows of the newest one.

    Args:
        owners: the first task of each learned class, in the order of their columns.
        again: by task the older classes that come again in it.
        to_come: columns behind them of classes that are not learned yet: they compete with none.

    Returns: (columns, columns) bool.
    """
    columns = len(owners) + to_come
    found = torch.zeros(columns, columns, dtype=torch.bool)
    for task in sorted({*owners, *again}):
        own = [*again.get(task, ()), *(c for c, owner in enumerate(owners) if owner == task)]
        group = torch.tensor(own)
        found[group] = False
        found[group.unsqueeze(1), group] = True
    return found


def within_own(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Logits (rows, classes) with -inf where a class is none of the `rivals` (classes, classes) of
    the row's label (rows,)."""
    return logits.masked_fill(~rivals[labels.clamp(min=0)], float("-inf"))
