"""How the tasks of a run are asked: by the recipes that it keeps, also where its rows are gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perdure.recipe import load
from perdure.run.old_recipes import renew
from perdure.streams.kinds import EXACT_MATCH, format_of, metric_of
from perdure.streams.task import Task

if TYPE_CHECKING:
    from perdure.recipe.data import TaskConfig
    from perdure.recipe.schema import Recipe
    from perdure.run.directory import Run


def recipe_of(run: Run, number: int) -> Recipe:
    """The recipe by which a run learned the task of this number, counted from 0.

    An extension keeps the earlier ones: recipe-003.yaml is that of the first three tasks.
    """
    for file in sorted((run.path / "data").glob("recipe-*.yaml")):
        if number < int(file.stem.removeprefix("recipe-")):
            return load.load(file, check_files=False, renew=renew)
    return run.recipe


def sections(run: Run) -> dict[str, TaskConfig]:
    """The sections of all tasks that a run's recipes list, by the tasks' names."""
    files = sorted((run.path / "data").glob("recipe-*.yaml"))
    recipes = [*(load.load(file, check_files=False, renew=renew) for file in files), run.recipe]
    return {task.name: task for recipe in recipes for task in recipe.stream.tasks}


def tasks_without_rows(run: Run, facts: Sequence[Mapping[str, str]]) -> list[Task]:
    """A run's tasks where its rows were deleted: its recipes say how they are asked.

    Of what an extension learned before, the recipes may be deleted too: such a task has neither
    labels nor limits, and whoever asks as it must refuse it. None at all where rows alone tell the
    answers.

    Args: facts: what stream.json says of the tasks.
    """
    said = sections(run)
    if not {task["name"] for task in facts} & set(said):
        return []
    found = []
    for task in facts:
        if (config := said.get(task["name"])) is None:
            learn = task.get("learn", "sft")
            found.append(Task(task["name"], (), (), (), EXACT_MATCH.name, learn=learn))
            continue
        kind, form = format_of(config.format)
        labels = config.labels or dict.fromkeys((config.label_names or {}).values())
        if kind.classes or (form.label and not labels):
            return []
        found.append(
            Task(
                task["name"], (), (), (), metric_of(config), kind=kind.name, labels=tuple(labels),
                max_new_tokens=config.max_new_tokens, learn=config.learn, answer=config.answer,
                prefill=config.prefill,
            )
        )  # fmt: skip
    return found
