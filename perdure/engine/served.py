"""The weights that methods serve in place of those of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from perdure.models.weights import swapped
from perdure.protocol.method import Method

if TYPE_CHECKING:
    from perdure.protocol.context import Context


@contextmanager
def serving(ctx: Context, methods: Sequence[Method]) -> Iterator[bool]:
    """Have the weights that the methods serve in the model; says whether any method serves."""
    with ExitStack() as stack:
        any_served = False
        for method in methods:
            if (weights := method.serving(ctx)) is not None:
                stack.enter_context(swapped(ctx.model, weights))
                any_served = True
                break  # the first one listed decides; two are refused unless ordered
        yield any_served


def ending(methods: Sequence[Method]) -> list[list[Method]]:
    """The methods in the order in which tasks end: those that serve, then the others.

    What is served while a task is learned is what it ends with, and all else that is done at its
    end (a budget, held-out rows, Fisher values) is done with that.
    """
    return [[m for m in methods if m.uses("serving") is first] for first in (True, False)]
