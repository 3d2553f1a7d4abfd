"""Pull each weight back to where earlier tasks left it, the more the more they depended on it.

After a task the diagonal of the Fisher information is estimated from its rows; later tasks pay a
quadratic penalty for moving weights by that measure.
Paper: Elastic Weight Consolidation, Kirkpatrick et al. 2017 (arXiv 1612.00796), equation 3;
`tasks: online` is Schwarz et al. 2018 (arXiv 1805.06370), section 4.

    L = CE(task) + lam / 2 * sum over tasks t and weights i of F_t,i (w_i - w*_t,i)^2
    F_t,i = mean over rows of (d log p(answer | prompt) / d w_i)^2
Departs: F takes the data's own answers ("empirical Fisher"), and the sum over tasks is one
quadratic. lam depends on the model: start where the logged penalty is near the loss.
Cost: two fp32 copies of the trainable weights; `rows` single-row gradients at the end of a task.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from perdure.models.weights import full
from perdure.protocol.batch import labels_of
from perdure.protocol.method import Method, MethodConfig, Reads, Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from perdure.protocol.context import Context
    from perdure.streams.task import Task


class EWCConfig(MethodConfig):
    lam: float = Field(1e4, ge=0, description="strength, the paper's lambda")
    rows: int = Field(64, gt=0, description="training rows of a task that estimate its Fisher")
    fisher_mode: Literal["per_sample", "batch"] = Field(
        "per_sample",
        description="squared gradients of rows, or of batches times their rows (SEQ*'s code)",
    )
    tasks: Literal["sum", "online", "mean"] = Field(
        "sum",
        description="sum: a penalty each; online: one, around the last weights; mean: with mean F",
    )
    decay: float = Field(
        1.0, ge=0, le=1, description="online: what the older Fisher is multiplied by at each task"
    )
    official: bool = Field(
        False, description="as SEQ*'s code: fisher_mode: batch, tasks: mean, and all rows"
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.official and self.rows != 64:
            yield Mistake(("rows",), "has no effect with official: true", "leave it out")
        if (self.official or self.tasks != "online") and self.decay != 1:
            what = f"has no effect with tasks: {'mean' if self.official else self.tasks}"
            yield Mistake(("decay",), what, "write tasks: online")


def ewc_gradient(weight: Tensor, fisher: Tensor, center: Tensor, lam: float) -> Tensor:
    """Gradient of lam / 2 * sum F (w - c)^2; all of the weight's shape."""
    return lam * fisher * (weight.float() - center)


def add_penalty(
    fisher: Tensor, center: Tensor, new_fisher: Tensor, new_center: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """F(w-c)^2 + G(w-d)^2 as one quadratic: its factor, its minimum, and the constant (a sum)."""
    total, apart = fisher + new_fisher, new_center - center
    share = torch.where(total > 0, new_fisher / total, 1.0)  # where nothing counts: the newest
    return total, center + share * apart, (fisher * share * apart.square()).sum()


def mean_of_fishers(new: Tensor, old: Tensor | None, before: int) -> Tensor:
    """The mean over a new task's F and `before` earlier ones, whose mean is `old`; None is 0."""
    return new / (before + 1) if old is None else (new + before * old) / (before + 1)


def share_of_fisher(mean: Tensor, tokens: float, rows: int, total: int) -> Tensor:
    """What `rows` of `total` rows add to F, from the mean gradient of their tokens."""
    return (tokens * mean.float()).square() * rows / total


class EWC(Method):
    Config = EWCConfig
    config: EWCConfig
    requires = Requires(rows=True, same_weights=True)
    copies = 2
    saved = ("fisher", "center", "constant")
    released: ClassVar = {"fisher_mode": "batch", "tasks": "mean", "rows": sys.maxsize}
    example_options: ClassVar = {"lam": 50, "rows": 4}
    noop_options: ClassVar = {"lam": 0, "rows": 2}

    def __init__(self, config: EWCConfig) -> None:
        super().__init__(config)
        self.fisher: dict[str, Tensor] = {}
        self.center: dict[str, Tensor] = {}
        self.constant = 0.0

    def reads(self, tasks: Sequence[Task], batch_size: int) -> Reads:
        return Reads(after=min(self.config.rows, len(tasks[-1].train)))

    def begin_task(self, ctx: Context) -> None:
        """Hold a grown head's old rows alone; let one that shrank, kept for new classes, go."""
        for name, param in ctx.model.named_parameters():
            if (old := self.fisher.get(name)) is None or param.shape == old.shape:
                continue
            new, center = param.detach()[len(old) :].float(), self.center.pop(name)
            del self.fisher[name]
            if len(new):
                self.fisher[name] = torch.cat([old, torch.zeros_like(new)])
                self.center[name] = torch.cat([center, new])

    @torch.no_grad()
    def gradients(
        self, ctx: Context, params: Mapping[str, Parameter]
    ) -> Iterable[tuple[str, Tensor | None]]:
        penalty: Tensor | None = None
        for name, fisher in self.fisher.items():
            if (param := params.get(name)) is None or param.grad is None:
                continue
            pull = ewc_gradient(param, fisher, self.center[name], self.config.lam)
            term = (fisher * (param.float() - self.center[name]).square()).sum()
            penalty = term if penalty is None else penalty + term
            yield name, param.grad + pull.to(param.grad.dtype)
        if penalty is not None:
            total = float(full(penalty)) + self.constant
            ctx.log("ewc_penalty", self.config.lam / 2 * total)

    def end_task(self, ctx: Context) -> None:
        rng, train = random.Random(f"ewc/{ctx.seed}/{ctx.task_index}"), ctx.task.train
        rows = [train[i] for i in rng.sample(range(len(train)), min(self.config.rows, len(train)))]
        weights = {n: p.float() for n, p in ctx.snapshot().items()}
        new = {n: torch.zeros_like(w) for n, w in weights.items()}
        encoded = [ctx.encode(row) for row in rows]
        size = ctx.batch_size if self.config.fisher_mode == "batch" else 1
        for start in range(0, len(encoded), size):
            part = encoded[start : start + size]
            if not (tokens := sum(map(labels_of, part))):
                continue  # rows without an answer say nothing; their mean would be no number
            for name, mean in ctx.gradients_of(part).items():
                new[name] += share_of_fisher(mean, tokens / len(part), len(part), len(rows))
        for name, fisher in new.items():
            old = self.fisher.get(name)
            center, rest = weights[name], fisher.new_zeros(())
            if self.config.tasks == "mean":
                fisher = mean_of_fishers(fisher, old, ctx.task_index)
            elif old is not None and self.config.tasks == "online":
                fisher = self.config.decay * old + fisher
            elif old is not None:
                fisher, center, rest = add_penalty(old, self.center[name], fisher, center)
            self.fisher[name], self.center[name] = fisher, center
            self.constant += float(full(rest))
