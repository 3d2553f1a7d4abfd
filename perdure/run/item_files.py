"""Where a run keeps the rows that a score was made of, and whether they are what was written.

items/after-AFTER-TASK.jsonl      rows of a cell of the score matrix
items/general-AFTER.jsonl         general texts
items/general-AFTER-TASK.jsonl    items of a task of lm-eval's

A line is a row: `id`, `score`, `prediction`, `answer`, `prompt`, and `group` where the task
declares which rows belong together; where requests are routed what `perdure.scoring.routed` tells.
Runs of an older Perdure have no `group`: there, only rows that ask the same question are known to
belong together. The sha256 of such a file stands in the line of
scores.jsonl that was written behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from perdure.failures import at
from perdure.files import lines_in, write_atomic
from perdure.run.scored import Scored
from perdure.run.sums import damage
from perdure.scoring.intervals import group_numbers
from perdure.seals import sha256


def write(run: Path, line: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> str:
    """Write the rows of a score; returns their file's sha256, for the score's line."""
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    write_atomic(path(run, line["kind"], line["after"], line.get("task")), text)
    return hashlib.sha256(text.encode()).hexdigest()


def rows(
    run: Path, scored: Scored, kind: str, after: int, task: str | None
) -> list[dict[str, Any]]:
    """The rows of a score; none where a run kept none.

    Args: scored: the run's lines of scores.jsonl.

    Raises:
        RunError: they are not what was written.
    """
    if kind not in ("task", "general"):  # probes keep no rows
        return []
    file, wanted = path(run, kind, after, task), scored.sums.get((kind, after, task))
    if wanted is None and kind == "task" and task is not None:
        file = to_read(run, after, task, scored.tasks)
    try:
        with at(file):
            text = file.read_bytes()
    except FileNotFoundError:
        text = None
    if wanted is not None and (text is None or hashlib.sha256(text).hexdigest() != wanted):
        raise damage(file)
    return [] if text is None else lines_in(text)


def damaged(run: Path, scored: Scored) -> Iterator[Path]:
    """Files of rows that are not as the lines of scores.jsonl say."""
    for cell, wanted in scored.sums.items():
        file = path(run, *cell)
        if not file.is_file() or sha256(file) != wanted:
            yield file


def path(run: Path, kind: str, after: int, task: str | None) -> Path:
    """The file of a score's rows; no other score shares it."""
    named = "" if task is None else f"-{_name(task)}"
    return run / "items" / f"{'after' if kind == 'task' else 'general'}-{after}{named}.jsonl"


def to_read(run: Path, after: int, task: str, tasks: Iterable[str]) -> Path:
    """The file to read, which may be one of an older Perdure's; it need not be there.

    Older runs named files by what is plain in a task's name, in which two tasks may be alike: then
    nobody knows whose rows they are, and they are not read.

    Args: tasks: all that the run has scored; only asked for where it matters.
    """
    found = path(run, "task", after, task)
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
