"""`codebook.json` as somebody may have edited it: its JSON, and mistakes in it as errors.

What a codebook is says `perdure.models.codebook`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError, UsageError, brief
from perdure.failures import utf8_text
from perdure.recipe.mistakes import Mistake

REMEDIES = {
    "format": "write 1, or read it with the Perdure that wrote it",
    "threshold": "write that of a copy, or one from 0 to 1: by words 0.9",
    "accept": "write that of a copy, or one from 0 to 1: by words that of threshold",
}
"""Of keys at which a mistake has none of its own."""


def as_json(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The object in a file, and keys that stand there twice.

    Raises:
        UsageError: it cannot be read, or is no JSON or no object.
    """
    text = utf8_text(file, "restore it from a copy")
    twice: list[str] = []
    try:
        data = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, twice))
    except ValueError as error:
        where = f"{file}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else file
        said = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UsageError(
            f"{where}: is not valid JSON: {said}", "correct it, or restore it from a copy"
        ) from error
    except RecursionError as error:
        raise UsageError(f"{file}: is nested too deep", "restore it from a copy") from error
    if not isinstance(data, dict):
        raise UsageError(f"{file}: is no codebook: no object", "restore it from a copy")
    return data, twice


def _once(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            twice.append(key)
        found[key] = value
    return found


def told(file: Path, found: Sequence[Mistake], data: Any) -> list[PerdureError]:
    """Mistakes as errors, but for what is said of a list only because of its entries' mistakes."""
    inner = {each.key[:depth] for each in found for depth in range(1, len(each.key))}
    return [_told(file, each, data) for each in found if each.key not in inner]


def _told(file: Path, mistake: Mistake, data: Any) -> PerdureError:
    """A mistake as an error, with the group's name where its key has only its number."""
    key = ".".join(map(str, mistake.key)) or "the file"
    if len(mistake.key) > 2 and mistake.key[0] == "groups":
        with suppress(LookupError, TypeError, AttributeError):
            if name := data["groups"][mistake.key[1]]["name"].strip():
                key += f" (group {brief(name)})"
    remedy = mistake.remedy or REMEDIES.get(str(mistake.key[-1]) if mistake.key else "", "")
    if not remedy:
        listed = " is none of " in mistake.what
        remedy = "write one of them" if listed else "correct it, or restore it from a copy"
    return PerdureError(f"{file}: {key}: {mistake.what}", remedy, source=str(file))
