"""Attention of each row on itself, where rows lie one behind another in one line.

A mask over all pairs of a line's tokens keeps rows apart too, and that is what `transformers` makes
from position ids; but with a mask attention leaves its fast kernels, and computes all that it then
throws away. Here only attention sees rows: queries, keys and values are gathered into batches of
rows, padded at the right, where causal attention needs no mask; what it gives is put back in line.
Everything else in the model runs on the line, without padding.

The layout travels as an argument of the model's forward, which `transformers` hands on to the
attention function, so that it is there again when activations are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from perdure.models.anatomy import decoder_of

NAME = "sdpa_rows_apart"
"""Under which `transformers` knows this attention. Without `ROWS_APART` it is its `sdpa`."""
ROWS_APART = "rows_apart"
MULTIPLE_ON_GPU = 64
"""Rows are padded to a multiple of it, so that few shapes occur: for each new one cuDNN plans its
attention anew, which took a fifth of a step of an 8B model (`benchmarks/gere.py --shape 8b`)."""


@dataclass(frozen=True)
class RowPlaces:
    """Where the rows of one line are: groups of rows of like length, each row padded to the longest
    of its group, one group's flattened rows behind the other's."""

    sizes: tuple[tuple[int, int], ...]
    """Rows and longest of each group."""
    places: Tensor
    """For each token of the groups its place in the line, (group tokens,); padding has 0."""
    padding: Tensor
    """Which of them are padding, (group tokens,) bool."""
    back: Tensor
    """For each place in the line where its token is in the groups, (tokens,)."""

    def to(self, move: Callable[[Tensor], Tensor]) -> RowPlaces:
        return RowPlaces(self.sizes, move(self.places), move(self.padding), move(self.back))


def row_places(lengths: Sequence[int], multiple: int = 1) -> RowPlaces:
    """The layout of rows of these lengths, in this order.

    A row is padded to less than double, and that up to a multiple of `multiple`.
    """
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    back = torch.empty(sum(lengths), dtype=torch.long)
    sizes, groups, before = [], [], 0
    while left:
        longest = lengths[left[0]]
        members = [i for i in left if 2 * lengths[i] > longest]
        left = left[len(members) :]
        longest = -(-longest // multiple) * multiple
        places = torch.full((len(members), longest), -1)
        for j, i in enumerate(members):
            places[j, : lengths[i]] = torch.arange(starts[i], starts[i] + lengths[i])
            at = before + j * longest
            back[starts[i] : starts[i] + lengths[i]] = torch.arange(at, at + lengths[i])
        sizes.append((len(members), longest))
        groups.append(places.flatten())
        before += places.numel()
    every = torch.cat(groups)
    return RowPlaces(tuple(sizes), every.clamp(min=0), every < 0, back)


class _ToGroups(torch.autograd.Function):
    """Tokens of a line, (tokens, ...), to their places in the groups.

    Padding repeats some token and gets no gradient, so that each way is one gather; autograd's own
    way back would add up, with atomics on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: RowPlaces) -> Tensor:
        ctx.at = at
        return x.index_select(0, at.places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.at.back), None


class _ToLine(torch.autograd.Function):
    """The other way: tokens of the groups to their places in the line, without the padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: RowPlaces) -> Tensor:
        ctx.at, ctx.rest = at, (1,) * (x.dim() - 1)
        return x.index_select(0, at.back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        found = gradient.index_select(0, ctx.at.places)
        return found.masked_fill_(ctx.at.padding.reshape(-1, *ctx.rest), 0), None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows_apart: RowPlaces | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`sdpa` of `transformers`, row by row where the call says where rows are.

    Rows must be no longer than any layer's window.

    Args: query, key, value: (1, heads, tokens, size) of a line, or whatever `sdpa` takes.
    Returns: (1, tokens, heads, size), None
    """
    if rows_apart is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    counts = [rows * longest for rows, longest in rows_apart.sizes]
    taken = [
        _ToGroups.apply(t[0].transpose(0, 1), rows_apart).split(counts) for t in (query, key, value)
    ]
    found = []
    for size, *parts in zip(rows_apart.sizes, *taken, strict=True):
        by_row = (part.unflatten(0, size).transpose(1, 2) for part in parts)
        rows, _ = sdpa_attention_forward(module, *by_row, None, **options)
        found.append(rows.flatten(0, 1))
    line: Tensor = _ToLine.apply(torch.cat(found), rows_apart)
    return line.unsqueeze(0), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def takes_rows(model: nn.Module) -> bool:
    """Whether `model` attends by rows now."""
    config: Any = decoder_of(model).config
    return bool(config._attn_implementation == NAME)


@contextmanager
def attends_by_rows(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """`model` takes `ROWS_APART` inside the block, if its attention is `sdpa`."""
    config: Any = decoder_of(model).config
    before = config._attn_implementation
    if wanted and before == "sdpa":
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
