"""Keeping rows of earlier tasks and drawing some in each step: what methods that replay share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field

from perdure.errors import UsageError
from perdure.mechanisms.buffer import (
    Kept,
    balanced,
    by_class,
    class_quota,
    herded,
    reservoir,
    shares,
)
from perdure.protocol.labels import class_of
from perdure.protocol.method import Method, MethodConfig, Reads, Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import EncodedRows
    from perdure.protocol.context import Context
    from perdure.streams.task import Task

_AT_ONCE = 32
"""Rows in a forward pass that reads features."""


class BufferConfig(MethodConfig):
    buffer_size: int = Field(64, gt=0, description="rows kept in all")
    policy: Literal["reservoir", "balanced"] = Field(
        "balanced",
        description="reservoir: every row of the stream with equal chance; "
        "balanced: the same number of rows for each task, or class",
    )
    balance: Literal["task", "class"] = Field(
        "task",
        description="balanced over tasks, or over classes: each keeps buffer_size / classes rows, "
        "at least one, and fewer as classes come",
    )
    choose: Literal["random", "herding"] = Field(
        "random",
        description="which rows of a class: random ones, or those whose mean feature is nearest "
        "to the class's",
    )
    mix: Literal["on top", "half"] = Field(
        "on top",
        description="on top: replayed rows come on top of the batch; half: half of each batch is "
        "new and half kept rows, drawn with replacement, in twice as many steps",
    )
    ratio: float = Field(
        0.25,
        gt=0,
        le=100,
        description="on top: replayed rows a step, over the batch size; at least 1",
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.balance == "class" and self.policy == "reservoir":
            yield Mistake(("balance",), "has no effect with policy: reservoir", "leave policy out")
        if self.choose == "herding" and (self.balance != "class" or self.policy == "reservoir"):
            yield Mistake(("choose",), "herding is done class by class", "write balance: class")
        if self.mix == "half" and self.ratio != type(self).model_fields["ratio"].default:
            yield Mistake(("ratio",), "has no effect with mix: half", "leave it out")


class Buffered(Method):
    """Keeps rows of each task and replays some in later ones; a method adds their loss.

    Attributes:
        kept: the buffer; seen: rows that were offered to it.
    """

    config: BufferConfig
    requires = Requires(logits=True, rows=True)
    saved = ("kept", "seen")
    keeps_rows = True

    def __init__(self, config: BufferConfig) -> None:
        super().__init__(config)
        self.kept: Kept = []
        self.seen = 0
        self.halves = self.config.mix == "half"
        self._rows: list[dict[str, Any]] | None = None

    def check(self, classes: Sequence[str]) -> None:
        if self.config.balance == "class":
            if not classes:
                raise UsageError(
                    "method: balance: class: the tasks have no classes, a row's answer is text",
                    "write balance: task",
                )
            class_quota(self.config.buffer_size, len(classes))

    def reads(self, tasks: Sequence[Task], batch_size: int) -> Reads:
        more = 0 if self.config.mix == "half" else self._on_top(batch_size)
        herds = self.config.choose == "herding"
        return Reads(
            learned=more if len(tasks) > 1 else 0, after=len(tasks[-1].train) if herds else 0
        )

    def _on_top(self, batch_size: int) -> int:
        """Rows that are replayed in a step on top of the batch."""
        return max(1, round(self.config.ratio * batch_size))

    def new_rows(self, tasks: Sequence[Task]) -> int:
        """How many rows of the last of these tasks are kept when it has been learned; of a
        reservoir, which draws them, the most."""
        size, rows = self.config.buffer_size, tasks[-1].train
        if self.config.policy == "reservoir":
            return min(size, len(rows))
        if self.config.balance == "class":
            quota = size // max(1, len({row["label"] for task in tasks for row in task.train}))
            counts = Counter(row["label"] for row in rows)
            return sum(min(quota, count) for count in counts.values())
        kept: list[int] = []
        for task in tasks:
            kept = shares([*kept, min(size, len(task.train))], size)
        return kept[-1]

    def begin_task(self, ctx: Context) -> None:
        self._rows = None
        if self.config.balance == "class":
            if ctx.classes is None:
                self.check(())
            else:
                class_quota(self.config.buffer_size, ctx.classes.count)

    def replay(self, ctx: Context) -> EncodedRows | None:
        if not self.kept:
            return None
        if self._rows is None:
            self._rows = [self.encoded(ctx, entry) for entry in self.kept]
        half = self.config.mix == "half"
        size = ctx.batch_size if half else self._on_top(ctx.batch_size)
        return ctx.draw(self._rows, size, replace=half)

    def encoded(self, ctx: Context, entry: Mapping[str, Any]) -> dict[str, Any]:
        """A kept row, encoded."""
        return ctx.encode(entry["row"])

    def end_task(self, ctx: Context) -> None:
        rows: list[dict[str, Any]] = [dict(row) for row in ctx.task.train]
        size, seed = self.config.buffer_size, f"replay/{ctx.seed}/{ctx.task_index}"
        if self.config.policy == "reservoir":
            self.kept, self.seen = reservoir(self.kept, self.seen, ctx.task.name, rows, size, seed)
            return
        self.seen += len(rows)
        if self.config.balance == "task":
            self.kept = balanced(self.kept, ctx.task.name, rows, size, seed)
            return
        self.kept = self._of_classes(ctx, rows, seed)

    def _of_classes(self, ctx: Context, rows: Sequence[dict[str, Any]], seed: str) -> Kept:
        """The buffer with as many rows of each class."""
        encoded = [ctx.encode(row) for row in rows]
        groups: dict[int, list[int]] = {}
        for i, row in enumerate(encoded):
            if (name := class_of(row)) is not None:
                groups.setdefault(name, []).append(i)
        seen = {entry["class"] for entry in self.kept} | groups.keys()
        quota = class_quota(self.config.buffer_size, len(seen))
        rng, new = random.Random(seed), Kept()
        for name in sorted(groups):
            order = rng.sample(groups[name], len(groups[name]))
            if self.config.choose == "herding":
                found = features_of(ctx, [encoded[i] for i in groups[name]])
                order = [groups[name][i] for i in herded(found, quota)]
            new += [
                {"task": ctx.task.name, "row": dict(rows[i]), "class": name} for i in order[:quota]
            ]
        # Of a class that comes again the rows that are there stay first.
        return by_class([*self.kept, *new], self.config.buffer_size, len(seen))


@torch.no_grad()
def features_of(ctx: Context, rows: Sequence[dict[str, Any]]) -> Tensor:
    """What the head reads of encoded rows, (rows, hidden), in their order."""
    parts = [ctx.forward(rows[i : i + _AT_ONCE]).features for i in range(0, len(rows), _AT_ONCE)]
    return torch.cat(parts)
