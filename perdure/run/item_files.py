"""Where a run keeps the scored rows of a cell of its matrix: items/after-AFTER-TASK.jsonl.

A line is a row: `id`, `score`, `prediction`, `answer`, `prompt`, and `group` where the task
declares which rows belong together. Runs of an older Perdure have no `group`: there, only rows that
ask the same question are known to belong together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from perdure.scoring.intervals import group_numbers


def path(run: Path, after: int, task: str) -> Path:
    """The file of a task's rows, scored after so many tasks; no other task shares it."""
    return run / "items" / f"after-{after}-{_name(task)}.jsonl"


def to_read(run: Path, after: int, task: str, tasks: Iterable[str]) -> Path:
    """The file to read, which may be one of an older Perdure's; it need not be there.

    Older runs named files by what is plain in a task's name, in which two tasks may be alike: then
    nobody knows whose rows they are, and they are not read.

    Args: tasks: all that the run has scored; only asked for where it matters.
    """
    found = path(run, after, task)
    former = found.with_name(f"after-{after}-{_former(task)}.jsonl")
    if found.exists() or not former.exists():
        return found
    alike = {name for name in tasks if _former(name) == _former(task)}
    return found if alike - {task} else former


def groups_of(rows: Sequence[Mapping[str, Any]]) -> NDArray[Any] | None:
    """Number the groups of scored rows, (rows,): those of one `group` or of the same prompt.

    Returns: None if every row is alone. A prompt that was not kept is like no other.
    """
    asked = [" ".join(str(row.get("prompt") or "").split()).casefold() or None for row in rows]
    return group_numbers([row.get("group") or None for row in rows], asked)


def _name(task: str) -> str:
    """A part of a file's name that two tasks never share.

    File systems may take upper and lower case, or two ways to write an accent, for the same; so a
    name that is more than plain small letters and digits gets a hash, behind a sign that no task's
    name has.
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in task)
    if plain == task == task.lower():
        return task
    return f"{plain[:40]}~{hashlib.sha256(task.encode()).hexdigest()[:10]}"


def _former(task: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in task)
