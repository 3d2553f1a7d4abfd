"""The adapters of a session's model, as methods see them; the runner keeps the lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter

from perdure.errors import UsageError
from perdure.models import adapter_lists as lists
from perdure.models.experts import split
from perdure.models.random_state import forked_rng, seed_of

if TYPE_CHECKING:
    from perdure.engine.runtime import TaskRuntime


class SessionAdapters:
    """See `perdure.protocol.adapters.Adapters`; it holds nothing of its own."""

    def __init__(self, session: TaskRuntime) -> None:
        self._session = session

    @property
    def names(self) -> tuple[str, ...]:
        return lists.names(self._session.model)

    @property
    def active(self) -> tuple[str, ...]:
        return lists.active(self._session.model)

    @property
    def trained(self) -> tuple[str, ...]:
        return lists.trained(self._session.model)

    def add(self, name: str, like: str | None = None) -> None:
        self._refuse_late()
        with self._drawing("adapter", name):
            lists.add(self._session.model, name, like)

    def split(self, name: str, experts: int) -> None:
        self._refuse_late()
        lists.check_known(self._session.model, [name])
        with self._drawing("experts", name):
            split(self._session.model, name, experts)

    @contextmanager
    def _drawing(self, *what: str) -> Iterator[None]:
        """A draw that depends on run and name alone: the same after a resume, whatever came
        before."""
        with forked_rng(self._session.device):
            torch.manual_seed(seed_of(self._session.seed, *what))
            yield

    def remove(self, name: str) -> None:
        self._refuse_late()
        lists.remove(self._session.model, name)

    def use(self, active: Sequence[str], trained: Sequence[str]) -> None:
        self._refuse_late()
        if not trained:
            raise UsageError("method: no adapter is to be trained", "use(..., trained=[NAME])")
        lists.use(self._session.model, active, trained)

    def matrices(self, name: str) -> Mapping[str, tuple[Parameter, Parameter]]:
        lists.check_known(self._session.model, [name])
        return lists.matrices(self._session.model, name)

    def _refuse_late(self) -> None:
        if not self._session.has_adapter:
            raise UsageError(
                "method: adapters are asked for, and the model has none",
                "write model.tuning: lora",
            )
        if self._session.accelerator is not None:
            raise UsageError(
                "method: adapters are changed while a phase is trained, whose optimizer has its "
                "parameters already",
                "change them in begin_task",
            )
