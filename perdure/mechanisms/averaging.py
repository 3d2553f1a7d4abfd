"""A running average of the weights that are trained: all tensors at once, no wait for the device.

`Average` holds the average in fp32, whatever the weights are kept in, and moves it. Which weight
the old average gets is its method's: a number for all tensors, or one for each. Sharded parameters
are averaged shard by shard; norms are those of the whole tensors, equal on all processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure.models.weights import full, local, trainable

if TYPE_CHECKING:
    from perdure.protocol.context import Context

TOGETHER = 2**26
"""Elements that are worked on at once: what is held for the length of an operation is as large."""
BINS, SPAN = 2049, 16.0
"""Weights are counted by log(w / (1 - w)) from -SPAN to SPAN: 1.6 % of w / (1 - w) apart."""
STATE = ("weights", "gradients", "counts", "outside", "phase")
SAMPLED = 512
"""Elements of a tensor that say how far it moved, at least; of large ones a 64th."""


class Average:
    """The average of the parameters of one phase, from its first step on.

    Attributes:
        weights: the average by name, fp32, sharded like the parameter; {}: no step was made.
        gradients: of the step before, by name, fp32; {}: not kept.
        counts: (BINS,) how often the old average had such a weight, over steps and tensors.
        outside: () int64, how many of these were out of range.
        phase: of which phase.
    """

    spreads = False
    """Move as on a GPU also where there is none."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.counts: Tensor | None = None
        self.outside: Tensor | None = None
        self.phase = ""
        self._params: dict[str, nn.Parameter] = {}
        self._sizes: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        for name, value in state.items():
            setattr(self, name, value)

    def of(self, phase: str) -> bool:
        """Whether there is an average of this phase."""
        return bool(self.weights) and phase == self.phase

    def follows(self, model: nn.Module, phase: str, gradients: bool = False) -> bool:
        """Whether there is an average to move. At a phase's first step there is none: it is then
        the weights as they are.

        Args: gradients: keep `p.grad` for `norms` of the next step.
        """
        known = self.of(phase)
        if not known or not self._params:
            self._params = trainable(model)
        if known:
            return True
        self.load_state_dict({"phase": phase})
        self._params = trainable(model)
        for name, p in self._params.items():
            self.weights[name] = p.detach().to(torch.float32, copy=True)
            if gradients:
                self.gradients[name] = _gradient(p).to(torch.float32, copy=True)
        return False

    def norms(self) -> Tensor:
        """L1 norms of each tensor, (3, tensors) fp32: of what lies between it and its average, of
        its gradient, and of the gradient's change since the last call, which it takes over.

        A parameter without a gradient has nan: nothing can be said of it.
        """
        found: list[Tensor] = []
        for names in self._groups():
            now = [_gradient(self._params[n]) for n in names]
            before = [local(self.gradients[n]) for n in names]
            apart = torch._foreach_sub(self._floats(names), self._averages(names))
            torch._foreach_sub_(before, now)  # no copy: it is overwritten in a moment
            each = [_l1(list(apart)), _l1(now), _l1(before)]
            torch._foreach_copy_(before, now)
            found.append(torch.stack(each))
        return self._over_shards(torch.cat(found, 1))

    def slope(self, params: Mapping[str, nn.Parameter]) -> Tensor:
        """Gradient times (average - weights), summed over all tensors: how the loss changes on the
        way from the weights `params` to the average, () fp32."""
        self._params = {name: params[name] for name in self.weights}
        found = []
        for names in self._groups():
            way = torch._foreach_sub(self._averages(names), self._floats(names))
            pairs = zip(names, way, strict=True)
            found += [
                torch.zeros((), device=w.device)
                if self._params[n].grad is None
                else (_gradient(self._params[n]).float() * w).sum()
                for n, w in pairs
            ]
        return self._over_shards(torch.stack(found)[None]).sum()

    def move(self, new: Tensor | float) -> None:
        """average + new * (weights - average).

        Args: new: the weight on the new weights, for all tensors or of each, (tensors,); in [0, 1].
        """
        start = 0
        for names in self._groups():
            old, weights = self._averages(names), self._floats(names)
            if isinstance(new, Tensor):
                each = new.expand(len(self._params))[start : start + len(names)]
                torch._foreach_lerp_(old, weights, self._spread(each, old, names[0]))
            else:
                torch._foreach_lerp_(old, weights, new)
            start += len(names)

    def _spread(self, new: Tensor, like: Sequence[Tensor], first: str) -> list[Tensor]:
        """A weight for each tensor. On a GPU as large as the tensor, so that one kernel moves all;
        with one number for each there would be a kernel a tensor."""
        if not (self.spreads or new.is_cuda):
            return list(new.unbind())
        sizes = [tensor.numel() for tensor in like]
        if first not in self._sizes:  # a copy to the device is waited for: once
            self._sizes[first] = torch.tensor(sizes, device=new.device)
        whole = torch.repeat_interleave(new, self._sizes[first], output_size=sum(sizes))
        pairs = zip(whole.split(sizes), like, strict=True)
        return [part.view(tensor.shape) for part, tensor in pairs]

    def used(self, ctx: Context, new: Tensor, out: Tensor | None = None) -> None:
        """`move` by weights that were computed, note them, and log their means.

        Args: out: of each weight, whether it was out of range before it was made to fit.
        """
        self.move(new)
        self.count(1 - new, out)
        ctx.log("averaging_weight", (1 - new).mean())
        if out is not None:
            ctx.log("averaging_outside", out.float().mean())

    def count(self, old: Tensor, out: Tensor | None = None) -> None:
        """Note the weight on the old average, () or (tensors,), and which were out of range."""
        if self.counts is None or self.outside is None:
            self.counts = torch.zeros(BINS, dtype=torch.int64)
            self.outside = torch.zeros((), dtype=torch.int64)
        # Restored from a checkpoint, they are not on the device.
        self.counts, self.outside = self.counts.to(old.device), self.outside.to(old.device)
        at = ((old.double().logit() / SPAN + 1) / 2 * (BINS - 1)).round().clamp(0, BINS - 1)
        at = at.reshape(-1).to(torch.int64)
        self.counts.index_add_(0, at, torch.ones_like(at))
        if out is not None:
            self.outside += out.sum()

    def facts(self, moved: Mapping[str, float], constant: float | None = None) -> dict[str, float]:
        """What is recorded at a task's end: how often the weight was out of range, its deciles, and
        `moved`, under names that reports read.

        Args: constant: the weight on the old average, where it was the same at all steps.
        """
        found = {f"averaging_{name}": value for name, value in moved.items()}
        if self.counts is not None and self.outside is not None:
            total = int(self.counts.sum())
            found["averaging_out_share"] = int(self.outside) / total
            places = deciles(self.counts)
        elif constant is not None:
            found["averaging_out_share"], places = 0.0, [constant] * 9
        else:
            return found
        return found | {f"averaging_decile_{i}": value for i, value in enumerate(places, 1)}

    def _groups(self) -> Iterator[list[str]]:
        """Names in their order, as many tensors together as `TOGETHER` allows."""
        names: list[str] = []
        size = 0
        for name, p in self._params.items():
            if names and size + p.numel() > TOGETHER:
                yield names
                names, size = [], 0
            names.append(name)
            size += p.numel()
        if names:
            yield names

    def _averages(self, names: Sequence[str]) -> list[Tensor]:
        return [local(self.weights[n]) for n in names]

    def _floats(self, names: Sequence[str]) -> list[Tensor]:
        return [local(self._params[n].detach()).float() for n in names]

    def _over_shards(self, sums: Tensor) -> Tensor:
        """Sums over each process's shards, (k, tensors), as sums over whole tensors."""
        from torch.distributed.tensor import DTensor, Partial, Replicate

        layouts: dict[Any, list[int]] = {}
        for i, p in enumerate(self._params.values()):
            if isinstance(p, DTensor):
                layouts.setdefault((p.device_mesh, p.placements), []).append(i)
        for (mesh, placements), at in layouts.items():
            how = [Partial() if one.is_shard() else Replicate() for one in placements]
            # A list of places is copied to the device, which is waited for: most often it is all.
            index: Any = slice(None) if len(at) == sums.shape[1] else at
            whole = DTensor.from_local(sums[:, index], mesh, how, run_check=False)
            sums[:, index] = whole.full_tensor()
        return sums


def _gradient(p: nn.Parameter) -> Tensor:
    """This process's shard of `p.grad`; nan where the parameter took no part in the step."""
    found = torch.full_like(p, math.nan) if p.grad is None else p.grad
    return local(found.detach())


def _l1(tensors: list[Tensor]) -> Tensor:
    return torch.stack(list(torch._foreach_norm(tensors, 1, dtype=torch.float32)))


def deciles(counts: Tensor) -> list[float]:
    """The nine deciles of what `Average.count` noted: the values below which 10 %, 20 %, ... lie.

    The lowest and the highest bin are 0 and 1 themselves.
    """
    total = counts.sum()
    if not int(total):
        return [math.nan] * 9
    # In whole numbers: a tenth that is reached exactly is reached.
    tenths = torch.arange(1, 10, device=counts.device) * total
    at = torch.searchsorted(10 * counts.cumsum(0), tenths)
    found = ((at.double() / (BINS - 1) * 2 - 1) * SPAN).sigmoid()
    found = torch.where(at == 0, 0.0, torch.where(at == BINS - 1, 1.0, found))
    return [float(x) for x in found]


def sample(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Elements of each tensor, fp32, the same ones at each call: what `distance` needs.

    All of a small tensor, else `SAMPLED` or a 64th, drawn by the tensor's size. A collective call
    where tensors are sharded.
    """
    found = {}
    for name, weight in weights.items():
        flat = full(weight.detach()).flatten()
        size = max(SAMPLED, flat.numel() // 64)
        if flat.numel() > size:
            draws = torch.Generator().manual_seed(flat.numel())
            flat = flat[torch.randint(flat.numel(), (size,), generator=draws).to(flat.device)]
        found[name] = flat.to(torch.float32, copy=True)
    return found


def distance(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> float:
    """L2 distance of two sets of tensors, from the `sample` of each; of names that both have.

    Exact where all tensors are small. Args: sizes: elements of each whole tensor.
    """
    parts = [
        (end[n] - w).double().square().sum() * (sizes[n] / max(1, w.numel()))
        for n, w in start.items()
        if n in end and end[n].shape == w.shape
    ]
    return math.sqrt(float(torch.stack(parts).sum())) if parts else 0.0
