"""State of methods on disk: JSON for structure, safetensors for tensors, no pickle.

Nested dicts, lists, strings, numbers, booleans, None and tensors are kept. A sharded tensor is
gathered when written; when read it is cut again like the parameter it is named after.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import TrainingError
from perdure.models.weights import full, put
from perdure.protocol.method import Method, MethodConfig, name_of

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


_WHO = "__method__"
"""Key in a method's state on disk under which its name and options stand."""


def save_methods(stem: Path, methods: Sequence[Method], write: bool = True) -> None:
    """Write the state of `methods`, with their names and options, as `stem.json` and
    `stem.safetensors`.

    Sharded tensors are gathered first, so all processes must call it.
    """
    dump_state(stem, [{**m.state_dict(), _WHO: _about(m)} for m in methods], write)


def load_methods(
    stem: Path, methods: Sequence[Method], model: nn.Module, compare: bool = False
) -> None:
    """Restore what `save_methods` wrote; tensors go to the device of the model.

    Args: compare: refuse what was written by methods of other names or options, too.

    Raises:
        TrainingError: the state is of another number of methods, or of others.
    """
    folder, names = stem.parent, ", ".join(name_of(m) for m in methods)
    if not stem.with_suffix(".json").exists():
        if compare or any(m.saved for m in methods):
            raise TrainingError(
                f"{folder}: was written without methods, and there is no {stem.name}.json in it; "
                f"attached now: {names}",
                "resume from a checkpoint that was written with the methods attached",
            )
        return
    states = load_state(stem, model)
    whose = [state.pop(_WHO, None) for state in states]  # None: of an older Perdure
    found = list(_differences(whose, methods)) if compare or len(states) != len(methods) else ()
    if found:
        raise TrainingError(
            f"{folder}: was written by other methods: {'; '.join(found)}",
            (
                "attach the methods that it was written with, with the same options",
                "or train from the beginning, without resume_from_checkpoint",
            ),
        )
    for method, state in zip(methods, states, strict=True):
        method.load_state_dict(state)


def _about(method: Method) -> dict[str, Any]:
    config: Any = method.config
    options: dict[str, Any] = {}
    if isinstance(config, MethodConfig):
        options = config.model_dump(mode="json", fallback=str)
    return {"name": name_of(method), "class": type(method).__name__, "options": options}


def _differences(
    whose: Sequence[Mapping[str, Any] | None], methods: Sequence[Method]
) -> Iterator[str]:
    """What differs between the methods that wrote a checkpoint and those that read it."""
    if len(whose) != len(methods):
        attached = [_about(m) for m in methods]
        yield f"it holds {_listed(whose)}; attached now: {_listed(attached)}"
        return
    for then, method in zip(whose, methods, strict=True):
        if then is None:
            continue
        now = _about(method)
        if (then["name"], then["class"]) != (now["name"], now["class"]):
            same = then["name"] == now["name"]
            old, new = (x["class"] if same else x["name"] for x in (then, now))
            yield f"{old}, where {new} is attached now"
            continue
        fields = type(method.config).model_fields if now["options"] else {}
        for key in sorted(then["options"].keys() | now["options"].keys()):
            # An option that a later Perdure has was at its default.
            default = fields[key].get_default(call_default_factory=True) if key in fields else None
            old, new = (
                json.dumps(x["options"].get(key, default), default=str) for x in (then, now)
            )
            if old != new:
                yield f"{now['name']}: {key} was {old}, is {new} now"


def _listed(methods: Sequence[Mapping[str, Any] | None]) -> str:
    names = [m["name"] if m else "a method of unknown name" for m in methods]
    return ", ".join(names) if names else "none"


def give_weights(model: nn.Module, weights: Mapping[str, Tensor] | None) -> None:
    """Put the weights that `end_task` returned into the model for good."""
    if weights:
        put(model, weights)
