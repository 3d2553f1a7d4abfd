"""Take each task's update back as far as its own held-out rows allow.

After a task the weights go back on the straight line to where the task began; of a grid of
factors the smallest is taken whose score on held-out rows of that task is still good enough.
Paper: interpolation of weights, WiSE-FT, Wortsman et al. 2022 (arXiv 2109.01903), section 3:
(1 - a) w_0 + a w_1. The choice of a by tolerance on held-out rows is ours.

    w = w_prev + a (w_new - w_prev),  a = min{a in grid: score(a) >= score(1) - tolerance}
Departs: the line ends at the last task's weights, not the base model's, once a task. With an
adapter its two factors are interpolated, not their product.
Cost: two copies of the trainable weights; at most len(grid) + 1 scorings of `rows` rows a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from perdure.mechanisms.interpolation import interpolate
from perdure.protocol.method import Method, MethodConfig, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.context import Context
    from perdure.streams.task import Task


class RewindConfig(MethodConfig):
    tolerance: float = Field(
        0.02, ge=0, description="loss of score on the task just learned, in its metric's unit"
    )
    grid: tuple[float, ...] = Field(
        (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        min_length=1,
        description="factors tried, smallest first",
    )
    rows: int | None = Field(64, gt=0, description="held-out rows scored; null: all of them")

    @field_validator("grid")
    @classmethod
    def _in_range(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= a <= 1 for a in grid):
            raise ValueError("factors lie between 0 (undo the task) and 1 (keep it)")
        return tuple(sorted(grid))


def smallest(
    grid: Sequence[float], score: Callable[[float], float], tolerance: float, higher: bool = True
) -> float:
    """The smallest factor whose score is at most `tolerance` worse than that of factor 1.

    Scores need not be monotone in the factor, so the grid is tried from below, one by one.
    """
    sign = 1.0 if higher else -1.0
    bar = sign * score(1.0) - tolerance
    return next((a for a in grid if a < 1 and sign * score(a) >= bar), 1.0)


class Rewind(Method):
    Config = RewindConfig
    config: RewindConfig
    needs_validation = True
    copies = 2
    example_options: ClassVar = {"grid": [0.5], "tolerance": 100}
    noop_options: ClassVar = {"grid": [1.0]}

    def __init__(self, config: RewindConfig) -> None:
        super().__init__(config)
        self._start: dict[str, Tensor] = {}

    def reads(self, tasks: Sequence[Task], batch_size: int) -> Reads:
        held, factors = len(tasks[-1].validation), sum(a < 1 for a in self.config.grid)
        return Reads(after=(1 + factors) * min(self.config.rows or held, held))

    def begin_task(self, ctx: Context) -> None:
        self._start = ctx.snapshot()

    def end_task(self, ctx: Context) -> Mapping[str, Tensor] | None:
        end = ctx.snapshot()

        def score(factor: float) -> float:
            with ctx.use_weights(interpolate(self._start, end, factor)):
                return ctx.score(ctx.task, "validation", self.config.rows)

        factor = smallest(self.config.grid, score, self.config.tolerance, ctx.task.higher_is_better)
        ctx.log("rewind_factor", factor)
        start, self._start = self._start, {}
        return None if factor == 1 else interpolate(start, end, factor)
