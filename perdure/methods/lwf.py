"""Keep the answers' predictions near those that the model gave before this task.

While a task is learned, the model as the last task left it predicts the same new rows, and the
student is held to its softened predictions. Needs no old data. In the first task "before" is the
base model, as the paper's old network is the pretrained one.
Paper: Learning without Forgetting, Li and Hoiem 2016 (arXiv 1606.09282), equations 2 and 3; the
factor T^2 is Hinton et al. 2015 (arXiv 1503.02531), section 2.

    L = CE(task) + weight * T^2 * mean over answer tokens of KL(softmax(z_prev/T) || softmax(z/T))
    of classes: softmax over the old ones alone (of each old task where tasks are known), a row is
    one "token", and the first task has no old ones: L = CE(task)
Departs: KL for the paper's cross entropy (same gradient, 0 at the start); one shared vocabulary
for the paper's old and new heads, so old predictions are held on the very tokens being learned;
no warm-up of a new head; T^2, which the paper leaves out.
Cost: a second copy of the trainable weights and one more forward pass a step, without gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from perdure.mechanisms.distances import kl
from perdure.protocol.method import Method, MethodConfig, Reads, Requires

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context
    from perdure.streams.task import Task


class LwFConfig(MethodConfig):
    weight: float = Field(1.0, ge=0, description="strength of the pull to the old predictions")
    temperature: float = Field(
        2.0, gt=0, description="softens both predictions; the paper's value is 2"
    )
    teacher_eval: bool = Field(
        True, description="no dropout in the earlier model; false: as in the model that learns"
    )


def lwf_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL of each token; logits (tokens, vocab) -> (tokens,)."""
    return temperature**2 * kl(student, teacher, temperature)


def old_classes_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    groups: Sequence[Sequence[int]] | None,
) -> Tensor:
    """`lwf_loss` summed over groups of columns that compete; None: over all columns as one."""
    if groups is None:
        return lwf_loss(student, teacher, temperature)
    each = [lwf_loss(student[:, list(g)], teacher[:, list(g)], temperature) for g in groups]
    return torch.stack(each).sum(0)


class LwF(Method):
    Config = LwFConfig
    config: LwFConfig
    requires = Requires(logits=True, teacher="previous")
    noop_options: ClassVar = {"weight": 0}

    def reads(self, tasks: Sequence[Task], batch_size: int) -> Reads:
        return Reads(seen=batch_size if len(tasks) > 1 else 0)

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        groups = None if ctx.classes is None else ctx.classes.old
        if groups == ():
            return {}
        teacher = ctx.frozen("previous", dropout=not self.config.teacher_eval)(main.batch)
        pull = old_classes_loss(main.logits, teacher.logits, self.config.temperature, groups)
        term = main.token_mean(pull)
        ctx.log("lwf", term.detach())
        return {"lwf": self.config.weight * term}
