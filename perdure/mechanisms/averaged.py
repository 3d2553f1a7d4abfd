"""What a method has that serves an average of the weights: all but the weight it is moved by.

The average is what is scored while a task is learned, what a checkpoint inside the task holds
beside the weights of training, and what the task ends with: nothing of it is left then, so that no
second copy is written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from perdure.errors import task_named
from perdure.mechanisms.averaging import Average, distance, sample
from perdure.models.weights import trainable
from perdure.processes import summed
from perdure.protocol.method import Method, Requires

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context

logger = logging.getLogger("perdure")


class Averaged(Method):
    """A method whose `after_step` moves `average`.

    Args: every: steps between two looks along the line between the weights and their average, each
        a forward pass at the average; 0: none, and its steps cost nothing.

    Attributes:
        average: of the phase that is trained; of several phases the last one's counts.
        window: share of a task's steps that is averaged over; None: what weighs is said otherwise.
        u: where along the line the loss was lowest at the last look, (); 0 before.
    """

    saved: tuple[str, ...] = ("average", "u")
    copies = 1
    window: float | None = None

    def __init__(self, config: Any, every: int = 0) -> None:
        super().__init__(config)
        self.average, self.u, self.every = Average(), torch.zeros(()), every
        instead = "write another beta than line" if every > 0 else ""
        self.requires = Requires(logits=every > 0, step_gradients=True, cross_entropy=instead)
        self._start: dict[str, Tensor] = {}
        self._passes: list[tuple[Mapping[str, Any], Any, Tensor]] = []

    def uses(self, hook: str) -> bool:
        return super().uses(hook) and (self.every > 0 or hook not in ("loss", "gradients"))

    def constant(self, ctx: Context) -> float | None:
        """The weight on the old average, where all steps of the phase have the same one."""
        return None

    @staticmethod
    def lowest(here: Tensor, there: Tensor, slope: Tensor) -> Tensor:
        """Where on the line (0: the weights, 1: the average) the loss is lowest, (); from the
        losses there, and how the loss changes at the weights on the way to the average."""
        raise NotImplementedError

    def begin_task(self, ctx: Context) -> None:
        self.average = Average()
        self.u = torch.zeros((), device=next(ctx.model.parameters()).device)
        # Also on resume, as the weights of the checkpoint are put in after it.
        self._start = sample(trainable(ctx.model))

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        self.u = self.u.to(next(ctx.model.parameters()).device)  # once, after a resume
        known = self.every > 0 and self.average.of(ctx.step.phase.name)
        if known and ctx.step.index % self.every == 0:
            plain = main.token_mean(main.nll.detach())
            trained = plain if main.trained is None else main.trained
            self._passes.append((main.batch, main.counts, torch.stack([plain, trained])))
        return {}

    def gradients(
        self, ctx: Context, params: Mapping[str, Parameter]
    ) -> Iterable[tuple[str, Tensor | None]]:
        passes, self._passes = self._passes, []
        if passes:
            here = torch.stack([shares for _, _, shares in passes]).sum(0)
            found = torch.cat([here, self._at_average(ctx, passes)[None]])
            plain, trained, there = summed(found / ctx.step.micro_batches)
            # The slope is that of the trainer's own loss, which may have another unit.
            unit = torch.where(plain > 0, trained / plain, 1.0)
            self.u = self.lowest(trained, there * unit, self.average.slope(params))
        return ()

    def _at_average(self, ctx: Context, passes: Any) -> Tensor:
        """The loss of the step's own micro-batches at the average. With dropout it has its own."""
        found = []
        with ctx.use_weights(self.average.weights):
            for batch, counts, _ in passes:
                seen = ctx.forward(batch, train=None)
                seen.counts = counts
                found.append(seen.token_mean(seen.nll))
        return torch.stack(found).sum()

    def serving(self, ctx: Context) -> Mapping[str, Tensor] | None:
        return self.average.weights if self.average.of(ctx.step.phase.name) else None

    def end_task(self, ctx: Context) -> Mapping[str, Tensor] | None:
        average, self.average = self.average, Average()
        start, self._start = self._start, {}
        if not average.of(ctx.step.phase.name):
            return None
        if self.window is not None and self.constant(ctx) == 0:
            logger.warning(_idle(task_named(ctx.task.name), self.window, ctx.step.total))
        params = dict(ctx.model.named_parameters())
        raw = {name: params[name] for name in average.weights}
        sizes = {name: p.numel() for name, p in raw.items()}
        moved = {
            "moved": distance(start, sample(average.weights), sizes),
            "moved_raw": distance(start, sample(raw), sizes),
        }
        for name, value in average.facts(moved, self.constant(ctx)).items():
            ctx.log(name, value)
        return average.weights

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({k: v for k, v in state.items() if k != "average"})
        self.average = Average()
        self.average.load_state_dict(state["average"])


def _idle(task: str, window: float, steps: int) -> str:
    """Says that a window of a task's steps is too short to average anything, and what to do."""
    if steps <= 1:
        return f"{task}: one step has no other to be averaged with: learn more steps of it"
    least = math.floor(100 / steps) / 100
    return (
        f"{task}: window {window:g} of {steps} steps is not more than one step, so nothing is "
        f"averaged: write decay in its place, or a window of {least + 0.01:.2f} or more"
    )
