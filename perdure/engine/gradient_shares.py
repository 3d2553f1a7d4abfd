"""How much of a step's gradient each term makes up, told where the clip makes it matter.

All terms share one clip: a term whose gradient is much larger than the policy's own leaves the
policy next to nothing of a clipped step. To tell it, each term is taken back through the model by
itself. That costs a backward pass for each term, and memory for one gradient, so it is done for a
step that will be logged, right after a step that was clipped, and for one in ten at the most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from perdure.models.weights import is_sharded, trainable

EVERY = 10
"""Steps between two looks at the least."""
SHARE = "_gradient_share"
"""Ends the names of what is logged, after the term's own."""


def shares_of(norms: Mapping[str, float]) -> dict[str, float]:
    """Each norm over the sum of all; 0 where all are 0."""
    total = sum(norms.values())
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}


def gradient_norm(value: Tensor, params: Iterable[Tensor]) -> float:
    """Norm of the gradient of `value` () by `params`; the graph stays for others."""
    if not value.requires_grad:
        return 0.0
    found = torch.autograd.grad(value, list(params), retain_graph=True, allow_unused=True)
    squares = [g.detach().float().square().sum() for g in found if g is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


class GradientShares:
    """The shares in one trainer's steps; see the module.

    Attributes:
        norm: of the last step's gradient before its clip, (); None before the first.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.norm: Tensor | float | None = None
        self._next = 0  # the first step that may be looked at
        self._looks = False
        self._sums: dict[str, float] = {}

    def begin_step(self) -> None:
        """Decide, before a step's first micro-batch, whether it is looked at."""
        state, args = self.trainer.state, self.trainer.args
        self._sums, step = {}, state.global_step
        logged = args.logging_strategy == "steps" and (step + 1) % state.logging_steps == 0
        self._looks = logged and step >= self._next and self._clipped() and self._can()
        if self._looks:
            self._next = step + EVERY

    def look(self, task: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Measure a micro-batch's loss, which is its share of the step's, and its terms, which
        are divided by the step's micro-batches before they are added to it."""
        if not self._looks:
            return
        params = list(trainable(self.trainer.model).values())
        passes = self.trainer.session.accumulation
        norms = {"task": gradient_norm(task, params)}
        norms |= {n: gradient_norm(value, params) / passes for n, value in terms.items()}
        for name, share in shares_of(norms).items():
            self._sums[name] = self._sums.get(name, 0.0) + share / passes

    def take(self) -> dict[str, float]:
        """Shares of the step that has just been made, by their names in the log; {} if it was not
        clipped, or not looked at."""
        found, self._sums = self._sums, {}
        return {f"method/{n}{SHARE}": v for n, v in found.items()} if self._clipped() else {}

    def _clipped(self) -> bool:
        return self.norm is not None and float(self.norm) > self.trainer.args.max_grad_norm > 0

    def _can(self) -> bool:
        """Whether a term can be taken back by itself."""
        again = self.trainer.args.gradient_checkpointing_kwargs or {}
        elsewhere = self.trainer.is_deepspeed_enabled or is_sharded(self.trainer.model)
        return not elsewhere and not again.get("use_reentrant")


__all__ = ["EVERY", "SHARE", "GradientShares", "gradient_norm", "shares_of"]
