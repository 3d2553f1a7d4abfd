"""Saved weights by parameter name, to go on from a checkpoint with the model that is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor


def load_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """Read what `save_model` wrote, under the names of the model's own parameters.

    A tied parameter is stored once, and an adapter's tensors lack the adapter's name, as peft
    stores them.

    Raises:
        KeyError: the folder holds a tensor that the model has no parameter for.
    """
    from safetensors.torch import load_file

    adapter = folder / "adapter_model.safetensors"
    index = folder / "model.safetensors.index.json"
    if adapter.exists():
        files = [adapter]
    elif index.exists():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    else:
        files = [folder / "model.safetensors"]
    saved = {name: value for file in files for name, value in load_file(file).items()}
    own = {_stored_name(model, name): name for name, _ in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers()}
    return {own[name]: value for name, value in saved.items() if name not in buffers}


def _stored_name(model: Any, name: str) -> str:
    for adapter in getattr(model, "peft_config", {}):
        name = name.replace(f".{adapter}.", ".")
    return name
