"""What `perdure diagnose` measures on one model: its answers, its states, and what ten rows do.

Everything is made when it is asked for and kept, so that a base is measured once for many tuned
models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import nn

from perdure.errors import TrainingError, UsageError, task_named
from perdure.models.anatomy import unwrapped
from perdure.models.chat import Encoder
from perdure.models.served import router_of
from perdure.models.weights import evaluating
from perdure.protocol.batch import collate
from perdure.scoring.probe import Array, features
from perdure.scoring.routed import Routed, by_adapter, each_by_adapter, served_score
from perdure.scoring.score import TaskScore
from perdure.streams.kinds import kind
from perdure.streams.task import Row, Task

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured; more rows decide more and take longer."""

    rows: int | None = None
    """The most test rows of a task; None is all."""
    probe_rows: int = 256
    """Train rows that the probe is trained on, the most."""
    relearn_rows: int = 10
    """Train rows of the short training; 0 leaves it out."""
    relearn_steps: int = 10
    """Its steps, the most: it stops as soon as it knows its rows."""
    learning_rate: float = 1e-4
    """Its learning rate (Adam)."""
    shots: int = 4
    """Train rows as examples in the prompt; 0 leaves them out."""
    batch: int = 16


KNOWN = 0.05
"""Mean loss in nats a token below which the short training has learned its rows."""


class Measured:
    """One model and what was measured on it, by task.

    Where a router chooses among its adapters, each row is answered, read and trained on by the
    one that is chosen for its prompt, as it is served.

    Args:
        model, tokenizer: as `perdure.models.load_saved` returns them; the weights stay as they are.
        chat_template, max_prompt_length: as in `Encoder`; with examples a prompt stays whole.
        today: the day whose date a template writes; None is that of now.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        chat_template: str = "auto",
        max_prompt_length: int | None = None,
        variables: Mapping[str, Any] | None = None,
        sizes: Sizes | None = None,
        side: str = "",
        on_progress: Progress | None = None,
        today: date | None = None,
    ) -> None:
        self._whole = Encoder(tokenizer, chat_template, variables=variables)
        self.encoder = Encoder(tokenizer, chat_template, None, max_prompt_length, variables)
        if today is not None:
            self._whole.pin(today)
            self.encoder.pin(today)
        self.model = model
        router = router_of(model)
        self.routed = None if router is None else Routed(router)
        self.sizes, self.side = sizes or Sizes(), side
        self._progress = on_progress
        self._kept: dict[tuple[str, str], Any] = {}

    def scored(
        self, task: Task, metric: str, extra: str = "", encoder: Encoder | None = None
    ) -> TaskScore:
        """The task's test rows by `metric`.

        Args:
            extra: names a state of model or prompts other than the plain one; not kept.
            encoder: of such prompts; None is that of the plain ones.
        """

        def work() -> TaskScore:
            return served_score(
                self.model,
                encoder or self.encoder,
                replace(task, metric=metric),
                self.routed,
                batch_size=self.sizes.batch,
                on_progress=self._told(f"{task.name}: {extra or self.side}"),
            )

        return work() if extra else self._once((metric, task.name), work)

    def states(self, task: Task, rows: Sequence[Row], split: str) -> Array:
        """Hidden states of the final norm at the last token of each prompt, (rows, hidden)."""
        told = self._told(f"{task.name}: {self.side}, probe")
        size = self.sizes.batch

        def read(part: Sequence[Row]) -> Array:
            return features(self.model, self.encoder, part, batch_size=size, on_progress=told)

        def work() -> Array:
            if self.routed is None:
                return read(rows)
            choices = self.routed.choose([row["prompt"] for row in rows])
            return np.stack(each_by_adapter(self.model, choices, rows, lambda part: [*read(part)]))

        return self._once((f"states {split}", task.name), work)

    def relearned(self, task: Task, metric: str, rows: Sequence[Row]) -> TaskScore:
        """`scored` by a model that was trained on `rows` first; it is as before afterwards."""
        sizes = self.sizes
        steps, rate = sizes.relearn_steps, sizes.learning_rate
        with trained_on(self.model, self.encoder, rows, steps, rate, self.routed):
            return self.scored(task, metric, f"{self.side}, after {len(rows)} rows")

    def with_shots(self, task: Task, metric: str, rows: Sequence[Row]) -> TaskScore:
        """`scored` with `rows` as examples in front of each prompt."""
        with_rows, name = in_front(task, rows), f"{self.side}, {len(rows)} examples"
        return self.scored(with_rows, metric, name, self._whole)

    def longest(self, task: Task) -> int:
        """Tokens of the longest prompt, uncut, and of the answer that may follow it."""
        return max(len(self._whole.prompt_ids(row)) for row in task.test) + task.max_new_tokens

    def _once(self, key: tuple[str, str], work: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = work()
        return self._kept[key]

    def _told(self, what: str) -> Callable[[int, int], None] | None:
        progress = self._progress
        return None if progress is None else lambda done, total: progress(what, done, total)


@contextmanager
def trained_on(
    model: nn.Module,
    encoder: Encoder,
    rows: Sequence[Row],
    steps: int,
    learning_rate: float,
    routed: Routed | None = None,
) -> Iterator[None]:
    """Train the whole model on a few rows for the time inside; then each weight is as it was.

    Bit for bit, and so are gradients and which weights are trained. Adam on all rows at once,
    gradients clipped to norm 1, without dropout, so that nothing is random. Takes memory for four
    more copies of the weights meanwhile.

    Args:
        steps: the most; fewer if the mean loss falls below `KNOWN`.
        routed: which adapter answers each row; it is trained on it, and so is what lies below.
    Raises:
        TrainingError: the loss is not finite.
    """
    weights = [p for p in model.parameters() if p.is_floating_point()]
    before = [(p.detach().clone(), p.requires_grad, p.grad) for p in weights]
    encoded = [encoder.encode(row) for row in rows]
    choices = None if routed is None else routed.choose([row["prompt"] for row in rows])
    labels = sum(_labels(one) for one in encoded)

    def backward() -> float:
        """The mean loss over the label tokens of all rows; its gradient is added up."""
        found = 0.0
        groups = iter([list(range(len(rows)))]) if choices is None else by_adapter(model, choices)
        for at in groups:
            part = [encoded[i] for i in at]
            batch = collate(part, encoder.pad_id)
            batch = {name: one.to(unwrapped(model).device) for name, one in batch.items()}
            share = sum(map(_labels, part)) / labels
            loss = model(**batch, use_cache=False).loss * share
            loss.backward()
            found += float(loss.detach())
        return found

    try:
        with evaluating(model), torch.enable_grad():
            for p in weights:
                p.requires_grad_(True)
                p.grad = None
            optimizer = torch.optim.Adam(weights, lr=learning_rate)
            for _ in range(steps):
                optimizer.zero_grad()
                if not math.isfinite(loss := backward()):
                    raise TrainingError(
                        "diagnose: the short training's loss is not finite",
                        "a lower --learning-rate may help; --relearn 0 leaves it out",
                    )
                if loss < KNOWN:
                    break
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
            del optimizer
        for p in weights:
            p.grad = None
        yield
    finally:
        with torch.no_grad():
            for p, (value, trainable, gradient) in zip(weights, before, strict=True):
                p.copy_(value)
                p.requires_grad_(trainable)
                p.grad = gradient


def _labels(encoded: Mapping[str, Sequence[int]]) -> int:
    return sum(label != -100 for label in encoded["labels"])


def in_front(task: Task, rows: Sequence[Row]) -> Task:
    """The task with `rows` as examples before each test row's question, as its kind writes them.

    Raises:
        UsageError: rows of its kind have no place for examples.
    """
    with_examples = kind(task.kind).with_examples
    if with_examples is None:
        raise UsageError(
            f"diagnose: {task_named(task.name)}: rows of kind {task.kind} have no place for "
            "examples",
            "leave them out: --shots 0",
        )
    return replace(task, test=[with_examples(row, rows) for row in task.test])


def spread(rows: Sequence[Row], count: int, labelled: bool) -> list[Row]:
    """The first `count` rows, of a labelled task in turn from each label."""
    if not labelled:
        return [rows[i] for i in range(min(count, len(rows)))]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["answer"], []).append(row)
    turns = max((len(group) for group in groups.values()), default=0)
    dealt = [g[turn] for turn in range(turns) for g in groups.values() if turn < len(g)]
    return dealt[:count]
