"""Sums by which a run notices that what it wrote was changed since.

The lines of files that only grow (scores, facts and logged steps), environment.json and pinned.json
bear a sum of themselves (`check`). The growing files are marked besides where a checkpoint is
sealed and where the run ends: their length and their sha256 up to there, which tells lines that are
gone. What older runs wrote bears no sum, and is taken as it is. Only a regular file is read: a
device such as /dev/full would never end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import RunError, typed
from perdure.failures import at, reading
from perdure.files import is_torn

GROWING = {"scores": "scores.jsonl", "facts": "facts.jsonl", "log": "log.jsonl"}
"""What a mark is called, and its file."""
KEYS = {"scores": ("kind", "after"), "facts": ("after", "name"), "log": ("after", "phase", "step")}
"""What each line of such a file has."""
_TOGETHER = 1000
"""Lines that are parsed at once: a run of a thousand tasks has a million scores."""
_SORTED = json.JSONEncoder(sort_keys=True)


def check_of(data: Mapping[str, Any]) -> str:
    """The sum that a line, or environment.json, bears of its other values."""
    text = _SORTED.encode({k: v for k, v in data.items() if k != "check"})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_check(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` and its sum."""
    return {**data, "check": check_of(data)}


def marks(run: Path, before: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How long the growing files are now, on the disk, and their sha256: lines are only added.

    Args: before: the marks of the checkpoint before. One that no longer holds is kept, so that
        lines that were lost while the run learned are noticed ever after.
    """
    now = {name: _mark(run / file) for name, file in GROWING.items()}
    return {
        name: before[name] if changed(run, name, before.get(name)) else mark
        for name, mark in now.items()
    }


def _mark(file: Path) -> dict[str, Any]:
    text = b""
    if file.is_file():
        with at(file), open(file, "rb") as opened:
            os.fsync(opened.fileno())  # else a power cut could leave a mark of lines that are lost
            text = opened.read()
    text = text[: text.rfind(b"\n") + 1]  # a torn line is cut off before the next is added
    return with_check({"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()})


def is_mark(mark: Any) -> bool:
    """Whether this is a mark as it was written."""
    if not isinstance(mark, Mapping) or not isinstance(mark.get("bytes"), int):
        return False
    return "sha256" in mark and mark.get("check", "") in ("", check_of(mark))


def changed(run: Path, name: str, mark: Mapping[str, Any] | None) -> bool:
    """Whether a growing file is no longer what it was when it was marked, as far as it was.

    A mark that is damaged itself says nothing.
    """
    if mark is None or not is_mark(mark):
        return False
    file = run / GROWING[name]
    text = _bytes(file)
    return hashlib.sha256(text[: mark["bytes"]]).hexdigest() != mark["sha256"]


def lines_of(run: Path, name: str) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of a growing file that are as they were written, and the numbers of the others.

    A last line that was not written to its end is none of either. What an older Perdure wrote
    comes first: its lines bear no sum, and one that a crash tore may lie between them.
    """
    file = run / GROWING[name]
    whole: list[dict[str, Any]] = []
    broken: list[int] = []
    *lines, last = _bytes(file).split(b"\n")
    if last and not is_torn(last):
        lines.append(last)
    summed = False
    for number, (line, found) in enumerate(zip(lines, _values(lines), strict=True), 1):
        if found is _NONE:
            if line and (summed or b"check" in line or line.endswith(b"}")):
                broken.append(number)
            continue
        good = isinstance(found, dict) and all(key in found for key in KEYS[name])
        if good and "check" in found:
            summed = True
            good = found["check"] == check_of(found)
        elif summed:
            good = False
        if good:
            found.pop("check", None)
            whole.append(found)
        else:
            broken.append(number)
    return whole, broken


def _bytes(file: Path) -> bytes:
    with at(file):  # a read that fails says of no file that it was its
        return file.read_bytes() if file.is_file() else b""


_NONE = object()
"""What stands for a line that is no JSON."""


def _values(lines: Sequence[bytes]) -> Iterator[Any]:
    """What each line says, or `_NONE`. Whole blocks are parsed at once, which also makes their
    objects share the names of keys."""
    for first in range(0, len(lines), _TOGETHER):
        block = lines[first : first + _TOGETHER]
        found: list[Any] = []
        if all(line[:1] == b"{" and line[-1:] == b"}" for line in block):
            try:
                found = json.loads(f"[{b','.join(block).decode()}]")
            except ValueError:
                found = []
        yield from found if len(found) == len(block) else map(_value, block)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except ValueError:
        return _NONE


def read_checked(path: Path) -> dict[str, Any]:
    """A JSON file that bears its own sum, without that.

    Raises:
        RunError: it is gone, no JSON object, or not what was written.
    """
    with reading(path, "put it back from a copy"):
        found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict) or found.get("check", "") not in ("", check_of(found)):
        what = f"{path}: damaged: it is not what was written"
        raise RunError(what, "put it back from a copy")
    found.pop("check", None)
    return found


def damage(file: Path, line: int | None = None) -> RunError:
    """What is said of a file of lines that is not what was written.

    Args: line: the number of the first that has changed, where it is known.
    """
    where = "" if line is None else f" (the first is line {line})"
    return RunError(
        f"{file}: damaged: lines that were written are gone or changed{where}",
        "put it back from a copy; what is missing in it cannot be measured again",
    )


def deleted(run: Path, folder: Path) -> RunError:
    """What is said where a whole folder of a run's rows is gone, which people delete on purpose."""
    remedy = ["put the folder back from a copy"]
    if (run / "data").is_dir():  # without it some runs do not know their answers
        remedy.append(f"its model still answers: {typed('predict', run, 'FILE')}")
    gone = "is a file, not a folder" if folder.exists() else "was deleted"
    return RunError(
        f"{folder}: {gone}, and with it the rows that the run is scored on: it can be neither "
        "shown nor extended",
        remedy,
    )
