"""Freeze the body after a warm-up, and each old head: a sequence that hardly forgets.

Most of what a sequence of classifiers seems to forget is not lost in the body: new heads only push
old classes' logits aside. So the body learns once, on the first task, and then stays; a head learns
its own task's classes and then stays. With cosine heads (`model.head`) no class outgrows another.
Paper: SEQ*, Learn or Recall? Revisiting Incremental Learning with Pre-trained Language Models,
Zheng et al. 2024 (arXiv 2312.07887), tags W (warm-up), FixB (body), FixC (old classifiers).

    L = CE(heads), or in the warm-up of a decoder CE(" " + class's name + end | template)
    task 1, first W epochs       body and head learn; with the latter loss the body alone
    from then on                 the body stays (FixB)
    task t > 1                   the heads of tasks 1 to t - 1 stay (FixC); head t learns
    with prototypes              no step but the warm-up's: head t is its classes' mean features
Departs: what stays has no gradient and no dropout, where the code sets learning rates to 0 and
leaves dropout on; heads move a decoder, of which the code has no gradient. `official` does as it
does. The warm-up has an optimizer of its own, and a prototype's bias is 0.
Cost: negative; a frozen body needs one forward pass a text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from perdure.errors import UsageError, task_named
from perdure.models.configuration import is_decoder
from perdure.protocol.method import Method, MethodConfig, Requires
from perdure.protocol.step import Phase
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from perdure.protocol.context import Context

logger = logging.getLogger("perdure")
BODY, HEADS = r"^(?!heads\.)", r"^heads\."
EPOCHS = {"ce": 3, "lm": 1}
"""The released settings' epochs of a warm-up with each loss."""
MEANS = {"none": "task", "raw": "prototypes", "normalized": "normalized prototypes"}


class SeqStarConfig(MethodConfig):
    warmup_epochs: int | None = Field(
        None, ge=0, description="first task's epochs that train the body; none given: ce 3, lm 1"
    )
    warmup_loss: Literal["auto", "ce", "lm"] = Field(
        "auto", description="ce: the heads'; lm: a decoder writes the class's name; auto: by body"
    )
    freeze_body: bool = Field(True, description="FixB: the body stays after the warm-up")
    freeze_old_heads: bool = Field(True, description="FixC: heads of earlier tasks stay")
    freeze_mode: Literal["requires_grad", "lr_zero"] = Field(
        "requires_grad", description="old heads stay without a gradient, or by learning rate 0"
    )
    feature_grad: bool = Field(True, description="a decoder learns from its heads' loss")
    frozen_eval_mode: bool = Field(True, description="no dropout in a body that stays or is probed")
    prototype: Literal["none", "raw", "normalized"] = Field(
        "none",
        description="heads are their classes' mean features, taken as they are or at length 1",
    )
    official: bool = Field(
        False, description="the released code's freeze_mode, feature_grad and frozen_eval_mode"
    )

    def mistakes(self) -> Iterator[Mistake]:
        if not self.freeze_body:
            for key in ("warmup_epochs", "prototype", "warmup_loss"):
                if getattr(self, key) not in (None, 0, "none", "auto"):
                    what = "has no effect with freeze_body: false"
                    yield Mistake((key,), what, "leave it out")
        if self.warmup_epochs == 0 and self.warmup_loss != "auto":
            yield Mistake(("warmup_loss",), "has no effect without a warm-up", "leave it out")


def frozen(task: int, body: bool, old_heads: bool) -> str:
    """Regular expression over the names of parameters that get no update in task number `task`."""
    parts = [BODY] if body else []
    if old_heads and task:
        parts.append(rf"^heads\.parts\.(?:{'|'.join(map(str, range(task)))})\.")
    return "|".join(parts)


class SeqStar(Method):
    Config = SeqStarConfig
    config: SeqStarConfig
    classes_only = True
    example_options: ClassVar = {"warmup_epochs": 1}
    noop_options: ClassVar = {
        "warmup_epochs": 0, "freeze_body": False, "freeze_old_heads": False,
    }  # fmt: skip

    def __init__(self, config: SeqStarConfig) -> None:
        super().__init__(config)
        if config.freeze_body and config.warmup_epochs != 0:
            head = {"ce": "", "lm": "must", "auto": "decoder"}[config.warmup_loss]
            self.requires = Requires(language_head=head)
        self.drops_when_probed = config.official or not config.frozen_eval_mode
        if config.official:
            self.says = "seq_star: official: it computes as the released code of its paper does"

    def epochs(self, task: int, epochs: float, decoder: bool) -> tuple[float, float | None]:
        reaches, loss = self._reaches_body(decoder), self._loss(decoder)
        if not self.config.freeze_body:
            return (epochs, None) if reaches else (0.0, epochs)
        warm = float(self._epochs(loss)) if task == 0 else 0.0
        after = epochs if self.config.prototype == "none" else 0.0
        return (warm, after) if reaches or loss == "lm" else (0.0, warm + after)

    def _loss(self, decoder: bool) -> str:
        chosen = self.config.warmup_loss
        return chosen if chosen != "auto" else "lm" if decoder else "ce"

    def _epochs(self, loss: str) -> int:
        given = self.config.warmup_epochs
        return EPOCHS[loss] if given is None else given

    def _reaches_body(self, decoder: bool) -> bool:
        """Whether the heads' loss moves the body at all."""
        return not decoder or (self.config.feature_grad and not self.config.official)

    def phases(self, ctx: Context) -> Sequence[Phase]:
        model: Any = ctx.model
        if not any(n.startswith("heads.") for n, _ in model.named_parameters()):
            raise UsageError(
                "method: seq_star freezes the body and old heads, and this model has no heads",
                "it is for tasks with classes: format: classes",
            )
        options, task, decoder = self.config, ctx.task_index, is_decoder(model.config)
        by_rate = options.official or options.freeze_mode == "lr_zero"
        eval_mode = not self.drops_when_probed
        still, loss = not self._reaches_body(decoder), self._loss(decoder)
        phases: list[Phase] = []
        if task == 0 and options.freeze_body and (epochs := self._epochs(loss)):
            kept = frozen(0, still, False)
            phases = [Phase("warm-up", epochs, freeze=kept, frozen_eval=eval_mode)]
            if loss == "lm":
                phases = [Phase("warm-up", epochs, freeze=HEADS, objective="lm")]
        means, old = MEANS[options.prototype], options.freeze_old_heads
        by_rate = by_rate and means == "task"  # no step, no rate
        kept = frozen(task, still or options.freeze_body, old and not by_rate)
        held = frozen(task, False, old and by_rate)
        stays = re.compile("|".join(filter(None, (kept, held))) or "$^")
        if all(stays.search(name) for name, _ in model.named_parameters()):
            # A task whose classes all came before has no head of its own.
            told = "%s: all its classes are old and old heads stay: nothing is learned of it"
            logger.warning(told, task_named(ctx.task.name))
            return ()
        main = Phase(freeze=kept, hold=held, objective=means, frozen_eval=eval_mode)
        return [*phases, main]
