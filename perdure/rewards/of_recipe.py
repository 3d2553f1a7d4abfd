"""The rewards that a recipe names, in `rl` and in its tasks' `until`, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from perdure.recipe.mistakes import Mistake
from perdure.recipe.schema import Recipe
from perdure.rewards.base import Sample
from perdure.rewards.compose import build, mistakes
from perdure.streams.task import Task, TaskStream


def recipe_mistakes(data: dict[str, Any]) -> Iterator[Mistake]:
    """What is wrong with the rewards that a recipe's `rl` and its tasks' `until` name."""
    rl, stream = data.get("rl"), data.get("stream")
    entries = rl.get("rewards") if isinstance(rl, dict) else None
    if isinstance(entries, list):
        for wrong in mistakes(entries):
            yield replace(wrong, key=("rl", "rewards", *wrong.key))
    tasks = stream.get("tasks") if isinstance(stream, dict) else None
    for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
        until = task.get("until") if isinstance(task, dict) else None
        reach = until.get("reach") if isinstance(until, dict) else None
        for name in reach if isinstance(reach, dict) else ():
            for wrong in mistakes(with_format([name])):
                key = ("stream", "tasks", number, "until", "reach", name)
                yield replace(wrong, key=key)


def check_rewards(recipe: Recipe, stream: TaskStream) -> None:
    """Refuse rewards that cannot do what the rows of their tasks need.

    Raises:
        UsageError: a language that a reward does not know, or something is not installed.
    """
    for task in stream:
        if task.learn == "rl" and recipe.rl is not None:
            place = recipe.place("rl.rewards")
            rewards = build(recipe.rl.rewards, recipe.folder, place)
            rewards.check([*task.train], place)
            rewards.try_own(_right(task), place)
        if task.until is not None:
            numbers = {one.name: number for number, one in enumerate(recipe.stream.tasks)}
            key = f"stream.tasks.{numbers[task.name]}" if task.name in numbers else "stream"
            place = recipe.place(f"{key}.until.reach")
            rewards = build(with_format(task.until.reach), recipe.folder, place)
            rewards.check([*task.validation, *task.train], place)
            rewards.try_own(_right(task), place)


def _right(task: Task) -> list[Sample]:
    """The right answer of a task's first row, as a completion."""
    samples = []
    for row in [*task.train][:1]:
        plain = Sample("", "", row=row, answer=task.answer)
        text = f"<think>...</think>\n<answer>{plain.target}</answer>"
        whole = text if task.answer == "tagged" else plain.target
        samples.append(replace(plain, prompt=plain.source, completion=whole))
    return [sample for sample in samples if not sample.parsed.problem]


def with_format(names: Iterable[str]) -> list[str]:
    """The rewards that an `until` names: of guards and gates alone no reward can be made, so that
    `format`, which needs nothing, is there too."""
    return list(dict.fromkeys([*names, "format"]))
