"""Plain references for the margin of GeRe, for tests of several folders."""

from __future__ import annotations

import torch
from torch import Tensor

from perdure.mechanisms.state_cache import thresholds


def limits(states: Tensor, k: float = 1.0) -> tuple[Tensor, Tensor]:
    found = thresholds(lambda: [states], k)
    return found["n"], found["p"]


def by_full_states(x: Tensor, h: Tensor, mask: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """The official form: three indicator-weighted terms on the states themselves, one row."""
    low, high = (h <= n), (h >= p)
    mid = (n < h) & (h < p)
    e = low * torch.relu(x - n) + high * torch.relu(p - x)
    e = (e + mid * (torch.relu(x - p) + torch.relu(n - x))) * mask.unsqueeze(-1)
    return e.sum() / ((e != 0).sum() + 1e-8)
