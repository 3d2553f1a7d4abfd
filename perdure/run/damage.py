"""What a run goes on from is read again before it does: its checkpoint and its scores."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from perdure.errors import RunError
from perdure.files import read_lines
from perdure.run import item_files
from perdure.run.pins import pinned, recipe_changes, values_of
from perdure.run.sums import GROWING, changed, check_of, damage
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
    file = run.path / GROWING["scores"]
    lines = read_lines(file)
    old = next((i for i, line in enumerate(lines) if "check" in line), len(lines))
    # Lines of an older Perdure, which come first, bear no check.
    other = any(line.get("check") != check_of(line) for line in lines[old:])
    if other or any(changed(run.path, "scores", found.get("scores")) for found in _marks(run)):
        raise damage(file)
    for rows in item_files.damaged(run.path, lines):
        raise damage(rows)


def doubts(run: Run) -> list[str]:
    """What is said of a run whose figures may be shown wrong, although it can be read.

    facts.jsonl and log.jsonl are not what was written, or the recipe is not the one that was
    learned by. Nothing is learned from the first two, so a run goes on.
    """
    found = recipe_changes(pinned(run), values_of(run.recipe))
    return [f"{run.path / 'recipe.yaml'}: {change}" for change in found] + [
        f"{run.path / file}: damaged: lines that were written are gone or changed; what a report "
        "shows from it may be wrong: put it back from a copy"
        for name, file in GROWING.items()
        if name != "scores" and any(changed(run.path, name, m.get(name)) for m in _marks(run))
    ]


def _marks(run: Run) -> list[dict[str, Any]]:
    """What was noted of files that grow, at the newest checkpoint and at the end."""
    _, folder = run.last_checkpoint()
    found = [facts_of(folder)] if folder is not None else []
    with suppress(OSError, ValueError):
        found.append(json.loads((run.path / "finished").read_text("utf-8")))
    return [marks for marks in found if isinstance(marks, dict)]
