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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from perdure.learners.passes import decoder_of

NAME = "sdpa_rows_apart"
"""Under which `transformers` knows this attention. Without `ROWS_APART` it is its `sdpa`."""
ROWS_APART = "rows_apart"


@dataclass(frozen=True)
class RowPlaces:
    """Where the rows of one line are."""

    groups: tuple[Tensor, ...]
    """For each group of rows of like length the places of their tokens, (rows, longest); a row is
    padded with its first place."""
    back: Tensor
    """For each place in the line where its token is in the flattened groups, (tokens,)."""


def row_places(lengths: Sequence[int]) -> RowPlaces:
    """The layout of rows of these lengths, in this order; groups are padded to less than double."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    back = torch.empty(sum(lengths), dtype=torch.long)
    groups, before = [], 0
    while left:
        longest = lengths[left[0]]
        members = [i for i in left if 2 * lengths[i] > longest]
        left = left[len(members) :]
        places = torch.empty((len(members), longest), dtype=torch.long)
        for j, i in enumerate(members):
            places[j] = starts[i]
            places[j, : lengths[i]] = torch.arange(starts[i], starts[i] + lengths[i])
            at = before + j * longest
            back[starts[i] : starts[i] + lengths[i]] = torch.arange(at, at + lengths[i])
        groups.append(places)
        before += places.numel()
    return RowPlaces(tuple(groups), back)


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

    Args: query, key, value: (1, heads, tokens, size) of a line, or whatever `sdpa` takes.
    Returns: (1, tokens, heads, size), None
    """
    if rows_apart is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    window = options.get("sliding_window")
    found = []
    for places in rows_apart.groups:
        taken = (
            t[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)
            for t in (query, key, value)
        )
        near = None
        if window and places.shape[1] > window:
            near = torch.ones(places.shape[1], places.shape[1], dtype=torch.bool)
            near = near.tril().triu(1 - window).to(query.device, non_blocking=True)
        rows, _ = sdpa_attention_forward(module, *taken, near, **options)
        found.append(rows.flatten(0, 1))
    return torch.cat(found).index_select(0, rows_apart.back).unsqueeze(0), None


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
