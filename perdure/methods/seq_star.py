"""Freeze the body after a warm-up, and each old head: a sequence that hardly forgets.

Most of what a sequence of classifiers seems to forget is not lost in the body: new heads only push
old classes' logits aside. So the body learns once, on the first task, and then stays; a head learns
its own task's classes and then stays. With cosine heads (`model.head`) no class outgrows another.
Paper: SEQ*, Learn or Recall? Revisiting Incremental Learning with Pre-trained Language Models,
Zheng et al. 2024 (arXiv 2312.07887), tags W (warm-up), FixB (body), FixC (old classifiers).

    task 1, first W epochs       body and head learn
    from then on                 the body stays (FixB)
    task t > 1                   the heads of tasks 1 to t - 1 stay (FixC); head t learns
Departs: a frozen parameter has no gradient, where the released code sets its learning rate to 0.
Cost: negative; a frozen body needs one forward pass a text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from perdure.errors import UsageError
from perdure.protocol.method import Method, MethodConfig
from perdure.protocol.step import Phase

if TYPE_CHECKING:
    from perdure.protocol.context import Context

logger = logging.getLogger("perdure")
BODY = r"^(?!heads\.)"
"""Every parameter that is no head's."""


class SeqStarConfig(MethodConfig):
    warmup_epochs: int = Field(3, ge=0, description="epochs of the first task that train the body")
    freeze_body: bool = Field(True, description="FixB: the body stays after the warm-up")
    freeze_old_heads: bool = Field(True, description="FixC: heads of earlier tasks stay")


def frozen(task: int, body: bool, old_heads: bool) -> str:
    """Regular expression over the names of parameters that get no update in task number `task`."""
    parts = [BODY] if body else []
    if old_heads and task:
        parts.append(rf"^heads\.parts\.(?:{'|'.join(map(str, range(task)))})\.")
    return "|".join(parts)


class SeqStar(Method):
    Config = SeqStarConfig
    config: SeqStarConfig
    example_options: ClassVar = {"warmup_epochs": 1}
    noop_options: ClassVar = {
        "warmup_epochs": 0, "freeze_body": False, "freeze_old_heads": False,
    }  # fmt: skip

    def phases(self, ctx: Context) -> Sequence[Phase]:
        if not any(n.startswith("heads.") for n, _ in ctx.model.named_parameters()):
            raise UsageError(
                "method: seq_star freezes the body and old heads, and this model has no heads",
                "it is for tasks with classes: format: classes",
            )
        options = self.config
        kept = frozen(ctx.task_index, options.freeze_body, options.freeze_old_heads)
        named = ctx.model.named_parameters()
        if kept and not any(p.requires_grad and not re.search(kept, n) for n, p in named):
            # A task whose classes all came before has no head of its own.
            told = "task %s: all its classes are old and old heads stay: nothing is learned of it"
            logger.warning(told, ctx.task.name)
            return ()
        main = Phase(freeze=kept)
        if ctx.task_index == 0 and options.warmup_epochs and options.freeze_body:
            return Phase("warm-up", epochs=options.warmup_epochs), main
        return (main,)
