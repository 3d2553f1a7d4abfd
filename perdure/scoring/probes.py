"""Probes: new classifiers on features of the body as it is, which say what it still knows.

What a method's own heads answer is "observed"; what a probe, fitted afresh on features of training
rows, answers is "probed". A high probe beside a low observed score says that the features still
tell the classes apart and the heads no longer do.

    linear              w·f, no bias                          both by Adam, 1e-3, 20 epochs of
    cosine              cos(w, f), no scale                   cross-entropy, in chunks of about 128
    prototype           f·m, m the mean of the class's raw features
    cosine_prototype    cos(f, m)

Source: SEQ* (arXiv 2312.07887) and the code released with it, whose batches are cut as here.
Departs from it: fewer than 128 rows make one batch; features are read with dropout off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PROBES = ("linear", "cosine", "prototype", "cosine_prototype")
EPOCHS, RATE, CHUNK = 20, 1e-3, 128


def fit(name: str, features: Tensor, labels: Tensor, classes: int, seed: int = 0) -> Tensor:
    """Fit a probe.

    Args:
        name: one of `PROBES`.
        features: (rows, width) float32; labels: (rows,), from 0 to `classes` - 1.
        seed: of the first weights and the order of rows; prototypes draw nothing.

    Returns: a vector for each class, (classes, width); zero for a prototype without a row.
    """
    if name in ("prototype", "cosine_prototype"):
        return means(features, labels, classes)
    return _trained(features, labels, classes, name == "cosine", seed)


def logits(name: str, vectors: Tensor, features: Tensor) -> Tensor:
    """What a fitted probe says of features (rows, width): (rows, classes)."""
    if name in ("cosine", "cosine_prototype"):
        return F.normalize(features, dim=-1) @ F.normalize(vectors, dim=-1).T
    return features @ vectors.T


def means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean feature of each class over its rows, (classes, width)."""
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, features)
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return sums / counts[:, None]


def chunks(order: Tensor) -> Sequence[Tensor]:
    """Cut rows into batches of at least 128, as even as they go; fewer rows are one batch."""
    return order.chunk(max(1, len(order) // CHUNK))


def _trained(features: Tensor, labels: Tensor, classes: int, cosine: bool, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    width = features.shape[1]
    reach = 1 / math.sqrt(width)  # as torch.nn.Linear draws its weights
    weight = torch.empty(classes, width).uniform_(-reach, reach, generator=draw)
    weight.requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=RATE, fused=True)
    inputs = F.normalize(features, dim=-1) if cosine else features
    with torch.enable_grad():
        for _ in range(EPOCHS):
            for rows in chunks(torch.randperm(len(features), generator=draw)):
                vectors = F.normalize(weight, dim=-1) if cosine else weight
                loss = F.cross_entropy(inputs[rows] @ vectors.T, labels[rows])
                (weight.grad,) = torch.autograd.grad(loss, weight)
                optimizer.step()
    return weight.detach()
