"""The order of rows in an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from perdure.models.random_state import seed_of

_SORTED_TOGETHER = 2
"""Global batches sorted by length at a time. More would leave less padding, but where length goes
with the label, as in questions by topic, each batch would hold one label and teach little."""


class EpochSampler(Sampler[int]):
    """Row numbers of one epoch: shuffled, grouped by length, in whole global batches.

    Args:
        lengths: tokens of each row.
        batch_size: rows of an optimizer step over all processes and micro-batches.
        seed: with the epoch's number it decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", self.epoch))
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        order = (order * math.ceil(len(self) / len(order)))[: len(self)]
        size = self.batch_size * _SORTED_TOGETHER
        batches = []
        for start in range(0, len(order), size):
            chunk = sorted(order[start : start + size], key=lambda i: -self.lengths[i])
            batches += [
                chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)
            ]
        for k in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[k]
