"""Sums by which a run notices that what it wrote was changed since.

A line of scores.jsonl and the whole of environment.json bear a sum of themselves (`check`).
Files that only grow (scores, facts and logged steps) are marked where a checkpoint is sealed and
where the run ends: their length and their sha256 up to there. What older runs wrote bears none,
and is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.errors import RunError

GROWING = {"scores": "scores.jsonl", "facts": "facts.jsonl", "log": "log.jsonl"}
"""What a mark is called, and its file."""


def check_of(data: Mapping[str, Any]) -> str:
    """The sum that a line, or environment.json, bears of its other values."""
    text = json.dumps({k: v for k, v in data.items() if k != "check"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_check(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` and its sum."""
    return {**data, "check": check_of(data)}


def marks(run: Path) -> dict[str, dict[str, Any]]:
    """How long the growing files are now, on the disk, and their sha256: lines are only added."""
    return {name: _mark(run / file) for name, file in GROWING.items()}


def _mark(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())  # else a power cut could leave the mark of lines that are lost
        text = opened.read()
    return {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def changed(run: Path, name: str, mark: Mapping[str, Any] | None) -> bool:
    """Whether a growing file is no longer what it was when it was marked, as far as it was."""
    if not mark:
        return False
    file = run / GROWING[name]
    text = file.read_bytes() if file.exists() else b""
    return hashlib.sha256(text[: mark["bytes"]]).hexdigest() != mark["sha256"]


def read_checked(path: Path) -> dict[str, Any]:
    """A JSON file that bears its own sum, without that.

    Raises:
        RunError: it is gone, no JSON object, or not what was written.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged or gone: {error}", "put it back from a copy") from error
    if not isinstance(found, dict) or found.get("check", "") not in ("", check_of(found)):
        what = f"{path}: damaged: it is not what was written"
        raise RunError(what, "put it back from a copy")
    found.pop("check", None)
    return found


def damage(file: Path) -> RunError:
    """What is said of a file of lines that is not what was written."""
    return RunError(
        f"{file}: damaged: lines that were written are gone or changed",
        "put it back from a copy; what is missing in it cannot be measured again",
    )
