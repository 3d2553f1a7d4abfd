"""A classifier's files: body and heads apart, so that what no longer changes is stored once.

body.safetensors     the body's weights; of an adapter the adapter's alone
adapter-K.safetensors   where tasks have adapters of their own, that of task K
heads.safetensors    every head
classes.json         names of the classes by column, the task of each, pooling and head
config.json, tokenizer files, perdure_base.json   of the body
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from perdure.errors import RunError
from perdure.models.adapters import BASE_FILE
from perdure.models.task_adapters import TaskAdapters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.models.classifier import Classifier
    from perdure.recipe.schema import ModelConfig

CLASSES = "classes.json"
FILES = ("body.safetensors", "heads.safetensors")


def save_classifier(
    model: Classifier, tokenizer: Any, folder: Path, base: ModelConfig, classes: Sequence[str]
) -> None:
    """Write a classifier to `folder`; see the module.

    Args: classes: names by column, of which the first ones are learned.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    whole: dict[str, dict[str, Any]] = {file: {} for file in FILES}
    whole |= {adapter_file(task): {} for task in model.adapters}
    for name, weight in model.named_parameters():
        file = _file_of(name, model)
        if file != FILES[0] or weight.requires_grad or not adapted(model):
            whole[file][name] = weight.detach().cpu().contiguous()
    for file, weights in whole.items():
        save_file(weights, folder / file, metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said: dict[str, Any] = {
        "classes": list(classes[: model.heads.classes]),
        "tasks": model.owners,
        "pooling": model.pooling,
        "within_task": model.within,
    }
    if model.adapters:
        settings = {str(task): asdict(model.settings_of(task)) for task in model.adapters}
        said["adapters"] = settings
    (folder / CLASSES).write_text(json.dumps(said, ensure_ascii=False, indent=1) + "\n", "utf-8")
    text = json.dumps(base.model_dump(mode="json"), indent=1) + "\n"
    (folder / BASE_FILE).write_text(text, encoding="utf-8")


def _file_of(name: str, model: Classifier) -> str:
    """The file of the parameter of this name."""
    if name.startswith("heads."):
        return FILES[1]
    found = [task for task, adapter in model.adapters.items() if f".{adapter}." in name]
    return adapter_file(found[0]) if found else FILES[0]


def adapter_file(task: int) -> str:
    """The file of the adapter that task number `task` has for itself."""
    return f"adapter-{task + 1}.safetensors"


def adapted(model: Any) -> bool:
    """Whether the body has an adapter: then its own weights are the base's."""
    return hasattr(model.body, "peft_config")


def load_classifier_weights(model: Any, folder: Path) -> dict[str, Tensor]:
    """Read what `save_classifier` wrote. Adapters of tasks that the model has not yet are added:
    which head reads which adapter's features is part of the checkpoint.

    Raises:
        RunError: a tensor that the model has no place for, or of another shape.
    """
    import torch
    from safetensors.torch import load_file

    whole = json.loads((folder / CLASSES).read_text("utf-8"))
    # It answers by the features that it was trained on, whatever `auto` stands for today.
    model.pooling, said = whole["pooling"], whole.get("adapters", {})
    with torch.random.fork_rng(devices=[]):  # their first values are written over
        for task, settings in said.items():
            if int(task) not in model.adapters:
                model.add_adapter(int(task), TaskAdapters(**settings))
    own = dict(model.named_parameters())
    files = (*FILES, *(adapter_file(int(task)) for task in said))
    found = {n: w for file in files for n, w in load_file(folder / file).items()}
    if (shared := found.pop("heads.scale", None)) is not None:  # of an older Perdure
        found |= {name: shared for name in own if re.fullmatch(r"heads\..*\.scale", name)}
    for name, weight in found.items():
        there = own.get(name)
        if there is None or there.shape != weight.shape:
            has = "no place" if there is None else f"a place of {list(there.shape)}"
            raise RunError(
                f"{folder}: the model has {has} for the tensor {name}, {list(weight.shape)}",
                "it was saved by another model, or after other classes were learned",
            )
    return found
