"""What a run goes on from is read again before it does: its checkpoint and its scores."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from perdure.errors import RunError
from perdure.files import read_lines
from perdure.run import item_files
from perdure.run.directory import check_of
from perdure.seals import facts_of, recorded
from perdure.seals import verify as verify_folder

if TYPE_CHECKING:
    from perdure.run.directory import Run


def verify(run: Run, weights: bool = True) -> None:
    """Read again what a run goes on from: its newest checkpoint and the scores before it.

    Args: weights: False leaves the checkpoint's files to whoever loads them, and checks them then.

    Raises:
        RunError: a file is not as it was written, or scores are gone.
    """
    learned, _ = run.last_checkpoint()
    begun = int(run.environment().get("extends", {}).get("tasks", 0))
    written = recorded(run.path / "checkpoints", run.most_tasks())
    for number, folder in written[-1:] if weights else ():
        older = f", or delete the folder {folder}: the run then goes on after {number - 1} tasks"
        verify_folder(folder, f"put it back from a copy{older if number > begun else ''}")
    whole = len(run.stream_facts())
    if learned < (whole if (run.path / "finished").exists() else begun):
        raise RunError(
            f"{run.path}: the model after its last task is gone: the newest is after "
            f"{learned} tasks",
            "put checkpoints back from a copy, or begin a new run",
        )
    verify_scores(run)


def verify_scores(run: Run) -> None:
    """Check each line of scores.jsonl, and that none is gone that a checkpoint came after.

    The scored rows that its lines name are checked too.

    Raises:
        RunError: a line or a row is gone or not as it was written.
    """
    _, folder = run.last_checkpoint()
    marks = [facts_of(folder).get("scores")] if folder is not None else []
    with suppress(OSError, ValueError):  # of older runs it holds the time alone
        marks.append(json.loads((run.path / "finished").read_text("utf-8"))["scores"])
    file = run.path / "scores.jsonl"
    text = file.read_bytes() if file.exists() else b""
    lines = read_lines(file)
    old = next((i for i, line in enumerate(lines) if "check" in line), len(lines))
    # Lines of an older Perdure, which come first, bear no check.
    changed = any(line.get("check") != check_of(line) for line in lines[old:])
    for mark in filter(None, marks):
        changed |= hashlib.sha256(text[: mark["bytes"]]).hexdigest() != mark["sha256"]
    if changed:
        raise item_files.damage(file)
    for rows in item_files.damaged(run.path, lines):
        raise item_files.damage(rows)
