"""Replay general texts and hold the hidden states on them within the base model's intervals.

Before the first task the base model's states on up to a thousand general texts are distilled to
"low, middle, high" of each neuron; in every step some of these texts are trained on as text, and
a state that leaves the interval it was in at the start is pushed back. No task data is kept.
Paper: GeRe, Zhang et al. 2025 (arXiv 2508.04676); read: abstract and the official code
Qznan/GeRe (34d74f5), not the equations, so no equation number is given here.

    L = CE(task) + 1/B * sum over general rows of (label_weight * CE_row + weight * TM_row)
    TM = `margin` below;  n, p = mean -+ k * std of a neuron over all general tokens
Departs: per row where the code pools a micro-batch and halves its CE, so that the gradient does
not depend on the micro-batch (equal to the code at micro-batch 1; B counts general rows too);
variance in two fp64 passes; general rows come on top of the batch. As the code: `gere_official`.
Cost: forward and backward over `insert` texts a step, in the task's own pass; once a forward over
all texts; on disk tokens * hidden / 4 bytes a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.mechanisms.distances import USUAL
from perdure.mechanisms.margin import averaged, outside
from perdure.methods.general_replay import GeneralReplay, GeneralReplayConfig
from perdure.protocol.method import Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context


def margin(x: Tensor, base: Tensor, mask: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """States x and base (..., seq, hidden), mask (..., seq), n and p (hidden,) -> TM (...)."""
    low, high = base <= n, base >= p  # neither: the middle; both: only if n = p = base
    floor = torch.where(high, p, torch.where(low, -torch.inf, n))
    ceiling = torch.where(low, n, torch.where(high, torch.inf, p))
    e = torch.relu(x - ceiling) + torch.relu(floor - x)  # distance to the base's interval
    e = e * mask.unsqueeze(-1)
    return e.sum((-2, -1)) / ((e > 0).sum((-2, -1)) + 1e-8)


class GeReConfig(GeneralReplayConfig):
    weight: float | Literal["dynamic"] | None = Field(
        None, description=f"of the margin; null: {USUAL}; dynamic: as large as the CE, detached"
    )
    weight_max: float | None = Field(None, gt=0, description="upper limit of a dynamic weight")
    k: float = Field(1.0, gt=0, description="half width of the middle interval in deviations")
    layers: tuple[int, ...] = Field(
        (-1,), min_length=1, description="layers held, averaged; -1: final norm"
    )
    teacher: Literal["base", "previous"] = Field(
        "base", description="whose states are held: the base model's, or the last task's"
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.weight_max is not None and self.weight != "dynamic":
            yield Mistake(("weight_max",), "has no effect without weight: dynamic")
        if isinstance(self.weight, float) and self.weight < 0:
            yield Mistake(("weight",), "is below 0")


class GeRe(GeneralReplay):
    Config, name = GeReConfig, "gere"
    config: GeReConfig
    example_options: ClassVar = {"max_tokens": 12, "insert": 3}
    noop_options: ClassVar = {"max_tokens": 12, "weight": 0, "label_weight": 0}

    def __init__(self, config: GeReConfig) -> None:
        super().__init__(config)
        logits = config.label_weight > 0 or config.weight == "dynamic"
        self.requires = Requires(config.layers, logits, texts="labels" if logits else "states")

    def begin_task(self, ctx: Context) -> None:
        super().begin_task(ctx)
        c, previous = self.config, self.config.teacher == "previous"
        self.states = self.base_states(ctx, "codes", previous, layers=c.layers, k=c.k)
        for name in ("flipped", "largest"):
            ctx.log(f"gere_noise_{name}", self.states.noise[str(c.layers[-1])][name])

    def held(self, ctx: Context, extra: ForwardOutput) -> Mapping[str, Tensor]:
        term = torch.stack([self._margin(ctx, k, extra) for k in self.config.layers]).mean(0)
        c = self.config
        weight = self.weight_of(ctx, extra, "margin", term, c.weight, c.weight_max)
        return {"margin": weight * term}

    def _margin(self, ctx: Context, layer: int, extra: ForwardOutput) -> Tensor:
        """`margin` of each row, (rows,), fused: of a base state it needs two bits."""
        x, mask, codes = extra.hidden[layer], extra.mask, self.states.aligned(extra, layer)
        total, count, flips = outside(x, codes, mask, *self.states.limits(layer, x.device))
        if layer == self.config.layers[-1]:
            every = mask.sum(1).clamp(min=1) * x.shape[-1]
            for name, of_row in (("elements", total), ("violating", count), ("flips", flips)):
                ctx.log(f"gere_{name}", extra.row_mean(of_row.detach() / every))
        return averaged(total, count, mask, x.shape[-1], "violating")
