"""An adapter of its own for each task, on one body that stays: whose head reads whose features.

    ids ──► body with adapter k ──► features k ──► head k ──► logits of task k's classes

A task learns its adapter and its head, and both stay once it is learned. All tasks' logits side by
side take as many passes as there are adapters ("concat"); where a row's task is known its own
adapter alone is needed ("oracle").

Source: LoRA in the incremental learning of classes, as SEQ*'s released code has it (arXiv
2312.07887).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Select = Literal["concat", "oracle"]
Compete = Literal["own", "seen"]
SHARED = "default"
"""The adapter that `tuning: lora` attaches: all tasks have it in common, if none has its own."""


@dataclass(frozen=True)
class TaskAdapters:
    """Settings of the adapters, and which of them answer.

    Attributes:
        r, alpha, dropout: as of `perdure.recipe.schema.LoraConfig`.
        select: "concat": all learned classes have logits, each of its own task's adapter;
            "oracle": those of the row's task alone.
        compete: what a task's classes compete with while they are learned: "own", one another;
            "seen": earlier tasks' classes too, whose logits are given.
    """

    r: int = 4
    alpha: int = 8
    dropout: float = 0.1
    select: Select = "concat"
    compete: Compete = "own"


class AdapterBody:
    """The part of a classifier that knows the adapters of its tasks; see the module.

    Attributes:
        adapters: by task, the name of its adapter; empty: one body serves all heads.
        select, learning: see `TaskAdapters`, whose `compete` the latter is.
    """

    body: Any
    heads: Any
    owners: list[int]
    within: bool
    adapters: dict[int, str]
    select: Select
    learning: Compete

    @property
    def apart(self) -> bool:
        """Whether classes compete within their own task while they are learned."""
        return self.within or (bool(self.adapters) and self.learning == "own")

    def add_adapter(self, task: int, settings: TaskAdapters) -> None:
        """Add an adapter for a task on the modules that `tuning: lora` chose, and have it alone
        learn; what it begins with comes from torch's global generator: seed it first."""
        body, name = self.body, f"task-{task + 1}"
        config = copy.deepcopy(body.peft_config[body.active_adapter])
        config.r, config.lora_alpha = settings.r, settings.alpha
        config.lora_dropout = settings.dropout
        body.add_adapter(name, config)
        body.set_adapter(name)
        if SHARED in body.peft_config:
            body.delete_adapter(SHARED)
        self.adapters[task] = name
        self.select, self.learning = settings.select, settings.compete

    def settings_of(self, task: int) -> TaskAdapters:
        """The settings of a task's adapter."""
        found = self.body.peft_config[self.adapters[task]]
        both = self.select, self.learning
        return TaskAdapters(found.r, found.lora_alpha, found.lora_dropout, *both)

    def columns(self, task: int) -> list[int]:
        """The logits' columns of a task's own classes."""
        return [column for column, owner in enumerate(self.owners) if owner == task]

    @property
    def at_work(self) -> int:
        """The task whose adapter works."""
        active = self.body.active_adapter
        return next(task for task, name in self.adapters.items() if name == active)

    @contextmanager
    def using(self, task: int) -> Iterator[None]:
        """Have a task's adapter at work inside the block; what learns is as before afterwards."""
        body, before = self.body, self.body.active_adapter
        flags = [(p, p.requires_grad) for p in body.parameters()]
        body.set_adapter(self.adapters[task])
        try:
            yield
        finally:
            body.set_adapter(before)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def own_alone(self, logits: Any, others: Any = None) -> Any:
        """Logits, (rows, columns), with those of classes whose adapter is not the one at work, as
        their heads read other features, taken from `others`; None: -inf."""
        own = logits.new_zeros(logits.shape[-1], dtype=bool)
        own[self.columns(self.at_work)] = True
        if others is None:
            return logits.masked_fill(~own, float("-inf"))
        return logits.where(own, others.to(logits))

    def fingerprint_of(self, task: int) -> str:
        """A hash of all that a task's logits depend on beside the body, which stays."""
        digest, name = hashlib.sha256(), f".{self.adapters[task]}."
        parts = [p for n, p in self.body.named_parameters() if name in n]
        parts += self.heads.parts[task].parameters()
        for weight in parts:
            digest.update(weight.detach().float().cpu().numpy().tobytes())
        scale = getattr(self.heads.parts[task], "scale", 1.0)
        digest.update(str(float(scale)).encode())
        return digest.hexdigest()[:16]
