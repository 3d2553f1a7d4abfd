"""Average the weights over a task's steps, and score, save and go on from the average.

The weights of training are untouched by it. `beta` says what weight the old average gets.
Paper: Large Continual Instruction Assistant, Qiao et al. 2025 (arXiv 2410.10868; read: abstract,
a summary of the closed form, and the official code JingyangQiao/CoIN efa9cb4, lora.py:635-661).

    w*_t = beta w*_t-1 + (1 - beta) w_t;  w*_1 = w_1, anew in each task
    fixed     beta = decay, or 1 - 1 / (window * steps of the task)
    paper     beta = (1 + |g_t|) / (|w_t - w*_t-1| |g_t - g_t-1|), L1 norms of each tensor
    official  1 - beta = twice that: the released code weighs the NEW weights so
    line      beta = (u + rho) / (1 + rho), u as in `line_minimum` below; ours
Departs: the average is fp32; `paper` takes the change of the gradient for L'', as nothing more is
known; g is the gradient that the optimizer used: over all micro-batches and processes, clipped. Of
several phases the last one is averaged.
Cost: fixed and line keep one fp32 copy of the trainable weights, paper and official a second (the
last gradient); line a forward pass each `every` steps, with the old weights kept meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from perdure.mechanisms.averaged import Averaged
from perdure.protocol.method import MethodConfig
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.context import Context

DECAY, WINDOW = 0.99, 0.2
SOLVED = ("paper", "official")


class EmaConfig(MethodConfig):
    beta: Literal["fixed", "paper", "official", "line"] = Field(
        "fixed", description="what weighs the old average"
    )
    decay: float | None = Field(
        None, ge=0, lt=1, description="fixed: beta; paper, official: what is out of range (0.99)"
    )
    window: float | None = Field(
        None, gt=0, le=1, description="fixed: averaging window, share of the task's steps (0.2)"
    )
    outside: Literal["fallback", "clamp"] = Field(
        "fallback", description="paper, official: out of range: decay, or the nearer end of [0, 1]"
    )
    rho: float = Field(99.0, ge=0, description="line: pull to the old average; beta >= rho/(1+rho)")
    every: int = Field(20, gt=0, description="line: steps between two looks along the line")

    def mistakes(self) -> Iterator[Mistake]:
        solved, line, why = self.beta in SOLVED, self.beta == "line", f"beta: {self.beta}"
        idle = {"outside": not solved, "rho": not line, "every": not line, "decay": line}
        idle["window"] = self.beta != "fixed"
        if not idle["window"] and self.decay is not None:
            idle["window"], why = True, "decay, which says the same"
        elif solved and self.outside == "clamp":
            idle["decay"], why = True, f"beta: {self.beta} and outside: clamp"
        for key in (key for key, is_idle in idle.items() if is_idle):
            if getattr(self, key) != type(self).model_fields[key].default:
                yield Mistake((key,), f"has no effect with {why}", "leave it out")


def closed_form(apart: Tensor, slope: Tensor, change: Tensor) -> Tensor:
    """(1 + L') / (d L''); L1 norms of w - average, gradient and its change, or scalars d, L', L''.

    The paper's weight on the old average. Minimum of -beta L' d + beta^2 L'' d^2 / 2 + (1-beta) d.
    """
    return (1 + slope) / (apart * change)


def in_range(raw: Tensor, outside: str, fallback: float) -> tuple[Tensor, Tensor]:
    """A weight that is used, and whether `raw` lay outside of (0, 1); nan gives `fallback`."""
    out = ~((raw > 0) & (raw < 1))
    used = raw.clamp(0, 1).nan_to_num(fallback) if outside == "clamp" else fallback
    return torch.where(out, used, raw), out


def new_weight(
    norms: Sequence[Tensor], beta: str, outside: str, fallback: float
) -> tuple[Tensor, Tensor]:
    """Weight on the new weights, of the three L1 norms of each tensor, and which were outside."""
    if beta == "official":
        return in_range(2 * closed_form(*norms), outside, 1 - fallback)
    old, out = in_range(closed_form(*norms), outside, fallback)
    return 1 - old, out


def window_decay(window: float, steps: int) -> float:
    """The decay whose memory 1 / (1 - decay) is this share of so many steps; 0 below one step."""
    return max(0.0, 1 - 1 / max(window * steps, 1))


def line_minimum(here: Tensor, there: Tensor, slope: Tensor) -> Tensor:
    """Where in [0, 1] the parabola with values f(0) = here, f(1) = there and f'(0) = slope is
    lowest: 0 are the weights, 1 is the average. Losses of one batch, each ()."""
    curvature = 2 * (there - here - slope)
    return torch.where(curvature > 0, (-slope / curvature).clamp(0, 1), (there < here).float())


def line_weight(u: Tensor, rho: float) -> Tensor:
    """Minimum of f(beta) + rho/2 f'' (1 - beta)^2, where f alone has its minimum at u."""
    return (u + rho) / (1 + rho)


class Ema(Averaged):
    Config = EmaConfig
    config: EmaConfig
    lowest = staticmethod(line_minimum)
    example_options: ClassVar = {"decay": 0.5}
    noop_options: ClassVar = {"decay": 0.0}

    def __init__(self, config: EmaConfig) -> None:
        super().__init__(config, every=config.every if config.beta == "line" else 0)
        self.copies = 2 if config.beta in SOLVED else 1  # the last gradient
        if config.beta == "fixed" and config.decay is None:
            self.window = config.window or WINDOW

    def constant(self, ctx: Context) -> float | None:
        if self.window is not None:
            return window_decay(self.window, ctx.step.total)
        return self.config.decay if self.config.beta == "fixed" else None

    def after_step(self, ctx: Context) -> None:
        c, average, solved = self.config, self.average, self.config.beta in SOLVED
        if not average.follows(ctx.model, ctx.step.phase.name, gradients=solved):
            return
        if (decay := self.constant(ctx)) is not None:
            average.move(1 - decay)
        elif solved:
            old = DECAY if c.decay is None else c.decay
            average.used(ctx, *new_weight(average.norms().unbind(), c.beta, c.outside, old))
        else:
            average.used(ctx, 1 - line_weight(self.u, c.rho))
