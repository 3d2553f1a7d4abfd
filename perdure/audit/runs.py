"""What the run that an audited model comes from says of it: its base, and the day it began."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.errors import ModelError, RunError
from perdure.files import numbered
from perdure.models.locate import locate
from perdure.run import Run
from perdure.run.pins import refuse_changes, rows_since

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import TaskStream


def run_of(model: object) -> Run | None:
    """The run that left the model at a path: a run directory, a checkpoint, or a folder in it."""
    if not isinstance(model, str | Path):
        return None
    path = Path(model).expanduser()
    for folder in (path, *path.absolute().parents[:3]):
        if (folder / "environment.json").is_file() and (folder / "recipe.yaml").is_file():
            left = {one for _, one in numbered(folder / "checkpoints", "task-")}
            inside = {path.absolute(), *path.absolute().parents}
            of_it = folder == path or any(one.absolute() in inside for one in left)
            return Run.open(folder) if of_it else None
    return None


def today_of(model: object) -> date | None:
    """The day on which the model's run began, whose date chat templates write."""
    run = run_of(model)
    return None if run is None else run.today


def changed_bases(models: Sequence[object], accept: bool) -> tuple[str, ...]:
    """What has changed of the base models of runs that are read, since these began.

    A base is looked at where it is read: under an adapter, or as the other model that is given.

    Raises:
        RunError: something has changed, and `accept` is false.
    """
    found: list[str] = []
    for model in models:
        if (run := run_of(model)) is None:
            continue
        base = run.recipe.model
        others = [other for other in models if isinstance(other, str | Path) and other != model]
        read = base.tuning == "lora" or any(_same(str(other), base.path) for other in others)
        found += refuse_changes(run, accept=accept, base=read, template=False, recipe=False)
    return tuple(dict.fromkeys(found))


def changed_rows(
    models: Sequence[object], recipe: Recipe, stream: TaskStream, accept: bool
) -> tuple[str, ...]:
    """What has changed of the rows and the general text of runs, where `recipe` reads them again.

    Rows that were set aside from another file may be among those that the run was trained on.

    Raises:
        RunError: something has changed, and `accept` is false.
    """
    runs = {run.path: run for model in models if (run := run_of(model)) is not None}
    found = {run.path: rows_since(run, recipe, stream) for run in runs.values()}
    if any(found.values()) and not accept:
        raise RunError(
            "\n".join(f"{path}: {one}" for path, changes in found.items() for one in changes),
            "put the old rows back, or go on all the same: --accept-changes",
        )
    return tuple(dict.fromkeys(one for changes in found.values() for one in changes))


def tell_changed_rows(
    models: Sequence[object], recipe: Recipe, stream: TaskStream, accept: bool
) -> None:
    """Refuse what `changed_rows` finds; what is accepted is told in a warning.

    Raises:
        RunError: something has changed, and `accept` is false.
    """
    for change in changed_rows(models, recipe, stream, accept):
        logging.getLogger("perdure").warning("accepted: %s", change)


def tell_changed_bases(models: Sequence[object], accept: bool) -> None:
    """Refuse what `changed_bases` finds; what is accepted is told in a warning.

    Raises:
        RunError: something has changed, and `accept` is false.
    """
    for change in changed_bases(models, accept):
        logging.getLogger("perdure").warning("accepted: %s", change)


def _same(one: str, other: str) -> bool:
    try:
        first, second = locate(one), locate(other)
    except ModelError:  # an adapter's folder, or a place that is gone
        return False
    places = [
        Path(place.shown).resolve() if place.local else place.shown for place in (first, second)
    ]
    return places[0] == places[1]
