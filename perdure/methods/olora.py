"""A new adapter for each task, pushed to be orthogonal to those of earlier tasks, which stay.

Each task gets a LoRA adapter of its own. Those of earlier tasks no longer learn and stay active, so
that the model is the base plus the sum of all. What a new one reads of a layer's input, the span
of its A, is pushed away from what the old ones read, so that their answers are disturbed little.
Paper: O-LoRA, Orthogonal Subspace Learning for Language Model Continual Learning, Wang et al. 2023
(arXiv 2310.14152).

    L = CE(task) + lam * sum over layers, old adapters i and entries of |A_i A_t^T|
        + l2 * sum over the new A and B of their norms
Departs: absolute values are the released code's; the paper squares them (`square: true`). `l2` is
the code's too; its settings for most orders are lam 0.5 and l2 0.
Cost: a product of small matrices for each layer and old adapter in each micro-batch, and a forward
pass through all adapters: both grow with the number of tasks, as does the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from perdure.protocol.adapters import AdapterCount
from perdure.protocol.method import Method, MethodConfig
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context
    from perdure.streams.task import TaskStream


class OLoRAConfig(MethodConfig):
    lam: float = Field(0.5, ge=0, description="weight of the overlap, the code's lamda_1")
    l2: float = Field(0.0, ge=0, description="weight of the new matrices' norms, its lamda_2")
    square: bool = Field(False, description="square the overlap's entries, as the paper does")

    def mistakes(self) -> Iterator[Mistake]:
        if self.square and not self.lam:
            yield Mistake(("square",), "has no effect with lam: 0", "leave it out, or raise lam")


def overlap(old: Tensor, new: Tensor, square: bool = False) -> Tensor:
    """What two adapters of a layer read in common: the sum of |A_old A_new^T|, or of its squares.

    Args: old, new: A of each, (rank, in); their ranks may differ.
    """
    product = old.float() @ new.float().T  # (rank of old, rank of new)
    return product.square().sum() if square else product.abs().sum()


class OLoRA(Method):
    Config = OLoRAConfig
    config: OLoRAConfig
    adapters = True
    new_adapters = True
    example_options: ClassVar = {"lam": 0.5, "l2": 0.01}

    def __init__(self, config: OLoRAConfig) -> None:
        super().__init__(config)
        self._pairs: Sequence[tuple[Tensor, Tensor]] = ()
        self._new: Sequence[Tensor] = ()

    def adapter_counts(self, stream: TaskStream, learned: int = 0) -> Mapping[str, AdapterCount]:
        names = [task.name for task in stream if task.learn != "none"]
        old = {task.name for task in stream.tasks[:learned]}
        return {
            name: AdapterCount(number, number, int(number > 1))
            for number, name in enumerate(names, 1)
            if name not in old
        }

    def begin_task(self, ctx: Context) -> None:
        """Add the task's adapter to those that are there; the first task has the recipe's own."""
        before = ctx.adapters.names if ctx.tasks_seen else ()
        name = f"task{ctx.task_index + 1}" if before else ctx.adapters.names[0]
        if before:
            ctx.adapters.add(name)
        ctx.adapters.use(active=[*before, name], trained=[name])
        new = ctx.adapters.matrices(name)
        olds = [ctx.adapters.matrices(one) for one in before]
        self._pairs = [(old[layer][0], a) for old in olds for layer, (a, _) in new.items()]
        self._new = [matrix for pair in new.values() for matrix in pair]

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        terms = {}
        if self._pairs and self.config.lam:
            parts = [overlap(old, new, self.config.square) for old, new in self._pairs]
            terms["overlap"] = (torch.stack(parts).sum(), self.config.lam)
        if self.config.l2:
            norms = [matrix.float().norm() for matrix in self._new]
            terms["adapter_norms"] = (torch.stack(norms).sum(), self.config.l2)
        for name, (value, _) in terms.items():
            ctx.log(name, value)
        return {name: value * weight for name, (value, weight) in terms.items()}
