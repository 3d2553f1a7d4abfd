"""Weights on the straight line between two sets of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def interpolate(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], factor: float
) -> dict[str, Tensor]:
    """start + factor * (end - start), by name; a name that `start` lacks stays at its end."""
    return {n: start[n] + factor * (w - start[n]) if n in start else w for n, w in end.items()}
