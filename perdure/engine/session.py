"""A task's session: what the engine holds, and the part of it that methods see."""

from __future__ import annotations

from functools import cached_property

from perdure.engine.context import TaskContext
from perdure.engine.runtime import TaskRuntime
from perdure.protocol.context import Context


class TaskSession(TaskRuntime):
    """Learning one task; see `TaskRuntime` for its arguments."""

    @cached_property
    def context(self) -> Context:
        """What the methods see."""
        return TaskContext(self)
