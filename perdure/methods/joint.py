"""Train on all data of the tasks so far at once: the upper bound, which keeps all data.

For task i the training rows are those of tasks 1 to i, shuffled together, and training starts
from the base model (`start: current` goes on from the last task instead).
Paper: multi-task learning, Caruana 1997 (Machine Learning 28), as continual-learning papers use
it for a bound; it stores what continual learning may not.

    L = CE(tasks 1..i)
Departs from common practice in giving every task a score after each i, not after the last only.
Cost: i times the steps of one task at task i, T (T + 1) / 2 in all; all training data is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from perdure.protocol.method import Method, MethodConfig
from perdure.protocol.step import Phase

if TYPE_CHECKING:
    from perdure.protocol.context import Context


class JointConfig(MethodConfig):
    start: Literal["base", "current"] = Field(
        "base", description="weights each training starts from: the base model, or the last task's"
    )


class Joint(Method):
    Config = JointConfig
    config: JointConfig
    needs_old_rows = True

    def phases(self, ctx: Context) -> Sequence[Phase]:
        return (Phase(start=self.config.start),)

    def train_data(self, ctx: Context, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # The trainer shuffles; the order here only has to be the same on every rank.
        return [dict(row) for task in ctx.tasks_seen for row in task.train] + data
