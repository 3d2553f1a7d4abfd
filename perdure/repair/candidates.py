"""Weights between a base and a tuned model: three ways to take back a part of the tuning.

Pure functions on weights by name. `start` are the base's and `end` the tuned model's, with the
same names and shapes.

    rewound   start + a (end - start), one factor for all weights.
              WiSE-FT, Wortsman et al. 2022 (arXiv 2109.01903).
    grouped   a factor for each of three groups of layers. That the update of shallow layers
              costs more general ability than it earns on the task, and should be scaled down, is
              from LiNeS, Wang et al. 2024 (arXiv 2410.17146), where the factor grows linearly
              with depth; three free factors are ours.
    pruned    in each tensor, the entries that changed most relative to their size go back. Ours;
              TIES, Yadav et al. 2023 (arXiv 2306.01708), trims the smallest changes instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["base", "tuned", "rewind", "groups", "prune", "gere"]
GROUPS = ("embeddings and lowest third", "middle third", "top third, norm and head")


@dataclass(frozen=True)
class Candidate:
    """One way to mix the weights.

    `factors` has one number for each of `GROUPS`, 0 the base's weights and 1 the tuned model's;
    `share` of each tensor's entries goes back to the base. A candidate of kind "gere" has these
    weights only to begin with: it was trained further.
    """

    kind: Kind
    factors: tuple[float, ...] = (1.0, 1.0, 1.0)
    share: float = 0.0

    def __str__(self) -> str:
        if self.kind == "rewind":
            return f"rewind {self.factors[0]:g}"
        if self.kind == "groups":
            return "groups " + " / ".join(f"{factor:g}" for factor in self.factors)
        return f"prune {self.share:g}" if self.kind == "prune" else self.kind


BASE = Candidate("base", (0.0, 0.0, 0.0))
TUNED = Candidate("tuned")


def rewind(factor: float) -> Candidate:
    """The same factor for all weights."""
    return Candidate("rewind", (factor,) * len(GROUPS))


def mixed(
    candidate: Candidate,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    groups: Mapping[str, int],
) -> Iterator[tuple[str, Tensor]]:
    """Yield each name with the candidate's weights, fp32, one tensor at a time to save memory.

    Args:
        groups: each name's group, as `layer_groups` gives it.
    """
    for name, last in end.items():
        first = start[name].float()
        kept = pruned(first, last.float(), candidate.share)
        yield name, rewound(first, kept, candidate.factors[groups[name]])


def rewound(first: Tensor, last: Tensor, factor: float) -> Tensor:
    """first + factor (last - first); exactly `first` at 0 and exactly `last` at 1."""
    return torch.lerp(first, last, factor)


def pruned(first: Tensor, last: Tensor, share: float) -> Tensor:
    """`last`, but the `share` of entries with the largest |last - first| / |first| from `first`.

    A change from 0 is infinitely large, no change is none. Entries that changed as much as the
    last one undone are undone with it.
    """
    count = round(share * last.numel())
    if not count:
        return last
    change = ((last - first).abs() / first.abs()).nan_to_num(0.0, posinf=float("inf"))
    least = change.flatten().kthvalue(last.numel() - count + 1).values
    return torch.where(change >= least, first, last)


def layer_groups(names: Sequence[str]) -> dict[str, int]:
    """Assign each parameter to one of `GROUPS` by the number of its layer.

    Layers are cut into thirds, layer i of n in third 3 i // n. Parameters without a layer are
    embeddings where the model has them before its first layer, and norm or head after it; a
    final norm that a model declares first counts as the latter.

    Args:
        names: all names of the model, in its own order.
    """
    layer = {n: int(m[1]) for n in names if (m := re.search(r"\.(\d+)\.", n))}
    count = max(layer.values(), default=0) + 1
    found: dict[str, int] = {}
    before = True
    for name in names:
        before = before and name not in layer
        if name in layer:
            found[name] = len(GROUPS) * layer[name] // count
        else:
            found[name] = 0 if before and not re.search(r"final|ln_f|lm_head", name) else 2
    return found
