"""How far hidden states left the intervals that the base model's were in; fused, own backward.

The base model's state enters by two flags only, a = (h <= n) and b = (h >= p), two bits a neuron:

    flags 0 (n, p)    1 (-inf, n)    2 (p, inf)    3 (p, n), which only happens if n = p = h

and the state x is e = relu(x - high) + relu(low - x) outside, whose slope is 1, -1 or 0. The
forward pass keeps that sign (a byte a neuron) and nothing else. On a GPU one Triton kernel does it
all; elsewhere plain torch, row by row, so that temporaries are of one row.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn


def flags(states: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """1 where at or below `low`, 2 where at or above `high`, 3 both (only if low = high), else 0.

    Args: states (..., hidden); thresholds (hidden,). Returns: uint8 of the states' shape.
    """
    return (states <= low).to(torch.uint8) + 2 * (states >= high).to(torch.uint8)


def pack(values: Tensor) -> Tensor:
    """Four 2-bit values a byte along the last dimension, the first in the lowest bits."""
    padded = nn.functional.pad(values, (0, -values.shape[-1] % 4)).unflatten(-1, (-1, 4))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=values.device)
    return (padded << shifts).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, size: int) -> Tensor:
    """The first `size` values of `pack`'s bytes."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 3).flatten(-2)[..., :size]


def excess(x: Tensor, base: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """Signed distance of each state to its interval, 0 inside; below it is negative.

    Args: x fp32 and base flags (..., hidden); n, p thresholds (hidden,) fp32.
    """
    inf = float("inf")
    low = torch.where(base == 1, -inf, torch.where(base == 0, n, p))
    high = torch.where(base == 2, inf, torch.where(base == 0, p, n))
    return torch.relu(x - high) - torch.relu(low - x)


def outside(
    x: Tensor, codes: Tensor, mask: Tensor, n: Tensor, p: Tensor, floor: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the distances, and counts, of each row. Only the sum has a gradient.

    Args:
        x: states, (rows, seq, hidden), any float type; computed in fp32.
        codes: the base's flags as `pack` made them, (rows, seq, hidden / 4) uint8.
        mask: real positions, (rows, seq).
        n, p: thresholds, (hidden,) fp32.
        floor: a distance up to this counts as none.
    Returns: sum of distances, states outside their interval, states whose flags differ from the
        base's; each (rows,) fp32.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Outside.apply(x, codes, mask.bool(), n, p, floor)
    return found


def margin(
    x: Tensor, codes: Tensor, mask: Tensor, n: Tensor, p: Tensor, over: str, floor: float = 0.0
) -> Tensor:
    """Threshold margin of each row.

    Args: as of `outside`. over: violating | elements | tokens.
    Returns: (rows,)
    """
    return averaged(*outside(x, codes, mask, n, p, floor)[:2], mask, x.shape[-1], over)


def averaged(total: Tensor, count: Tensor, mask: Tensor, hidden: int, over: str) -> Tensor:
    """Sums of distances, (rows,), divided as `over` says."""
    if over == "violating":
        return total / (count + 1e-8)
    tokens = mask.sum(1).clamp(min=1)
    return total / (tokens if over == "tokens" else tokens * hidden)


class _Outside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        run = _kernel() if x.is_cuda else None
        sums, counts, flips, sign = (run or plain)(x, *rest)
        ctx.save_for_backward(sign)
        ctx.dtype = x.dtype
        ctx.mark_non_differentiable(counts, flips)
        return sums, counts, flips

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (sign,) = ctx.saved_tensors
        return (sign * gradient[:, None, None]).to(ctx.dtype), None, None, None, None, None


def plain(
    x: Tensor, codes: Tensor, mask: Tensor, n: Tensor, p: Tensor, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the kernel computes, in plain torch; the sign too, (rows, seq, hidden) int8."""
    sign = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    sums, counts, flips = x.new_empty(3, len(x), dtype=torch.float32)
    for row in range(len(x)):
        state, base = x[row].float(), unpack(codes[row], x.shape[-1])
        real = mask[row].unsqueeze(-1)
        e = torch.where(real, excess(state, base, n, p), 0.0)
        if floor > 0:  # so that a state that is no number stays one
            e = torch.where(e.abs() <= floor, 0.0, e)
        sums[row], counts[row] = e.abs().sum(), (e != 0).sum()
        flips[row] = ((flags(state, n, p) != base) & real).sum()
        sign[row] = e.sign()
    return sums, counts, flips, sign


@functools.cache
def _kernel() -> Any:
    """The Triton kernel; None where Triton is not installed, or cannot compile here."""
    try:
        from perdure.mechanisms.margin_triton import fused

        one = torch.ones(1, 1, 4, device="cuda")
        fused(one, pack(one.byte()), one[..., 0].bool(), one[0, 0], one[0, 0], 0.0)
    except Exception as error:  # of the import, of a compiler that is missing, of the launch
        logging.getLogger("perdure").info("margin of states: computed in plain torch: %s", error)
        return None
    return fused
