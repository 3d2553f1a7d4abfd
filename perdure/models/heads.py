"""The heads of a classifier: one a task, all logits side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Cosine(nn.Module):
    """Logits scale · cos(w, f): neither a class's nor a text's length decides, and no bias.

    Source: SEQ* (arXiv 2312.07887); scale 1 is the paper's. A learned one is each head's own, so
    that the logits of a head that stays do not move with another's.
    """

    def __init__(
        self, width: int, classes: int, scale: float = 1.0, learn_scale: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(width, classes, bias=False).weight.detach())
        found = torch.tensor(float(scale))
        self.scale: Any = nn.Parameter(found) if learn_scale else float(scale)

    def forward(self, features: Tensor) -> Tensor:
        return cosines(features, self.weight) * self.scale


def cosines(features: Tensor, weights: Tensor) -> Tensor:
    """cos(w, f), (rows, classes), of features (rows, width) and weights (classes, width)."""
    return F.linear(F.normalize(features.float(), dim=-1), F.normalize(weights, dim=-1))


class NoHead(nn.Module):
    """In the place of a task that has no class of its own: head K is always that of task K."""

    weight = ()


class Heads(nn.Module):
    """One head a task; `forward` gives all logits side by side, (rows, classes).

    Args:
        width: features' size.
        form: "linear" or "cosine".
        scale: factor of a cosine's logits; where `learn_scale` says so each head's begins with it.
        preallocate: classes that the softmax has from the first task on. Those not learned yet
            stand behind the learned ones and are taken as negatives; a new task takes its share.
    """

    def __init__(
        self,
        width: int,
        form: str = "cosine",
        scale: float = 1.0,
        learn_scale: bool = False,
        preallocate: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.form, self.scale, self.learn_scale = width, form, scale, learn_scale
        self.parts = nn.ModuleList()
        self.reserve: nn.Module | None = self._head(preallocate) if preallocate else None

    def _head(self, classes: int) -> nn.Module:
        if self.form == "linear":  # logits w·f + b
            return nn.Linear(self.width, classes)
        return Cosine(self.width, classes, self.scale, self.learn_scale)

    @property
    def sizes(self) -> list[int]:
        """Classes of each task's head."""
        return [len(part.weight) for part in self.parts]  # type: ignore[arg-type]

    @property
    def classes(self) -> int:
        """Classes learned so far."""
        return sum(self.sizes)

    @property
    def reserved(self) -> int:
        """Columns behind the learned classes, kept for classes to come."""
        return 0 if self.reserve is None else len(self.reserve.weight)  # type: ignore[arg-type]

    def allocate(self, classes: int) -> None:
        """Have so many classes in the softmax before any is learned."""
        self.reserve = self._head(classes)

    def grow(self, classes: int, at: int = 0) -> None:
        """Add a head of so many classes, from the reserve as far as that goes.

        Args: at: the task's number; places before it that no task has filled have no head.
        """
        if not classes:
            return
        while len(self.parts) < at:
            self.parts.append(NoHead())
        new = self._head(classes)
        taken = min(classes, self.reserved)
        if taken and self.reserve is not None:
            left = self.reserved - taken
            rest = self._head(left) if left else None
            with torch.no_grad():
                for name, value in self.reserve.named_parameters():
                    cut = value.ndim > 0  # else it is a scale, with which both go on
                    own = getattr(new, name)
                    (own[:taken] if cut else own).copy_(value[:taken] if cut else value)
                    if rest is not None:
                        getattr(rest, name).copy_(value[taken:] if cut else value)
            self.reserve = rest
        self.parts.append(new)

    @torch.no_grad()
    def place(self, means: Tensor, chosen: Tensor) -> None:
        """Set the weights of `chosen` classes, (classes,) bool, to theirs of `means`, (classes,
        width); a bias becomes 0."""
        start = 0
        for part in self._filled():
            size, weight = len(part.weight), part.weight
            own = chosen[start : start + size].to(weight.device)
            weight[own] = means[start : start + size].to(weight)[own]
            if getattr(part, "bias", None) is not None:
                part.bias[own] = 0.0
            start += size

    def _filled(self) -> list[Any]:
        """The heads that have a class."""
        return [part for part in self.parts if len(part.weight)]  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """In one product for all heads: one for each takes most of a step on features. In fp32
        also under autocast, where so many classes tie that the older ones win."""
        with torch.autocast(features.device.type, enabled=False):
            return self._logits(features.float())

    def _logits(self, features: Tensor) -> Tensor:
        every = self._filled() + ([] if self.reserve is None else [self.reserve])
        if not every:
            return features[..., :0]
        weights = torch.cat([part.weight for part in every])
        if self.form == "linear":
            return F.linear(features, weights.float(), torch.cat([p.bias for p in every]).float())
        scale: Any = self.scale
        if self.learn_scale:
            scale = torch.cat([part.scale.expand(len(part.weight)) for part in every])
        return cosines(features, weights) * scale


def class_means(
    features: Tensor, labels: Tensor, classes: int, normalized: bool
) -> tuple[Tensor, Tensor]:
    """The mean feature of each class, (classes, width), and its rows, (classes,).

    Args:
        features: (rows, width); labels: (rows,).
        normalized: each feature has the length 1 first, so that long ones count no more.
    """
    vectors = F.normalize(features, dim=-1) if normalized else features
    counts = torch.bincount(labels, minlength=classes)
    sums = vectors.new_zeros(classes, vectors.shape[1]).index_add(0, labels, vectors)
    return sums / counts.clamp(min=1).unsqueeze(1), counts
