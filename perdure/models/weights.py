"""Reading and writing parameters, also when they are sharded over processes (DTensors)."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_NO_STATE = {
    "architectures", "dtype", "id2label", "label2id", "name_or_path", "problem_type",
    "quantization_config", "return_dict", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Keys of a configuration that change no hidden state, besides tokens' ids and what is returned."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that get updates, by name; a tied one appears once."""
    reshard(model)
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters live on several processes (FSDP2, DeepSpeed ZeRO-3)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def reshard(model: nn.Module) -> None:
    """Give up gathered copies of sharded parameters.

    After a forward without a backward, FSDP2 leaves the root's parameters gathered: plain tensors,
    which training would go on with, silently, after the sharded ones were written.
    """
    for module in model.modules():
        if (give_up := getattr(module, "reshard", None)) is not None:
            give_up()


def full(tensor: Tensor) -> Tensor:
    """The whole tensor; a collective call where it is sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard, which shares its memory; of a plain tensor the tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fingerprint(model: nn.Module, frozen_only: bool = False) -> str:
    """A hash of a model: of each weight and saved buffer its shape, figures in fp64, some values.

    The figures (see `_figures`) are rounded, as processes and devices add in another order. What
    the configuration says of the computation (activation, positions, epsilons) goes in too.

    Args: frozen_only: leave out parameters that are trained.
    """
    saved = model.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in saved]
    every = [*model.named_parameters(), *buffers]
    kept = ((name, w) for name, w in every if not (frozen_only and w.requires_grad))
    return hash_of(kept, _settings(model))


@torch.no_grad()
def hash_of(weights: Iterable[tuple[str, Tensor]], settings: str = "") -> str:
    """A hash of tensors by name, as `fingerprint` makes it of a model's."""
    digest = hashlib.sha256(settings.encode())
    for name, weight in weights:
        whole = full(weight.detach())
        figures = " ".join(_figures(whole))
        few = whole.flatten()[:: max(1, whole.numel() // 1024)]
        # A copy: numpy would keep the storage of a gathered parameter from being freed.
        some = few.to("cpu", torch.float64, copy=True).numpy().tobytes()
        digest.update(f"{name} {tuple(whole.shape)} {figures}\n".encode() + some)
    return digest.hexdigest()[:16]


def _figures(weight: Tensor) -> list[str]:
    """Sum and norm to 7 digits; and how sums of rows and of columns lie along a fixed wave, as a
    share of the norm, which tells weights that hold the same values in other places."""
    matrix = weight.reshape(len(weight) if weight.dim() else 1, -1)
    matrix = matrix if matrix.is_floating_point() else matrix.float()
    norm = torch.linalg.vector_norm(matrix, dtype=torch.float64).item()
    found = [f"{matrix.sum(dtype=torch.float64).item():.6e}", f"{norm:.6e}"]
    for side in (0, 1):
        sums = matrix.sum(side, dtype=torch.float64)
        wave = torch.arange(1, len(sums) + 1, dtype=torch.float64, device=sums.device).sin()
        found.append(f"{(sums @ wave).item() / (norm or 1.0):.9f}")
    return found


def _settings(model: nn.Module) -> str:
    """A model's configuration, without what a trainer sets and what changes no state."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return ""
    kept = {
        key: value
        for key, value in config.to_dict().items()
        if not (key in _NO_STATE or key.startswith(("_", "output_")) or key.endswith("_token_id"))
    }
    return json.dumps(kept, sort_keys=True, default=str)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every sharded tensor gathered; a tied one appears once.

    A collective call: all processes make it.
    """
    reshard(model)
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        return _whole_under_zero3(model)
    names = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    return {n: full(p.detach()) for n, p in model.state_dict().items() if n in names}


def _whole_under_zero3(model: nn.Module) -> dict[str, Tensor]:
    """DeepSpeed ZeRO-3 leaves empty parameters behind, which it gathers one at a time."""
    from deepspeed.zero import GatheredParameters  # type: ignore[import-not-found,unused-ignore]

    found = {n: b.detach().clone() for n, b in model.named_buffers()}
    for n, p in model.named_parameters():
        with GatheredParameters([p]):
            found[n] = p.detach().cpu().clone()
    return found


def empty_like(model: nn.Module) -> nn.Module:
    """A model of the same class without weights, to save given ones under its name.

    An adapter's model is given back as it is: peft writes the tensors that it is handed.
    """
    if hasattr(model, "peft_config"):
        return model
    config: Any = copy.deepcopy(model.config)
    config.distributed_config = None
    with torch.device("meta"):
        return type(model)(config)


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write `weights` (whole or sharded alike) into the parameters; return the old values."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    reshard(model)
    params = dict(model.named_parameters())
    if unknown := [n for n in weights if n not in params]:
        raise KeyError(f"no parameter is called {unknown[0]!r}")
    old = {n: params[n].detach().clone() for n in weights}
    for n, value in weights.items():
        target = params[n]
        if isinstance(target, DTensor) and not isinstance(value, DTensor):
            value = distribute_tensor(
                value.to(target.device), target.device_mesh, target.placements
            )
        target.copy_(value)
    return old


@contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Have `weights` in the model inside the block."""
    old = put(model, weights) if weights else {}
    try:
        yield
    finally:
        if old:
            put(model, old)


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Switch adapters off. Leaving peft's own context makes frozen adapters trainable again."""
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for n, p in model.named_parameters():
            p.requires_grad_(flags[n])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has its own training flag again.

    FSDP2 leaves the root module's parameters gathered after a forward pass without a backward
    pass, and whoever wrote weights then would write to a copy: they are sharded again.
    """
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
            if reshard := getattr(module, "reshard", None):
                reshard()
