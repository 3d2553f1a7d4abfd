"""Saved weights by parameter name, to go on from a checkpoint with the model that is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure.models.adapter_lists import DEFAULT, parameters_of


def load_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """Read what `save_model` wrote, under the names of the model's own parameters.

    A tied parameter is stored once. peft stores each adapter apart, the first one (`default`) in
    the folder and the others below it, without the adapter's name in the tensors' names.

    Raises:
        KeyError: the folder lacks a tensor that an adapter of the model has.
    """
    from safetensors.torch import load_file

    if adapters := getattr(model, "peft_config", None):
        return {n: w for name in adapters for n, w in _adapter(model, folder, name).items()}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    else:
        files = [folder / "model.safetensors"]
    saved = {name: value for file in files for name, value in load_file(file).items()}
    own = dict(model.named_parameters())
    if missing := own.keys() - saved.keys():
        # Some families (mixtures of experts) are stored under the names of their first release.
        loaded = type(model).from_pretrained(folder, dtype="auto")
        saved |= {n: p.detach() for n, p in loaded.named_parameters() if n in missing}
    return {name: value for name, value in saved.items() if name in own}


def _adapter(model: Any, folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    home = folder if name == DEFAULT else folder / name
    saved = load_file(home / "adapter_model.safetensors")
    return {n: saved[n.replace(f".{name}.", ".")] for n in parameters_of(model, name)}
