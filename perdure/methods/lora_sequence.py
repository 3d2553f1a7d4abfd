"""Learn an adapter and a head for each task, and leave those of earlier tasks as they are.

Nothing that was learned is written to again, so nothing of a task is lost where its rows are known
to be its own. What may get lost is which task a row is of: heads that never saw one another's
classes compete by their logits.
Paper: LoRA as a method of its own in Learn or Recall?, Zheng et al. 2024 (arXiv 2312.07887), whose
released code calls it PEFT; the adapters are those of Hu et al. 2021 (arXiv 2106.09685).

    L = CE(head t on the features of adapter t), over the classes of task t alone; with
        `compete: seen` over all learned ones, [z_1, ..., z_t], of which z_t alone learns
    concat    z = [head 1 (x; adapter 1), ..., head t (x; adapter t)], all classes compete
    oracle    z = head j (x; adapter j) of the row's own task j
Departs: `compete: seen` is ours. Gradients reach a decoder's adapter; with `feature_grad: false`,
or `official: true`, its head learns alone, as in the code. A label that comes again in a later
task keeps its first adapter, and its rows are left out there.
Cost: training as with one adapter; scoring takes a pass of the body for each learned task, of
`oracle` one in all. A text's logits under an old task's adapter are computed once in a run; with
`compete: seen` also each training text's, once a task.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from perdure.errors import UsageError, task_named
from perdure.models.configuration import is_decoder
from perdure.models.task_adapters import Compete, Select, TaskAdapters
from perdure.protocol.labels import class_of
from perdure.protocol.method import Method, MethodConfig, Requires
from perdure.protocol.step import Phase
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from perdure.protocol.context import Context

logger = logging.getLogger("perdure")


class LoraSequenceConfig(MethodConfig):
    r: int = Field(4, gt=0, description="rank of each task's adapter")
    alpha: int = Field(8, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of adapter inputs dropped")
    select: Select = Field(
        "concat",
        description="concat: each head on its own adapter's features, all classes compete; oracle: "
        "the row's task is known (task-incremental), its own adapter alone answers",
    )
    compete: Compete = Field(
        "own",
        description="own: the loss is over the task's own classes; seen: over all learned ones, "
        "with the logits of old ones as they stay, which is what replayed rows need",
    )
    feature_grad: bool = Field(True, description="a decoder's adapter learns from its head's loss")
    official: bool = Field(False, description="the released code's feature_grad: false")

    def mistakes(self) -> Iterator[Mistake]:
        if self.official and not self.feature_grad:
            yield Mistake(("feature_grad",), "is what official means", "leave it out")


def staying(names: Iterable[str], task: int) -> str:
    """Regular expression over `names` of parameters for those that stay in task number `task`:
    heads of other tasks; "" if there is none."""
    pattern = rf"^heads\.(?!parts\.{task}\.)"
    return pattern if any(re.search(pattern, name) for name in names) else ""


def new_classes(old: Sequence[Collection[int]], seen: Sequence[Collection[int]]) -> set[int]:
    """Numbers of the classes in `seen` that are not in `old`, each in groups."""
    return {c for group in seen for c in group} - {c for group in old for c in group}


class LoraSequence(Method):
    Config = LoraSequenceConfig
    config: LoraSequenceConfig
    classes_only = True

    example_options: ClassVar = {"dropout": 0.0}
    released: ClassVar = {"feature_grad": False}

    def __init__(self, config: LoraSequenceConfig) -> None:
        super().__init__(config)
        own = TaskAdapters(
            config.r, config.alpha, config.dropout, select=config.select, compete=config.compete
        )
        self.requires = Requires(adapters=own)

    def epochs(self, task: int, epochs: float, decoder: bool) -> tuple[float, float | None]:
        return (0.0, epochs) if decoder and not self.config.feature_grad else (epochs, None)

    def phases(self, ctx: Context) -> Sequence[Phase]:
        names = [name for name, _ in ctx.model.named_parameters()]
        if ctx.classes is None or not any(name.startswith("heads.") for name in names):
            raise UsageError(
                "method: lora_sequence adds an adapter and a head for each task, and this model "
                "has neither",
                "it is for perdure run, on tasks with classes: format: classes",
            )
        if not new_classes(ctx.classes.old, ctx.classes.seen):
            told = "%s: all its classes are old, whose adapters stay: nothing is learned of it"
            logger.warning(told, task_named(ctx.task.name))
            return ()
        kept = staying(names, ctx.task_index)
        if is_decoder(ctx.model.config) and not self.config.feature_grad:
            kept = "|".join(filter(None, (r"^(?!heads\.)", kept)))
        return (Phase(freeze=kept),)

    def train_data(self, ctx: Context, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert ctx.classes is not None
        own = new_classes(ctx.classes.old, ctx.classes.seen)
        return [row for row in data if class_of(ctx.encode(row)) in own]
