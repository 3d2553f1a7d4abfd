"""The adapters of a model that is tuned with LoRA, as a method asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch.nn import Parameter


class AdapterCount(NamedTuple):
    """How many adapters there are, for a plan."""

    learning: int
    """In memory while a task is learned."""
    kept: int
    """After it, in its checkpoint."""
    added: int
    """For this task, so that their first values are kept as well."""


class Adapters(Protocol):
    """Several adapters on one base; the first is called `default`, and the recipe makes it.

    A method asks in `begin_task`, and sets `adapters = True` on its class. The runner adds,
    switches, saves and restores: after scoring, in checkpoints, and when a run goes on, where
    adapters of earlier tasks are there again without the method's doing.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """All adapters, in the order in which they were added."""

    @property
    def active(self) -> tuple[str, ...]:
        """Those that take part in a pass; they add up in this order."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Those that get updates."""

    def add(self, name: str, like: str | None = None) -> None:
        """Add an adapter, which is neither active nor trained yet.

        A fresh one adds nothing to the base at first; what is drawn depends on the run's seed and
        the name alone. With `like` it is a copy of that one as it is now.

        Raises:
            UsageError: the name is taken or no name for an adapter; the model is not tuned with
                LoRA, its weights are sharded, or a phase is being trained.
        """

    def remove(self, name: str) -> None:
        """Take an adapter away that is not active: of one that goes on under a new name the old.

        Raises:
            UsageError: it is active, is not there, or is `default`.
        """

    def split(self, name: str, experts: int) -> None:
        """Split an adapter's rank among experts, which a router in each layer weighs for each
        token (`perdure.models.experts`). Where it is split so already nothing is done.

        Raises:
            UsageError: the rank is not divisible, or is split among another number.
        """

    def use(self, active: Sequence[str], trained: Sequence[str]) -> None:
        """Have `active` take part in passes and `trained`, some of them, get updates.

        Raises:
            UsageError: one is not there, is trained without being active, or none is trained.
        """

    def matrices(self, name: str) -> Mapping[str, tuple[Parameter, Parameter]]:
        """An adapter's A (rank, in) and B (out, rank), by the layer that they are on; to read."""
