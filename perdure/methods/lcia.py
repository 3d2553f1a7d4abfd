"""A pool of adapters: a task goes on with that of a similar instruction, or opens a new one.

The instructions of a task's training rows are compared with those of the groups so far. The adapter
of a group that goes on is trained under the name of its next version, and its weights are averaged
over the steps, as `ema` does. Each request is answered by the group that its instruction fits.
Paper: Large Continual Instruction Assistant, Qiao et al. 2025 (arXiv 2410.10868; read: what `ema`
names, and instruct/LoRASelect.py of the official code).

    L = CE(task), of the adapter of one group
    S(task, group) = mean over all pairs of their instructions; from `threshold` on the best goes on
Departs: each request is routed by itself, with a threshold of its own; embeddings are ours. The
official code prints its choice; start weights and averaging are written by hand in its scripts.
Cost: an adapter for each group, and while a group goes on its last version too; averaging as of
`ema`; a task's instructions (at most `most`) are compared with all that are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from perdure.mechanisms.grouped import GroupingConfig, Groups, tell
from perdure.methods.ema import Ema, EmaConfig
from perdure.models.served import base_of
from perdure.protocol.method import Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.models.router import Placement, Router
    from perdure.protocol.adapters import AdapterCount
    from perdure.protocol.context import Context
    from perdure.streams.task import TaskStream


class LciaConfig(EmaConfig, GroupingConfig):
    average: Literal["continued", "always", "never"] = Field(
        "continued", description="tasks that are averaged: those that go on with a group, all, none"
    )
    start: Literal["previous", "nearest", "fresh"] = Field(
        "previous", description="a new group's adapter: the last trained, the nearest, or untrained"
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.average != "never":
            yield from EmaConfig.mistakes(self)
        for key, field in EmaConfig.model_fields.items():
            if self.average == "never" and getattr(self, key) != field.default:
                yield Mistake((key,), "has no effect with average: never", "leave it out")
        yield from GroupingConfig.mistakes(self)


def begins_with(
    start: str, placement: Placement, last: str, newest: Mapping[str, str]
) -> str | None:
    """The adapter that a task's own begins as a copy of; None: it begins untrained.

    Args:
        last: the adapter trained last; before the first task the untrained one of the recipe.
        newest: of each group so far, the newest version of its adapter.
    """
    if not placement.opens:
        return placement.adapter
    if start == "nearest" and placement.nearest is not None:
        return newest[placement.nearest]
    return None if start == "fresh" else last


class Lcia(Ema):
    Config = LciaConfig
    config: LciaConfig
    adapters = True
    new_adapters = True
    saved = (*Ema.saved, "codebook")
    example_options: ClassVar = {"average": "always", "decay": 0.5}
    noop_options: ClassVar = None  # type: ignore[assignment]

    def __init__(self, config: LciaConfig) -> None:
        super().__init__(config)
        self.groups = Groups(config)
        self._placement: Placement | None = None
        if config.average == "never":
            self.requires, self.copies = Requires(), 0

    @property
    def codebook(self) -> dict[str, Any]:
        """That of the tasks learned so far, as JSON."""
        return self.groups.state

    @codebook.setter
    def codebook(self, state: dict[str, Any]) -> None:
        self.groups.state = state

    def uses(self, hook: str) -> bool:
        idle = self.config.average == "never" and hook in ("after_step", "serving")
        return super().uses(hook) and not idle

    def check(self, classes: Sequence[str]) -> None:
        super().check(classes)
        self.groups.check()

    def told_of(self, stream: TaskStream) -> Iterator[str]:
        return self.groups.told_of(stream)

    def adapter_counts(self, stream: TaskStream, learned: int = 0) -> Mapping[str, AdapterCount]:
        return self.groups.adapter_counts(stream.tasks[learned:])

    def begin_task(self, ctx: Context) -> None:
        before = {g.name: g.adapter for g in self.groups.router.codebook.groups}
        found = self._placement = self.groups.place(ctx.task, base_of(ctx.model))
        name = self.groups.router.codebook.group(found.group).adapter
        last = ctx.adapters.trained[0]
        ctx.adapters.add(name, begins_with(self.config.start, found, last, before))
        ctx.adapters.use(active=[name], trained=[name])
        if self._averages:
            super().begin_task(ctx)

    @property
    def _averages(self) -> bool:
        """Whether this task is averaged: as the paper couples it, where its group goes on."""
        opens, average = self._placement is None or self._placement.opens, self.config.average
        return average == "always" or (average == "continued" and not opens)

    def after_step(self, ctx: Context) -> None:
        if self._averages:
            super().after_step(ctx)

    def end_task(self, ctx: Context) -> Mapping[str, Tensor] | None:
        """The average; the version that was gone on from leaves the pool."""
        if (found := self._placement) is not None:
            if found.adapter is not None:
                ctx.adapters.remove(found.adapter)
            tell(ctx, found, self.groups.router)
        return super().end_task(ctx)

    def router(self, ctx: Context) -> Router | None:
        return self.groups.router if self.codebook else None
