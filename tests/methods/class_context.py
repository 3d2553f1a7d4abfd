"""A classifier whose logits are written down, and a context on it, for examples by hand.

Row i of a task has the i-th unit vector as its feature, so that column i of the heads' weights,
side by side, is what its logits are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from perdure.engine.session import TaskSession
from perdure.models.classifier import Classifier
from perdure.models.heads import Heads
from perdure.protocol.labels import classes_of
from perdure.streams.task import Task


class Whole:
    """Rows that are encoded already."""

    pad_id = 0

    def encode(self, row: Any) -> dict[str, Any]:
        return dict(row)


@cache
def _body() -> Any:
    config = AutoConfig.for_model(
        "bert", vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=4, max_position_embeddings=8,
    )  # fmt: skip
    return AutoModel.from_config(config)


def classifier(
    weight: Sequence[Sequence[float]], sizes: Sequence[int], within: bool = False
) -> Any:
    """Linear heads of so many classes each; `weight`: (classes, width), no bias."""
    table = torch.tensor(weight, dtype=torch.float32)
    model: Any = Classifier(_body(), "mean", Heads(table.shape[1], "linear"), within)
    for task, size in enumerate(sizes):
        model.grow(size, task)
    write(model, table)
    return model


@torch.no_grad()
def write(model: Any, weight: Tensor | Sequence[Sequence[float]]) -> None:
    table = torch.as_tensor(weight, dtype=torch.float32)
    for part, rows in zip(model.heads.parts, table.split(model.heads.sizes), strict=True):
        part.weight.copy_(rows)
        part.bias.zero_()


def rows_of(features: Any, labels: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"input_ids": [1], "labels": y, "_feature": x}
        for x, y in zip(torch.as_tensor(features).tolist(), labels, strict=True)
    ]


def collate(rows: Sequence[Any]) -> dict[str, Tensor]:
    ones = torch.ones(len(rows), 1, dtype=torch.long)
    return {
        "input_ids": ones,
        "attention_mask": ones,
        "labels": torch.tensor([int(row["labels"]) for row in rows]),
        "features": torch.tensor([row["_feature"] for row in rows]),
    }


def context(model: Any, rows: Any, *methods: Any, index: int = 1, **options: Any) -> Any:
    task = Task(f"task {index}", rows, (), rows, "accuracy", kind="classification")
    return TaskSession(
        model.eval(), Whole(), task, methods=methods, task_index=index, collate=collate,  # type: ignore[arg-type]
        classes=classes_of(model.owners, index, model.within), cache=Path("unused"), **options,
    ).context  # fmt: skip
