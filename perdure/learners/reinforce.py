"""REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): advantages against the whole batch, no group.

TRL has none; its loss takes an advantage for each token, which this gives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-8


def reinforce_advantages(
    rewards: Tensor,
    mask: Tensor,
    penalties: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor:
    """Advantages by REINFORCE++: each token's return to go, whitened over the batch's tokens.

    A completion's reward stands at its last token, minus `penalties` at each (such as beta times
    k1 of the KL); the discount is 1. Whitened: minus the mean, times 1 / sqrt(var + 1e-8), with
    the unbiased variance.

    Args:
        rewards: (completions,).
        mask: (completions, tokens), 1 where a token is the completion's own.
        penalties: (completions, tokens); None: zero.
        total: sums a tensor over all processes.

    Returns: (completions, tokens); 0 outside of `mask`.
    """
    mask = mask.to(rewards.dtype)
    at = torch.zeros_like(mask) if penalties is None else -penalties * mask
    last = mask.sum(-1).long().clamp(min=1) - 1
    at = at.scatter_add(1, last.unsqueeze(1), (rewards * (mask.sum(-1) > 0)).unsqueeze(1))
    returns = at.flip(-1).cumsum(-1).flip(-1) * mask
    count, summed = total(torch.stack([mask.sum(), returns.sum()]))
    mean = summed / count.clamp(min=1)  # no token at all: every completion is masked
    spread = total((((returns - mean) * mask) ** 2).sum()) / (count - 1).clamp(min=1)
    return (returns - mean) * torch.rsqrt(spread + EPSILON) * mask
