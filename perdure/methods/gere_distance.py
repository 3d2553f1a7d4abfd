"""Replay general texts and hold the hidden states on them near those of the base model.

Before the first task the base model's states on the texts are kept as they are; in every step the
L1 or L2 distance to them is made smaller. No task data is kept.
Paper: GeRe, Zhang et al. 2025 (arXiv 2508.04676), which compares its margin with this; read:
abstract and the official code Qznan/GeRe (34d74f5), which has no code for it.

    L = CE(task) + 1/B * sum over general rows of (label_weight * CE_row + weight * D_row)
    D = mean over a row's tokens and neurons of |x - h| (l1) or (x - h)^2 (l2)
Departs: differences up to `noise_floor` count as none. Of an unmoved model rounding alone gives
differences, and of l1 the gradient is their sign, however small they are; so by default twice the
largest one counts that the base model shows between two layouts of the same texts.
Cost: forward and backward over `insert` texts a step, in the task's own pass; once a forward over
all texts; on disk 4 * hidden bytes a token and layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from perdure.mechanisms.distances import distance, floors
from perdure.methods.general_replay import GeneralReplay, GeneralReplayConfig
from perdure.protocol.method import Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context


class GeReDistanceConfig(GeneralReplayConfig):
    norm: Literal["l1", "l2"] = Field("l1", description="distance between states")
    weight: float = Field(1.0, ge=0, description="weight of the distance")
    layers: tuple[int, ...] = Field(
        (-1,), min_length=1, description="layers held, averaged; -1: final norm"
    )
    noise_floor: float | Literal["measured"] = Field(
        "measured", description="differences up to this count as none; measured: see its card"
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.noise_floor != "measured" and self.noise_floor < 0:
            yield Mistake(("noise_floor",), "is below 0")


class GeReDistance(GeneralReplay):
    Config, name = GeReDistanceConfig, "gere_distance"
    config: GeReDistanceConfig
    example_options: ClassVar = {"max_tokens": 12, "insert": 3}
    noop_options: ClassVar = {"max_tokens": 12, "weight": 0, "label_weight": 0}

    def __init__(self, config: GeReDistanceConfig) -> None:
        super().__init__(config)
        labels = config.label_weight > 0
        texts = "labels" if labels else "states"
        self.requires = Requires(hidden=config.layers, logits=labels, texts=texts)

    def begin_task(self, ctx: Context) -> None:
        super().begin_task(ctx)
        c = self.config
        self.states = self.base_states(ctx, "states", layers=c.layers)
        self.floor = floors(c.noise_floor, self.states.noise, c.layers)

    def held(self, ctx: Context, extra: ForwardOutput) -> Mapping[str, Tensor]:
        c, power = self.config, 1 if self.config.norm == "l1" else 2
        each = [
            distance(
                extra.hidden[k], self.states.aligned(extra, k), extra.mask, power, self.floor[k]
            )
            for k in c.layers
        ]
        term = torch.stack(each).mean(0)  # (rows,)
        return {c.norm: self.weight_of(ctx, extra, c.norm, term, c.weight) * term}
