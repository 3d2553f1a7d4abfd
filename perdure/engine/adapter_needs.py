"""Recipes that methods with adapters cannot learn, told before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.errors import UsageError

if TYPE_CHECKING:
    from perdure.protocol.method import Method
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import TaskStream


def refuse_without_adapters(name: str, recipe: Recipe, kind: str, parts: int) -> None:
    """Raise `UsageError` where a method cannot have the adapters that it works on (`ctx.adapters`).

    Args:
        name: the method's; kind: of the tasks.
        parts: into how many it splits an adapter's rank.
    """
    from perdure.streams import kinds

    if kinds.kind(kind).classes:
        raise UsageError(
            f"method: {name} works on adapters, which tasks of kind {kind} cannot have yet",
            "take tasks that are answered in words, or another method",
        )
    if recipe.model.tuning != "lora":
        raise UsageError(
            f"method: {name} works on adapters, and {recipe.place('model.tuning')} is "
            f"{recipe.model.tuning}",
            "write model.tuning: lora",
        )
    if recipe.model.lora.r % parts:
        raise UsageError(
            f"{recipe.place('model.lora.r')}: {recipe.model.lora.r} cannot be split into the "
            f"{parts} equal parts of {name}",
            f"take a rank that is divisible by {parts}, or another number of experts",
        )
    if recipe.model.fsdp_size > 1:
        raise UsageError(
            f"method: {name} works on adapters, which cannot be added to weights that are sharded",
            "leave out model.fsdp_size",
        )


def refuse_task_adapters(chosen: Sequence[Method], recipe: Recipe, stream: TaskStream) -> None:
    """Raise `UsageError` for what does not go with an adapter for each task."""
    from perdure.mechanisms.kept_rows import Buffered
    from perdure.recipe.schema import HeadConfig, LoraConfig

    own = [n for n, method in enumerate(chosen) if method.requires.adapters is not None]
    if not own:
        return
    settings, model = chosen[own[0]].requires.adapters, recipe.model
    assert settings is not None
    who = recipe.methods[own[0]].name

    def refuse(place: str, what: str, remedy: str) -> None:
        raise UsageError(f"{place}: {what}", remedy)

    if model.tuning != "lora":
        what = f"{model.tuning}: {who} has an adapter for each task, and the body stays"
        refuse(recipe.place("model.tuning"), what, "write model.tuning: lora")
    for key in ("r", "alpha", "dropout"):
        if (given := getattr(model.lora, key)) != getattr(LoraConfig(), key):
            what = f"{given}: has no effect with {who}, whose adapters have their own"
            refuse(recipe.place(f"model.lora.{key}"), what, f"write method.{key}: {given}")
    if model.head.preallocate != HeadConfig().preallocate:
        what = f"{model.head.preallocate}: has no effect with {who}: a head learns its task's alone"
        refuse(recipe.place("model.head.preallocate"), what, "leave it out")
    if model.fsdp_size > 1:
        what = f"{model.fsdp_size}: {who} adds adapters, which a sharded model has no place for"
        refuse(recipe.place("model.fsdp_size"), what, "leave it out")
    if settings.select == "oracle" and stream.scenario != "task-incremental":
        what = f"oracle: a row's task must be known, and the stream is {stream.scenario}"
        remedy = "write stream.scenario: task-incremental, or select: concat"
        refuse(recipe.method_place(own[0], "select"), what, remedy)
    if settings.compete == "seen" and stream.scenario == "task-incremental":
        what = "seen: has no effect where a row's task is known"
        refuse(recipe.method_place(own[0], "compete"), what, "leave it out")
    for method, spec in zip(chosen, recipe.methods, strict=True):
        kept = isinstance(method, Buffered) and settings.compete == "own"
        if kept or method.requires.teacher == "previous":
            what = f"{spec.name} has nothing to act on: with {who} old adapters and heads stay"
            remedy = f"write compete: seen with {who}" if kept else f"leave out {spec.name}"
            refuse(recipe.place("method"), what, remedy)
