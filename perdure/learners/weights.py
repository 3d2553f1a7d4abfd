"""Reading and writing parameters, also when they are sharded over processes (DTensors)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that get updates, by name; a tied one appears once."""
    reshard(model)
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def is_sharded(model: nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in model.parameters())


def reshard(model: nn.Module) -> None:
    """Give up gathered copies of sharded parameters.

    After a forward without a backward, FSDP2 leaves the root's parameters gathered: plain tensors,
    which training would go on with, silently, after the sharded ones were written.
    """
    for module in model.modules():
        if (give_up := getattr(module, "reshard", None)) is not None:
            give_up()


def full(tensor: Tensor) -> Tensor:
    """The whole tensor; a collective call where it is sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write `weights` (whole or sharded alike) into the parameters; return the old values."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    reshard(model)
    params = dict(model.named_parameters())
    if unknown := [n for n in weights if n not in params]:
        raise KeyError(f"no parameter is called {unknown[0]!r}")
    old = {n: params[n].detach().clone() for n in weights}
    for n, value in weights.items():
        target = params[n]
        if isinstance(target, DTensor) and not isinstance(value, DTensor):
            value = distribute_tensor(
                value.to(target.device), target.device_mesh, target.placements
            )
        target.copy_(value)
    return old


@contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Have `weights` in the model inside the block."""
    old = put(model, weights) if weights else {}
    try:
        yield
    finally:
        if old:
            put(model, old)
