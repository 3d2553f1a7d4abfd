"""Which files a base model was read from, so that a run that goes on reads the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perdure.errors import ModelError
from perdure.models.locate import locate
from perdure.seals import sha256

if TYPE_CHECKING:
    from perdure.recipe.schema import ModelConfig

ENDINGS = (".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".jinja", ".py")


def files_of(model: ModelConfig) -> dict[str, str]:
    """File name -> sha256 of all that a base model is read from: weights, tokenizer, template.

    Reads every byte, about a second for each GB. Empty where the model is no place of files.
    """
    return base_files(model) | template_files(model)


def base_files(model: ModelConfig) -> dict[str, str]:
    """As `files_of`, of the base model's own files alone."""
    return {f"base model, {path.name}": sha256(path) for path in _weights(model)}


def template_files(model: ModelConfig) -> dict[str, str]:
    """As `files_of`, of the recipe's chat template alone."""
    template = model.chat_template
    if template not in ("auto", "none") and (file := Path(template).expanduser()).is_file():
        return {f"chat template, {file.name}": sha256(file)}
    return {}


def folder_of(model: ModelConfig) -> Path | None:
    """The folder, or the GGUF file, that a base model is read from; None where it is not known.

    Of a hub model it is that in the hub's cache.
    """
    try:
        place = locate(model.path)
    except ModelError:
        return None
    if place.gguf:
        return Path(place.name) / place.gguf
    return Path(place.name) if place.local else _snapshot(place.name, model.revision)


def _weights(model: ModelConfig) -> list[Path]:
    place = folder_of(model)
    if place is None or place.is_file():
        return [] if place is None else [place]
    return sorted(p for p in place.iterdir() if p.suffix in ENDINGS and p.is_file())


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache that a model was read from; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None
