"""State of methods on disk: JSON for structure, safetensors for tensors, no pickle.

Nested dicts, lists, strings, numbers, booleans, None and tensors are kept. A sharded tensor is
gathered when written; when read it is cut again like the parameter it is named after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import TrainingError
from perdure.models.weights import full, put
from perdure.protocol.method import Method

_MARK = "__tensor__"


def dump_state(stem: Path, state: Any, write: bool = True) -> None:
    """Write `state` as `stem.json` + `stem.safetensors`. All processes call it, one writes.

    Raises:
        TypeError: a value that is neither JSON nor a tensor, named by its place.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _strip(state, "state", tensors)
    if not write:
        return
    stem.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")


def load_state(stem: Path, model: nn.Module | None = None) -> Any:
    """Read what `dump_state` wrote; tensors named like a parameter go to its device and mesh."""
    from safetensors.torch import load_file

    tree = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    params = dict(model.named_parameters()) if model is not None else {}
    return _fill(tree, load_file(stem.with_suffix(".safetensors")), params)


def _strip(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = full(value.detach()).contiguous().cpu().clone()
        return {_MARK: place}
    if isinstance(value, dict):
        return {str(k): _strip(v, f"{place}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strip(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{place}: a method's state cannot hold a {type(value).__name__}")


def _fill(tree: Any, tensors: dict[str, Tensor], params: dict[str, nn.Parameter]) -> Any:
    if isinstance(tree, list):
        return [_fill(v, tensors, params) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {_MARK}:
        return _place(tensors[tree[_MARK]], params.get(tree[_MARK].rsplit("/", 1)[-1]))
    return {k: _fill(v, tensors, params) for k, v in tree.items()}


def _place(value: Tensor, like: nn.Parameter | None) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if like is None:
        return value
    value = value.to(like.device)
    if isinstance(like, DTensor) and like.shape == value.shape:
        return distribute_tensor(value, like.device_mesh, like.placements)
    return torch.as_tensor(value)


STATE = "perdure_methods"
"""Stem of the two files in a checkpoint that hold the methods' state."""


def save_methods(stem: Path, methods: Sequence[Method], write: bool = True) -> None:
    """Write the state of `methods` as `stem.json` and `stem.safetensors`.

    Sharded tensors are gathered first, so all processes must call it.
    """

    dump_state(stem, [m.state_dict() for m in methods], write)


def load_methods(stem: Path, methods: Sequence[Method], model: nn.Module) -> None:
    """Restore what `save_methods` wrote; tensors go to the device of the model.

    Raises:
        TrainingError: the state is of another number of methods.
    """

    if not stem.with_suffix(".json").exists():
        if any(m.saved for m in methods):
            raise TrainingError(
                f"{stem}.json: the methods' state is missing from this checkpoint",
                "resume from one that was written with the methods attached",
            )
        return
    states = load_state(stem, model)
    if len(states) != len(methods):
        raise TrainingError(f"{stem}.json: holds {len(states)} methods, the run has {len(methods)}")
    for method, state in zip(methods, states, strict=True):
        method.load_state_dict(state)


def give_weights(model: nn.Module, weights: Mapping[str, Tensor] | None) -> None:
    """Put the weights that `end_task` returned into the model for good."""
    if weights:
        put(model, weights)
