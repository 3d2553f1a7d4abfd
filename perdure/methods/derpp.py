"""Replay kept rows with their labels, and hold the model to what it said of them.

Each kept row keeps the logits that the model gave it when it was kept ("dark knowledge"). While
later tasks are learned, its logits are held to those, beside the cross-entropy of its label.
Paper: DER++, Buzzega et al. 2020 (arXiv 2004.07211), equation 6.

    L = CE(new) + beta * CE(kept) + alpha * mean over kept rows of |z - z_kept|^2 / their number
    z_kept: columns of the classes known when the row was kept (`target: stored`), or what the model
    as the last task left it says of the old ones now (`target: snapshot`)
Departs: one draw of kept rows for both terms, where the paper makes two; the buffer is filled at
the end of a task. Where tasks are known, a row's own task's columns alone count.
Cost: as `replay`; a row's logits in the buffer, of tokens as many numbers as the vocabulary for
each; or with `snapshot` a second copy of the weights and a forward pass a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field

from perdure.mechanisms.kept_rows import BufferConfig, Buffered
from perdure.protocol.method import Reads, Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context
    from perdure.streams.task import Task

LOGITS = "_logits"
"""Key of an encoded row for what the model said of it: (labels, columns)."""


class DERppConfig(BufferConfig):
    alpha: float = Field(0.5, ge=0, description="weight of the distance between logits")
    beta: float = Field(0.5, ge=0, description="weight of the kept rows' cross-entropy")
    ratio: float = Field(
        1.0, gt=0, le=100, description="on top: kept rows a step, over the batch size"
    )
    target: Literal["stored", "snapshot"] = Field(
        "stored", description="stored: as a row was kept; snapshot: the last task's model's"
    )
    distill_new_rows: bool = Field(
        False,
        description="with snapshot, tasks known: new rows too get beta and alpha, held to the "
        "snapshot's untrained head, as SEQ*'s released code does",
    )
    teacher_eval: bool = Field(True, description="snapshot: it has no dropout")
    official: bool = Field(
        False,
        description="as SEQ*'s code: mix: half, target: snapshot, distill_new_rows: true, "
        "teacher_eval: false",
    )

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.official and self.ratio != 1:
            yield Mistake(("ratio",), "has no effect with official: true", "leave it out")
        if self.distill_new_rows and self.target == "stored" and not self.official:
            what = "new rows have no stored logits"
            yield Mistake(("distill_new_rows",), what, "write target: snapshot")
        if not self.teacher_eval and self.target == "stored" and not self.official:
            yield Mistake(("teacher_eval",), "has no effect with stored", "write target: snapshot")


def logit_distance(student: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each row over the columns where both are finite; (rows, columns)
    -> (rows,), 0 where there is none."""
    there = student.isfinite() & target.isfinite()
    gap = torch.where(there, student, 0.0) - torch.where(there, target, 0.0)
    return gap.square().sum(-1) / there.sum(-1).clamp(min=1)


def known(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Logits (rows, columns) with nan at classes of none of the groups: not learned yet, though
    they may have columns, as in a classifier that is given its size."""
    columns = [c for group in groups for c in group]
    found = torch.full_like(logits, torch.nan)
    found[:, columns] = logits[:, columns]
    return found


class DERpp(Buffered):
    Config = DERppConfig
    config: DERppConfig
    released: ClassVar = {
        "mix": "half", "target": "snapshot", "distill_new_rows": True, "teacher_eval": False,
    }  # fmt: skip
    example_options: ClassVar = {"buffer_size": 6, "ratio": 0.4}
    noop_options: ClassVar = {"alpha": 0, "beta": 0}

    def __init__(self, config: DERppConfig) -> None:
        super().__init__(config)
        teacher = "previous" if self.config.target == "snapshot" else None
        self.requires = Requires(logits=True, rows=True, teacher=teacher)

    def reads(self, tasks: Sequence[Task], batch_size: int) -> Reads:
        found, c = super().reads(tasks, batch_size), self.config
        if c.target == "stored":
            return found._replace(after=found.after + self.new_rows(tasks))
        kept = batch_size if self.halves else found.learned
        seen, new = (kept, batch_size * c.distill_new_rows) if len(tasks) > 1 else (0, 0)
        return found._replace(seen=seen, known=new)

    def encoded(self, ctx: Context, entry: Mapping[str, Any]) -> dict[str, Any]:
        row = super().encoded(ctx, entry)
        return row if self.config.target == "snapshot" else {**row, LOGITS: entry["logits"]}

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        c, found = self.config, dict[str, "Tensor"]()
        teacher = partial(ctx.frozen, "previous", dropout=not c.teacher_eval)
        if not self.kept:
            return found
        if c.distill_new_rows and ctx.classes is not None and len(ctx.classes.seen) > 1:
            gap = logit_distance(main.competing, teacher()(main.batch).logits)
            found["derpp_new"] = main.token_mean((c.beta - 1) * main.nll + c.alpha * gap)
        if extra is None:
            return found
        if c.target == "snapshot":
            target = teacher()(extra.batch).logits
            target = target if ctx.classes is None else known(target, ctx.classes.old)
        else:
            target = self._stored(extra)
        gap = logit_distance(extra.competing, target)
        ce, mse = extra.token_mean(extra.nll), extra.token_mean(gap)
        ctx.log("derpp_ce", ce.detach())
        ctx.log("derpp_logits", mse.detach())
        return found | {"derpp_ce": c.beta * ce, "derpp_logits": c.alpha * mse}

    @staticmethod
    def _stored(extra: ForwardOutput) -> Tensor:
        """The rows' own logits, (tokens, columns); nan at classes that came later."""
        width, device = extra.logits.shape[-1], extra.logits.device
        parts = [
            torch.nn.functional.pad(z.to(device), (0, width - z.shape[-1]), value=torch.nan)
            for z in extra.extra(LOGITS)
        ]
        return torch.cat(parts)

    def end_task(self, ctx: Context) -> None:
        super().end_task(ctx)
        if self.config.target == "snapshot":
            return
        with torch.no_grad():
            for entry in self.kept:
                if "logits" not in entry:
                    logits = ctx.forward([ctx.encode(entry["row"])]).logits
                    if ctx.classes is not None:
                        last = max(c for group in ctx.classes.seen for c in group)
                        logits = known(logits, ctx.classes.seen)[:, : 1 + last]
                    entry["logits"] = logits.detach().cpu()
