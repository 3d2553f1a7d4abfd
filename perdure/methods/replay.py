"""Keep rows of earlier tasks and train on some of them along with every new batch.

At the end of a task rows go into a buffer; each step of later tasks adds a few to the loss.
Paper: experience replay, Chaudhry et al. 2019, "On tiny episodic memories in continual learning"
(arXiv 1902.10486), algorithm 1; reservoir: Vitter 1985, algorithm R.

    L = CE(batch) + weight * CE(replayed), each a mean over answer tokens
Departs: the paper averages batch and memory in one mean (weight 1 over rows of equal number) and
fills its buffer during the first pass; here it is filled at the end of each task.
Cost: a forward and backward pass over `ratio` more rows a step; `buffer_size` rows of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from perdure.mechanisms.buffer import Kept, balanced, reservoir
from perdure.protocol.method import Method, MethodConfig, Requires

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import EncodedRows, ForwardOutput
    from perdure.protocol.context import Context


class ReplayConfig(MethodConfig):
    buffer_size: int = Field(64, gt=0, description="rows kept in all")
    policy: Literal["reservoir", "balanced"] = Field(
        "balanced",
        description="reservoir: every row of the stream with equal chance; "
        "balanced: the same number of rows for each task",
    )
    ratio: float = Field(
        0.25, gt=0, description="replayed rows a step, as a share of the batch size; at least 1"
    )
    weight: float = Field(1.0, ge=0, description="weight of the replayed rows' loss")


class Replay(Method):
    Config = ReplayConfig
    config: ReplayConfig
    requires = Requires(logits=True, rows=True)
    saved = ("kept", "seen")
    example_options: ClassVar = {"buffer_size": 6, "ratio": 0.4}
    noop_options: ClassVar = {"weight": 0}

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config)
        self.kept: Kept = []
        self.seen = 0
        self._rows: list[dict[str, Any]] | None = None

    def begin_task(self, ctx: Context) -> None:
        self._rows = None

    def replay(self, ctx: Context) -> EncodedRows | None:
        if not self.kept:
            return None
        if self._rows is None:
            self._rows = [ctx.encode(entry["row"]) for entry in self.kept]
        return ctx.draw(self._rows, max(1, round(self.config.ratio * ctx.batch_size)))

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        if extra is None:
            return {}
        term = extra.token_mean(extra.nll)
        ctx.log("replay", term.detach())
        return {"replay": self.config.weight * term}

    def end_task(self, ctx: Context) -> None:
        rows: list[dict[str, Any]] = [dict(row) for row in ctx.task.train]
        size, seed = self.config.buffer_size, f"replay/{ctx.seed}/{ctx.task_index}"
        if self.config.policy == "reservoir":
            self.kept, self.seen = reservoir(self.kept, self.seen, ctx.task.name, rows, size, seed)
        else:
            self.kept = balanced(self.kept, ctx.task.name, rows, size, seed)
            self.seen += len(rows)
