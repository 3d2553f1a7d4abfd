"""Rows drawn for an optimizer step, and gradients on chosen rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from perdure.models.random_state import seed_of
from perdure.models.weights import is_sharded, trainable
from perdure.protocol.batch import EncodedRows, unlabelled

if TYPE_CHECKING:
    from torch import nn

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Weights
    from perdure.protocol.step import Step


class Session(Protocol):
    """The part of a task's session that is read here; see `perdure.engine.runtime`."""

    model: nn.Module
    seed: int
    task_index: int
    step: Step
    accumulation: int
    rank: int
    world: int

    def forward(self, rows: Sequence[dict[str, Any]]) -> ForwardOutput: ...


def draw(
    session: Session,
    rows: Sequence[dict[str, Any]],
    size: int,
    *,
    first: int | None = None,
    replace: bool = False,
) -> EncodedRows | None:
    """See `Context.draw`. A process without rows in a micro-batch in which others have some
    gets one that only fills its place (`EncodedRows.fills`), so that all run equally often."""
    if not len(rows) or size < 1:
        return None
    index = session.step.index
    first = index * size if first is None else first
    if replace:
        drawn = [rows[i] for i in _any(session, first, len(rows), size)]
    else:
        orders: dict[int, list[int]] = {}
        drawn = []
        for position in range(first, first + size):
            cycle, place = divmod(position, len(rows))
            if cycle not in orders:
                orders[cycle] = _order(session, cycle, len(rows))
            drawn.append(rows[orders[cycle][place]])
    shares = session.accumulation * session.world
    counts = EncodedRows(drawn).counts_of_all(shares)
    # Ranks of one micro-batch come first, so that they run their extra passes together.
    micro = session.step.micro_batch
    slot = micro * session.world + session.rank
    mine = [row for j, row in enumerate(drawn) if j % shares == slot]
    if mine:
        return EncodedRows(tuple(mine), counts)
    if micro * session.world >= size:
        return None  # nobody has rows in this micro-batch
    return EncodedRows((unlabelled(drawn[0]),), counts, fills=True)


def _order(session: Session, cycle: int, n: int) -> list[int]:
    generator = torch.Generator().manual_seed(
        seed_of(session.seed, session.task_index, session.step.phase.name, cycle)
    )
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order


def _any(session: Session, first: int, n: int, size: int) -> list[int]:
    """Numbers below `n`, each drawn by itself."""
    seed = seed_of(session.seed, session.task_index, session.step.phase.name, "any", first)
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(n, (size,), generator=generator).tolist()
    return found


def gradients_of(session: Session, rows: Sequence[dict[str, Any]]) -> Weights:
    """Gradient of the mean loss of a label on `rows`, by name; `p.grad` is not touched."""
    names, params = zip(*trainable(session.model).items(), strict=True)
    if is_sharded(session.model):
        return _by_backward(session, rows, dict(zip(names, params, strict=True)))
    with torch.enable_grad():
        loss = session.forward(rows).nll.mean()
        found = torch.autograd.grad(loss, params, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def _by_backward(session: Session, rows: Sequence[dict[str, Any]], params: Weights) -> Weights:
    """FSDP2 reduces gradients in its backward hooks, so `autograd.grad` is not enough."""
    kept = {n: p.grad for n, p in params.items()}
    for p in params.values():
        p.grad = None
    with torch.enable_grad():
        session.forward(rows).nll.mean().backward()
    found = {n: p.grad for n, p in params.items() if p.grad is not None}
    for n, p in params.items():
        p.grad = kept[n]
    return found
