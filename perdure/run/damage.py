"""What a run goes on from is read again before it does: its checkpoint and its scores."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import RunError, resume_command
from perdure.files import free_place
from perdure.run import item_files
from perdure.run.pins import pinned, recipe_changes, values_of
from perdure.run.sums import GROWING, changed, damage, deleted, is_mark, lines_of
from perdure.seals import MANIFEST, damaged, facts_of, recorded

if TYPE_CHECKING:
    from perdure.run.directory import Run


def verify(run: Run, weights: bool = True, scores: bool = True) -> None:
    """Read again what a run goes on from: its newest checkpoint and the scores before it.

    Args:
        weights: False leaves the checkpoint's files to whoever loads them, and checks them then.
        scores: False leaves them out, for what reads none.

    Raises:
        RunError: a file is not as it was written, or scores are gone.
    """
    learned, _ = run.last_checkpoint()
    begun = int(run.environment().get("extends", {}).get("tasks", 0))
    written = recorded(run.path / "checkpoints", run.most_tasks())
    for number, folder in written[-1:]:
        if not (weights or learned < number):  # a file of another size is named in any case
            continue
        from perdure.models.served import verify_checkpoint  # it imports torch

        verify_checkpoint(folder, f"put it back from a copy{_or_anew(run, number, begun)}")
    whole = len(run.stream_facts())
    if learned < (whole if (run.path / "finished").exists() else begun):
        raise RunError(
            f"{run.path}: the model after its last task is gone: the newest is after "
            f"{learned} tasks",
            "put checkpoints back from a copy, or begin a new run",
        )
    if scores:
        verify_scores(run)


def _or_anew(run: Run, number: int, begun: int) -> str:
    """How the task of a damaged checkpoint is learned again, where it can be."""
    before = {n for n, _ in recorded(run.path / "checkpoints", run.most_tasks())} | {0}
    if number <= begun or number - 1 not in before:
        return ""
    if not (ended := run.path / "finished").exists():
        return f", or learn it again: {resume_command(run.path)}"
    return f", or learn it again: delete {ended}, then {resume_command(run.path)}"


def go_back(run: Run) -> list[str]:
    """Set aside the newest checkpoints that are not as they were written; says so of each.

    The run goes on from the one before it, or of its first task from the base model, and learns
    the task again. What a user may have edited (a router), what an extension began with, and what
    has none before it, is not set aside.

    Raises:
        RunError: such a checkpoint is damaged.
    """
    from perdure.models.served import ROUTERS, verify_checkpoint  # it imports torch

    begun = int(run.environment().get("extends", {}).get("tasks", 0))
    written = recorded(run.path / "checkpoints", run.most_tasks())
    told = []
    while written:
        number, folder = written.pop()
        if not (file := damaged(folder)):
            break
        before = written[-1][0] if written else 0
        if number <= begun or before != number - 1 or Path(file).name in ROUTERS:
            older = f", or delete the folder {folder}: the run then goes on after {before} tasks"
            verify_checkpoint(folder, f"put it back from a copy{older if number > begun else ''}")
        aside = free_place(folder, "damaged")
        os.replace(folder, aside)
        told.append(
            f"{file}: damaged: it is not what was written, so the run goes on from "
            f"{written[-1][1].name if before else 'the base model'}; what is there now is set "
            f"aside as {aside.name}"
        )
    return told


def verify_scores(run: Run, most: float = math.inf) -> None:
    """Check each line of scores.jsonl, and that none is gone that a checkpoint came after.

    The scored rows that its lines name are checked too.

    Args: most: of more files of rows than that none is read now; each is checked when it is read.

    Raises:
        RunError: a line or a row is gone or not as it was written.
    """
    scored = run.scored()
    if scored.broken or any(changed(run.path, "scores", m.get("scores")) for _, m in _marks(run)):
        raise damage(run.path / GROWING["scores"], *scored.broken[:1])
    for rows in item_files.damaged(run.path, scored) if len(scored.sums) <= most else ():
        raise damage(rows) if rows.parent.is_dir() else deleted(run.path, rows.parent)


def doubts(run: Run) -> list[str]:
    """What is said of a run whose figures may be shown wrong, although it can be read.

    facts.jsonl and log.jsonl are not what was written, or the recipe is not the one that was
    learned by. Nothing is learned from the first two, so a run goes on.
    """
    found = recipe_changes(pinned(run), values_of(run.recipe))
    said, marks = [f"{run.path / 'recipe.yaml'}: {change}" for change in found], _marks(run)
    for name, file in GROWING.items():
        said += [
            f"{place}: damaged: what it says of {file} is not what was written, so lines that are "
            "gone from there may not be noticed: put it back from a copy"
            for place, mark in marks
            if name in mark and not is_mark(mark[name])
        ]
        if name == "scores":
            continue
        _, broken = lines_of(run.path, name)
        if broken or any(changed(run.path, name, mark.get(name)) for _, mark in marks):
            said.append(
                f"{damage(run.path / file, *broken[:1]).what}; lines that have changed are left "
                "out, and what a report shows may be wrong: put it back from a copy"
            )
    return said


def _marks(run: Run) -> list[tuple[Path, dict[str, Any]]]:
    """What was noted of files that grow, at the newest checkpoint and at the end, and where."""
    _, folder = run.last_checkpoint()
    found: list[tuple[Path, Any]] = []
    if folder is not None:
        found.append((folder / MANIFEST, facts_of(folder)))
    ended = run.path / "finished"
    if ended.exists():
        with suppress(ValueError):  # of an older Perdure it holds the time alone
            found.append((ended, json.loads(ended.read_bytes().decode())))
    return [(place, marks) for place, marks in found if isinstance(marks, dict)]
