"""What methods see of a task's session: the names of `perdure.protocol.context.Context`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from perdure.engine.adapters import SessionAdapters
from perdure.engine.distillation import Distillation, distilled
from perdure.engine.general_texts import GIVEN, SHARE, given_rows, sampled_rows
from perdure.errors import UsageError
from perdure.models.weights import swapped
from perdure.protocol.adapters import Adapters
from perdure.protocol.batch import EncodedRows, ForwardOutput
from perdure.protocol.context import BaseStates, Weights
from perdure.protocol.labels import Classes
from perdure.protocol.step import Step
from perdure.streams.task import Row, Task

if TYPE_CHECKING:
    from perdure.engine.runtime import TaskRuntime


class TaskContext:
    """See `perdure.protocol.context.Context`; it holds nothing of its own."""

    def __init__(self, session: TaskRuntime) -> None:
        self._session = session

    @property
    def task(self) -> Task:
        return self._session.task

    @property
    def task_index(self) -> int:
        return self._session.task_index

    @property
    def tasks_seen(self) -> tuple[Task, ...]:
        return self._session.tasks_seen

    @property
    def classes(self) -> Classes | None:
        return self._session.classes

    @property
    def step(self) -> Step:
        return self._session.step

    @property
    def seed(self) -> int:
        return self._session.seed

    @property
    def batch_size(self) -> int:
        return self._session.batch_size

    @property
    def model(self) -> nn.Module:
        return self._session.model

    @property
    def adapters(self) -> Adapters:
        return SessionAdapters(self._session)

    def encode(self, row: Row | str, max_tokens: int | None = None) -> dict[str, Any]:
        if isinstance(row, str):
            return self._session.encoder.encode_text(row, max_tokens)
        return self._session.encoder.encode(row)

    def draw(
        self,
        rows: Sequence[dict[str, Any]],
        size: int,
        *,
        first: int | None = None,
        replace: bool = False,
    ) -> EncodedRows | None:
        return self._session.draw(rows, size, first=first, replace=replace)

    def general_rows(
        self,
        count: int,
        max_tokens: int,
        *,
        special: bool = False,
        kept: str = "",
        share: float = SHARE,
    ) -> tuple[list[dict[str, Any]], str]:
        if self._session.general.replay:
            return given_rows(self._session, count, max_tokens, special), ""
        if kept == GIVEN:
            raise UsageError(
                "general texts were given for the first task, and none are now",
                "give the same ones again: attach(trainer, *methods, general=texts)",
            )
        return sampled_rows(self._session, count, max_tokens, kept, share)

    def forward(
        self,
        rows: Sequence[dict[str, Any]] | Mapping[str, Any],
        *,
        train: bool | None = False,
        logits: bool = True,
        hidden: tuple[int, ...] = (),
    ) -> ForwardOutput:
        return self._session.forward(rows, train=train, logits=logits, hidden=hidden)

    def frozen(
        self, which: str, logits: bool = True, log_probs: bool = False, dropout: bool = False
    ) -> Callable[[Mapping[str, Any]], ForwardOutput]:
        return self._session.frozen(which, logits, log_probs, dropout)

    def base_states(
        self,
        rows: Sequence[dict[str, Any]],
        kind: str,
        *,
        previous: bool = False,
        known: str = "",
        who: str = "",
        **how: Any,
    ) -> BaseStates:
        wanted = Distillation(kind, who=who, **how)
        return distilled(self._session, rows, wanted, of_base=not previous, known=known)

    def gradients_of(self, rows: Sequence[dict[str, Any]]) -> Weights:
        return self._session.gradients_of(rows)

    def snapshot(self) -> Weights:
        return self._session.snapshot()

    def use_weights(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        return swapped(self._session.model, weights)

    def score(self, task: Task, split: str = "validation", max_rows: int | None = None) -> float:
        return self._session.score(task, split, max_rows)

    def log(self, name: str, value: float | Tensor) -> None:
        self._session.log(name, value)
