"""An adapter whose rank is split among experts, which a router in each layer weighs for each token.

    x ──► A (rank, in) ──► times the weight of each one's expert ──► B (out, rank) ──►
    └───► router (experts, in) ──► softmax ──┘

With A_e and B_e the e-th part of the rank that is the sum over experts of w_e(x) B_e A_e x. So an
adapter of experts is an ordinary one with one more matrix a layer, and is saved as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.errors import UsageError


def weighed(inner: Tensor, weights: Tensor) -> Tensor:
    """What A gives, (..., rank), each expert's part times its weight, (..., experts)."""
    return inner * weights.repeat_interleave(inner.shape[-1] // weights.shape[-1], -1)


class Experts(nn.Linear):
    """The matrix A of an adapter with the router of its layer beside it.

    Args: first: A, whose weight stays the same parameter; experts: their number divides its rank.
    """

    def __init__(self, first: nn.Linear, experts: int) -> None:
        super().__init__(first.in_features, first.out_features, bias=False, device="meta")
        self.weight = first.weight
        drawn = nn.Linear(first.in_features, experts, bias=False).weight.detach()
        self.router = nn.Parameter(drawn.to(first.weight), first.weight.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        weights = F.linear(x, self.router).softmax(-1, dtype=torch.float32)
        inner = super().forward(x)
        return weighed(inner, weights.to(inner.dtype))


def split(adapted: Any, name: str, experts: int) -> None:
    """Split the rank of an adapter of a `PeftModel` among experts; they are split once.

    The routers come from torch's global generator on the CPU: seed it first.

    Raises:
        UsageError: the rank cannot be split so, or it is split otherwise.
    """
    now = numbers(adapted).get(name, 1)
    if now == experts:
        return
    rank = int(adapted.peft_config[name].r)
    if now > 1 or rank % experts:
        has = f"has {now} experts" if now > 1 else f"has rank {rank}"
        raise UsageError(
            f"adapter {name}: {has}, which cannot be split among {experts} experts",
            "give a rank that is divisible by their number: model.lora.r",
        )
    for module in adapted.modules():
        first = getattr(module, "lora_A", None)
        if isinstance(first, nn.ModuleDict) and name in first:
            first[name] = Experts(first[name], experts)  # type: ignore[arg-type]


def numbers(adapted: Any) -> Mapping[str, int]:
    """The experts of each adapter that has some."""
    found: dict[str, int] = {}
    for module in adapted.modules():
        parts = getattr(module, "lora_A", None)
        if isinstance(parts, nn.ModuleDict):
            for name, first in parts.items():
                if isinstance(first, Experts):
                    found[name] = len(first.router)
    return found
