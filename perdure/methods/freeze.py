"""Train the upper layers only: the lowest `layers` decoder layers and the embeddings stay fixed.

What the lower layers compute is then shared by all tasks; a cheap baseline that published
comparisons often leave out.
Paper: "Freeze" in Spurious Forgetting in Continual Learning of Language Models, Zheng et al. 2025
(arXiv 2501.13453), which fixes the bottom layers and the input embeddings.

    w_l stays as it was before the task for l < layers and for every embedding
Departs: fixed from the first task on; where input and output embeddings are one tensor, the head
is fixed too. With an adapter, its parts in the lowest layers are fixed.
Cost: negative; frozen weights need no gradient and no optimizer state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from perdure.errors import UsageError
from perdure.protocol.method import Method, MethodConfig
from perdure.protocol.step import Phase
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import nn

    from perdure.models.inspect import ModelFacts
    from perdure.protocol.context import Context


class FreezeConfig(MethodConfig):
    layers: int = Field(4, ge=0, description="decoder layers that stay fixed, from the input up")
    embeddings: bool = Field(True, description="keep token and position embeddings fixed")


def none_left(layers: int, count: int) -> Iterator[Mistake]:
    """The mistake of fixing the lowest `layers` of a model that has no more than these."""
    if layers >= count:
        what = f"{layers} leaves none of the model's {count} layers to train"
        yield Mistake(("layers",), what, f"set it to at most {count - 1}")


def freeze_pattern(model: nn.Module, layers: int, embeddings: bool = True) -> str:
    """Regular expression over parameter names, made from where the model keeps its parts.

    Raises:
        UsageError: the model's layers are not known, or too few to leave one to train.
    """
    from torch.nn import Embedding

    from perdure.models.anatomy import decoder_of, layers_of

    try:
        stack = layers_of(model)
    except AttributeError as error:
        raise UsageError(f"freeze: {error}", "take a model of another family") from error
    for mistake in none_left(layers, len(stack)):
        raise UsageError(f"freeze: layers: {mistake.what}", mistake.remedy)
    inside = {id(module) for module in stack.modules()}
    outer = [m for m in decoder_of(model).modules() if isinstance(m, Embedding)]
    fixed = {id(module) for module in stack[:layers]}
    if embeddings:
        fixed |= {id(module) for module in outer if id(module) not in inside}
    names = [name for name, module in model.named_modules() if id(module) in fixed]
    return rf"(?:^|\.)(?:{'|'.join(map(re.escape, names))})\." if names else ""


class Freeze(Method):
    Config = FreezeConfig
    config: FreezeConfig
    example_options: ClassVar = {"layers": 1}
    noop_options: ClassVar = {"layers": 0, "embeddings": False}

    def mistakes_on(self, facts: ModelFacts) -> Iterator[Mistake]:
        yield from none_left(self.config.layers, facts.layers)

    def phases(self, ctx: Context) -> Sequence[Phase]:
        pattern = freeze_pattern(ctx.model, self.config.layers, self.config.embeddings)
        return (Phase(freeze=pattern),)
