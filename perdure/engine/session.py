"""A task's session: what the engine holds, and the part of it that methods see."""

from __future__ import annotations

from functools import cached_property

from perdure.engine.context import TaskContext
from perdure.engine.runtime import TaskRuntime
from perdure.models.weights import hash_of
from perdure.protocol.context import Context


class TaskSession(TaskRuntime):
    """Learning one task; see `TaskRuntime` for its arguments."""

    @cached_property
    def context(self) -> Context:
        """What the methods see."""
        return TaskContext(self)

    @cached_property
    def references(self) -> dict[str, str]:
        """A hash of each model that methods compare with: "base", "previous"."""
        wanted = {m.requires.teacher for m in self.methods if m.requires.teacher}
        return {
            which: hash_of(self._frozen[which].items())
            if which in self._frozen
            else self.fingerprint(frozen_only=True)
            for which in sorted(wanted)
        }
