"""Keep rows of earlier tasks and train on some of them along with every new batch.

At the end of a task rows go into a buffer; each step of later tasks adds a few to the loss.
Paper: experience replay, Chaudhry et al. 2019, "On tiny episodic memories in continual learning"
(arXiv 1902.10486), algorithm 1; reservoir: Vitter 1985, algorithm R; herding: iCaRL, Rebuffi et
al. 2017 (arXiv 1611.07725), algorithm 4, on features of length 1.

    L = CE(batch) + weight * CE(replayed), each a mean over answer tokens
    mix: half   L = (CE(half a batch of new rows) + weight * CE(half a batch of kept rows)) / 2
Departs: the paper averages batch and memory in one mean (weight 1 over rows of equal number:
`mix: half`) and fills its buffer during the first pass; here it is filled at the end of each task.
Cost: a forward and backward pass over `ratio` more rows a step, or with `mix: half` twice the
steps; `buffer_size` rows of text. Herding: a forward pass over the task's rows at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from perdure.mechanisms.kept_rows import BufferConfig, Buffered

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context


class ReplayConfig(BufferConfig):
    weight: float = Field(1.0, ge=0, description="weight of the replayed rows' loss")


class Replay(Buffered):
    Config = ReplayConfig
    config: ReplayConfig
    example_options: ClassVar = {"buffer_size": 6, "ratio": 0.4}
    noop_options: ClassVar = {"weight": 0}

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        if not self.kept:
            return {}
        share = 0.5 if self.config.mix == "half" else 1.0
        found: dict[str, Tensor] = {}
        if share < 1:  # the trainer's own loss is the mean over the new rows alone
            found["replay_half"] = main.token_mean((share - 1) * main.nll)
        if extra is not None:
            term = extra.token_mean(extra.nll)
            ctx.log("replay", term.detach())
            found["replay"] = share * self.config.weight * term
        return found
