"""Parameters that get no updates for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from perdure.errors import TrainingError
from perdure.models.weights import trainable


@contextmanager
def frozen_parameters(model: nn.Module, pattern: str) -> Iterator[None]:
    """Parameters whose name `pattern` finds get no updates inside the block.

    Raises:
        TrainingError: it finds none, or all.
    """
    if not pattern:
        yield
        return
    before = trainable(model)
    chosen = {n: p for n, p in before.items() if re.search(pattern, n)}
    if not chosen or len(chosen) == len(before):
        which = "no parameter" if not chosen else "every parameter"
        raise TrainingError(f"the phase freezes {pattern!r}, which matches {which}")
    for p in chosen.values():
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in chosen.values():
            p.requires_grad_(True)
