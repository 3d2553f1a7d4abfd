"""A classifier's files: body and heads apart, so that what no longer changes is stored once.

body.safetensors     the body's weights; of an adapter the adapter's alone
heads.safetensors    every head
classes.json         names of the classes by column, the task of each, pooling and head
config.json, tokenizer files, perdure_base.json   of the body
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from perdure.errors import RunError
from perdure.models.adapters import BASE_FILE

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
    for file, part in zip(FILES, ("body.", "heads."), strict=True):
        whole = {
            name: weight.detach().cpu().contiguous()
            for name, weight in model.named_parameters()
            if name.startswith(part) and (weight.requires_grad or not adapted(model))
        }
        save_file(whole, folder / file, metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said = {
        "classes": list(classes[: model.heads.classes]),
        "tasks": model.owners,
        "pooling": model.pooling,
        "within_task": model.within,
    }
    (folder / CLASSES).write_text(json.dumps(said, ensure_ascii=False, indent=1) + "\n", "utf-8")
    text = json.dumps(base.model_dump(mode="json"), indent=1) + "\n"
    (folder / BASE_FILE).write_text(text, encoding="utf-8")


def adapted(model: Any) -> bool:
    """Whether the body has an adapter: then its own weights are the base's."""
    return hasattr(model.body, "peft_config")


def load_classifier_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Read what `save_classifier` wrote.

    Raises:
        RunError: a tensor that the model has no place for, or of another shape.
    """
    from safetensors.torch import load_file

    own = dict(model.named_parameters())
    found = {n: w for file in FILES for n, w in load_file(folder / file).items()}
    for name, weight in found.items():
        there = own.get(name)
        if there is None or there.shape != weight.shape:
            has = "no place" if there is None else f"a place of {list(there.shape)}"
            raise RunError(
                f"{folder}: the model has {has} for the tensor {name}, {list(weight.shape)}",
                "it was saved by another model, or after other classes were learned",
            )
    return found
