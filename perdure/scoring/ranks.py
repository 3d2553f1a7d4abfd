"""Scoring under several processes, and what scoring must leave as it found it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

B = TypeVar("B")
R = TypeVar("R")

Progress = Callable[[int, int], None]
"""Called as progress(done, total), counted in rows."""


def over_ranks(
    batches: Sequence[B],
    work: Callable[[B], R],
    *,
    accelerator: Any = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[R]:
    """Return `work` of every batch, in order, on every process; each does its share of them.

    Process r works at batches r, r + world, ...; at the end some repeat an early batch, so that
    all make equally many forward passes (a sharded model waits for all of them), and repeats are
    dropped. The batches are those of one process, so the scores are too.

    Args:
        accelerator: an `accelerate.Accelerator`, or None for one process.
        on_progress: told how many of all batches are done.
    """
    world = accelerator.num_processes if accelerator is not None else 1
    rank = accelerator.process_index if accelerator is not None else 0
    done: list[tuple[int, R]] = []
    for first in range(0, len(batches), world):
        at = (first + rank) % len(batches)
        done.append((at, work(batches[at])))
        if on_progress is not None:
            on_progress(min(first + world, len(batches)))
    if world > 1:
        shares: list[Any] = [None] * world
        dist.all_gather_object(shares, done)
        done = [pair for share in shares for pair in share]
    results = dict(done)
    return [results[i] for i in range(len(batches))]


def processes() -> int:
    """How many processes torch runs together, 1 if it was never told of others."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters live on several processes (FSDP, DeepSpeed ZeRO-3)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has its own training flag again.

    FSDP2 leaves the root module's parameters gathered after a forward pass without a backward
    pass, and whoever wrote weights then would write to a copy: they are sharded again.
    """
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
            if reshard := getattr(module, "reshard", None):
                reshard()
