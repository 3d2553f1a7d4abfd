"""Where labels of rows and batches stand, by `perdure.models.labels`; which classes compete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perdure.models.chat import IGNORE
from perdure.models.labels import Where, label_places

ROWS = "_rows"
"""Key of a batch under which Perdure's own trainer finds the rows on the host (`HostRows`)."""
LABELS_AT = "_labels_at"
"""Key of an encoded row that says where its labels stand, see `label_places`; without it a list
of labels is of next tokens and a single number is the row's own label. A batch that the engine
makes or takes from a trainer says it under the same key."""


def labels_at(row: Mapping[str, Any]) -> Where:
    """Where the labels of an encoded row stand."""
    labels = row["labels"]
    single = not labels.dim() if isinstance(labels, Tensor) else not hasattr(labels, "__len__")
    found: Where = row.get(LABELS_AT, "row" if single else "next")
    return found


def batch_labels_at(batch: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> Where:
    """Where the labels of a batch stand: its rows say so, or the batch itself.

    Args: rows: the batch's encoded rows, where they are at hand.

    Raises:
        ValueError: nothing says so, or the rows differ in it.
    """
    rows = rows or batch.get(ROWS) or ()
    found: set[Where] = {labels_at(row) for row in rows}
    if len(found) > 1:
        raise ValueError(f"rows of one batch have their labels at unlike places: {sorted(found)}")
    if not found and LABELS_AT in batch:
        found = {batch[LABELS_AT]}
    if not found and batch["labels"].dim() == 1:
        found = {"row"}
    if not found:
        raise ValueError(
            "nothing says where the labels of this batch stand: give its rows, or "
            f'{LABELS_AT!r}: "next", "own" or "row" in the batch'
        )
    return found.pop()


def batch_targets(batch: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> Tensor:
    """`label_places` of a batch, (batch, seq), or (batch, 1) where each row has one label."""
    if (shifted := batch.get("shift_labels")) is not None:
        return torch.as_tensor(shifted)  # a trainer that has moved them itself
    found: Tensor = label_places(batch["labels"], batch_labels_at(batch, rows))
    return found


def row_targets(row: Mapping[str, Any]) -> Sequence[int]:
    """`label_places` of one encoded row."""
    found: Sequence[int] = label_places(row["labels"], labels_at(row))
    return found


def labels_of(row: Mapping[str, Any]) -> int:
    """How many labels of an encoded row are predicted and counted."""
    return sum(label != IGNORE for label in row_targets(row))


def unlabelled(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with nothing to predict."""
    one = labels_at(row) == "row"
    return {**row, "labels": IGNORE if one else [IGNORE] * len(row["labels"])}


def class_of(row: Mapping[str, Any]) -> int | None:
    """The number of an encoded row's class, which is its column of the logits; None where its
    labels are of tokens, or it has none."""
    if labels_at(row) != "row" or row_targets(row)[0] == IGNORE:
        return None
    return row_targets(row)[0]


@dataclass(frozen=True)
class Classes:
    """Columns of the logits by what competes: one group of all classes (class-incremental), or one
    a task (task-incremental).

    Attributes:
        old: those learned before this task; seen: and this task's own.
    """

    old: tuple[tuple[int, ...], ...]
    seen: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Classes seen so far."""
        return len({c for group in self.seen for c in group})


def classes_of(
    owners: Sequence[int],
    task: int,
    within: bool,
    again: Mapping[int, Sequence[int]] | None = None,
) -> Classes:
    """The classes of a model whose columns belong to tasks.

    Args:
        owners: the first task of each learned column; task: the one being learned.
        within: classes compete within their own task.
        again: by task the older columns that come again in it.
    """

    def of(task: int) -> tuple[int, ...]:
        new = (c for c, owner in enumerate(owners) if owner == task)
        return tuple(sorted({*new, *(again or {}).get(task, ())}))

    def groups(tasks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        found = tuple(group for t in tasks if (group := of(t)))
        return found if within or not found else (tuple(sorted({c for g in found for c in g})),)

    return Classes(groups(range(task)), groups(range(task + 1)))
