"""The Triton kernel behind `_margin.outside`: one read of the states, one byte written for each.

Block sums are written out and added by torch, not by atomics, so that a run repeats exactly.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

_BLOCK = 4096


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _outside(  # type: ignore[no-untyped-def]
    x_ptr, code_ptr, mask_ptr, n_ptr, p_ptr, sign_ptr, sums_ptr, counts_ptr, flips_ptr,
    seq, hidden, width, blocks, floor, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    block = tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    there = at < seq * hidden
    t = at // hidden
    j = at % hidden
    first = row.to(tl.int64) * seq * hidden
    x = tl.load(x_ptr + first + at, mask=there, other=0.0).to(tl.float32)
    byte = tl.load(
        code_ptr + row.to(tl.int64) * seq * width + t * width + j // 4, mask=there, other=0
    )
    base = (byte.to(tl.int32) >> (2 * (j % 4))) & 3
    n = tl.load(n_ptr + j, mask=there, other=0.0)
    p = tl.load(p_ptr + j, mask=there, other=0.0)
    real = tl.load(mask_ptr + row * seq + t, mask=there, other=0) != 0
    low = tl.where(base == 1, -float("inf"), tl.where(base == 0, n, p))
    high = tl.where(base == 2, float("inf"), tl.where(base == 0, p, n))
    above = tl.where(x > high, x - high, 0.0)
    below = tl.where(low > x, low - x, 0.0)
    # A state that is no number must reach the sum, as it does in plain torch.
    e = tl.where(real, above + below + tl.where(x != x, x, 0.0), 0.0)
    e = tl.where(e <= floor, 0.0, e)
    now = (x <= n).to(tl.int32) + 2 * (x >= p).to(tl.int32)
    sign = tl.where(e != 0.0, tl.where(above > 0.0, 1, tl.where(below > 0.0, -1, 0)), 0)
    tl.store(sign_ptr + first + at, sign.to(tl.int8), mask=there)
    out = row * blocks + block
    tl.store(sums_ptr + out, tl.sum(e, axis=0))
    tl.store(counts_ptr + out, tl.sum(tl.where(e != 0.0, 1.0, 0.0), axis=0))
    changed = (now != base) & real & there
    tl.store(flips_ptr + out, tl.sum(tl.where(changed, 1.0, 0.0), axis=0))


def fused(
    x: Tensor, codes: Tensor, mask: Tensor, n: Tensor, p: Tensor, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `_margin.plain`, which gives the same."""
    rows, seq, hidden = x.shape
    x, codes = x.contiguous(), codes.contiguous()
    blocks = triton.cdiv(seq * hidden, _BLOCK)
    sign = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    parts = torch.empty((3, rows, blocks), dtype=torch.float32, device=x.device)
    launch: Any = _outside[(rows, blocks)]
    launch(
        x, codes, mask.to(torch.uint8), n, p, sign, parts[0], parts[1], parts[2],
        seq, hidden, codes.shape[-1], blocks, floor, BLOCK=_BLOCK,
    )  # fmt: skip
    sums, counts, flips = parts.sum(-1)
    return sums, counts, flips, sign
