"""After each task: does the classifier tell texts of its classes from texts of no class?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from perdure.scoring.no_class import Scored, figures
from perdure.streams.task import Row, TaskStream


def no_class_figures(
    stream: TaskStream, learned: int, logits: Callable[[Sequence[Row]], Tensor]
) -> dict[str, float]:
    """The figures of `perdure.scoring.no_class` after so many tasks; {} where the stream has no
    texts of no class, or a row's task is known when it is answered.

    Args: logits: of rows over all learned classes, (rows, classes).
    """
    if stream.scenario != "class-incremental" or not stream.no_class.test:
        return {}
    homes = stream.classes
    number = {name: k for k, name in enumerate(homes)}
    found = [
        _scored(
            [
                row
                for task in stream.tasks[:learned]
                for row in getattr(task, split)
                if homes.get(row["label"], learned) < learned  # of a task that is only scored
            ],
            getattr(stream.no_class, split),
            number,
            logits,
        )
        for split in ("validation", "test")
    ]
    return figures(*found)


def _scored(
    rows: Sequence[Row],
    texts: Sequence[str],
    number: dict[str, int],
    logits: Callable[[Sequence[Row]], Tensor],
) -> Scored:
    nobody = next(iter(number))  # rows are encoded with a label, which is not looked at
    unknown: list[dict[str, Any]] = [{"text": text, "label": nobody} for text in texts]
    if not rows or not unknown:
        return Scored([], [], [])
    shares, best = logits([*rows, *unknown]).softmax(-1).max(-1)
    right = [int(best[k]) == number[row["label"]] for k, row in enumerate(rows)]
    return Scored(shares[: len(rows)].tolist(), right, shares[len(rows) :].tolist())
