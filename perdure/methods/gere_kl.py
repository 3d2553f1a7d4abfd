"""Replay general texts and hold the predictions on them near those of the base model.

Before the first task the base model predicts each token of the texts; of each prediction the
largest logits are kept, and all other tokens count as one outcome. No task data is kept.
Paper: GeRe, Zhang et al. 2025 (arXiv 2508.04676), which compares its margin with this; read:
abstract and the official code Qznan/GeRe (34d74f5), where it is written and never called.

    L = CE(task) + 1/B * sum over general rows of (label_weight * CE_row + weight * KL_row)
    KL = mean over a row's tokens of KL(softmax(z_base/T) || softmax(z/T))
Departs: the code averages over padding too, as zeros (`gere_official`); of the base's prediction
the `top` largest logits alone, whose KL is at most that of all.
Cost: forward and backward over `insert` texts a step, with the head on all of their tokens; once
a forward over all texts; on disk 8 * top bytes a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from perdure.mechanisms.distances import USUAL, kl_of_largest
from perdure.methods.general_replay import GeneralReplay, GeneralReplayConfig
from perdure.protocol.method import Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context


class GeReKLConfig(GeneralReplayConfig):
    weight: float | None = Field(None, ge=0, description=f"weight of the KL; null: {USUAL}")
    temperature: float = Field(2.0, gt=0, description="both predictions are softened by it")
    t2: bool = Field(False, description="multiply by the temperature's square")
    top: int = Field(64, gt=0, description="largest logits kept; all others are one outcome")

    def mistakes(self) -> Iterator[Mistake]:
        if self.t2 and self.temperature == 1:
            yield Mistake(("t2",), "has no effect with temperature: 1")


class GeReKL(GeneralReplay):
    Config, name = GeReKLConfig, "gere_kl"
    config: GeReKLConfig
    example_options: ClassVar = {"max_tokens": 12, "insert": 3}
    noop_options: ClassVar = {"max_tokens": 12, "weight": 0, "label_weight": 0}

    def __init__(self, config: GeReKLConfig) -> None:
        super().__init__(config)
        self.requires = Requires(logits=True, texts="labels")

    def begin_task(self, ctx: Context) -> None:
        super().begin_task(ctx)
        c = self.config
        self.states = self.base_states(ctx, "logits", top=c.top, temperature=c.temperature)

    def held(self, ctx: Context, extra: ForwardOutput) -> Mapping[str, Tensor]:
        c = self.config
        each = kl_of_largest(extra.logits, *self.states.largest(extra), c.temperature)  # (tokens,)
        each = each * c.temperature**2 if c.t2 else each
        term = extra.per_row(each)
        return {"kl": self.weight_of(ctx, extra, "kl", term, c.weight) * term}
