"""The processes that torchrun or accelerate started, and work shared out among them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

B = TypeVar("B")
R = TypeVar("R")
Progress = Callable[[int, int], None]
"""Called as progress(done, total), counted in rows."""


def rank() -> int:
    """This process's number among those that torchrun or accelerate started; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def say(text: str) -> None:
    """Print to stderr, a process other than the first one with its number.

    With its line's end in one call: processes share a terminal, and what two say at once would
    stand within each other's lines.
    """
    mine = f"process {rank()}: " if rank() else ""
    sys.stderr.write(f"{mine}{text}\n")
    sys.stderr.flush()


def broadcast(value: str) -> str:
    """The first process's `value`, on all processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return value
    from accelerate.utils import broadcast_object_list

    processes()
    found: str = broadcast_object_list([value])[0]
    return found


def barrier() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        processes().wait_for_everyone()


def processes() -> Any:
    """accelerate's view of the processes, on gloo where there is no GPU."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def over_ranks(
    batches: Sequence[B],
    work: Callable[[B], R],
    *,
    accelerator: Any = None,
    on_progress: Callable[[int], None] | None = None,
    evenly: bool = True,
) -> list[R]:
    """Return `work` of every batch, in order, on every process; each does its share of them.

    Process r works at batches r, r + world, ...; at the end some repeat an early batch, so that
    all make equally many forward passes (a sharded model waits for all of them), and repeats are
    dropped. The batches are those of one process, so the scores are too.

    Args:
        accelerator: an `accelerate.Accelerator`, or None for one process.
        on_progress: told how many of all batches are done.
        evenly: False: nothing is repeated, which a model that is not sharded does not need.
    """
    world = accelerator.num_processes if accelerator is not None else 1
    rank = accelerator.process_index if accelerator is not None else 0
    done: list[tuple[int, R]] = []
    for first in range(0, len(batches), world):
        if evenly or first + rank < len(batches):
            at = (first + rank) % len(batches)
            done.append((at, work(batches[at])))
        if on_progress is not None:
            on_progress(min(first + world, len(batches)))
    if world > 1:
        import torch.distributed as dist

        shares: list[Any] = [None] * world
        dist.all_gather_object(shares, done)
        done = [pair for share in shares for pair in share]
    results = dict(done)
    return [results[i] for i in range(len(batches))]


def summed(value: Any) -> Any:
    """The sum of a tensor over all processes, on each of them; a collective call."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.all_reduce(value)
    return value


def largest(values: Sequence[float], device: Any) -> list[float]:
    """Of each value the largest that any process has; a collective call of small numbers."""
    if world_size() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    found = torch.tensor(values, dtype=torch.float32, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [float(value) for value in found.tolist()]


def world_size() -> int:
    """World size; 1 without torch.distributed."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
