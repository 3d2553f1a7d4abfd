"""Tasks and streams of tasks: what is learned, from whatever source, in its kind's row schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.errors import PerdureError
from perdure.recipe.data import StreamConfig, TaskConfig
from perdure.recipe.mistakes import Mistake
from perdure.recipe.schema import Recipe
from perdure.streams import kinds
from perdure.streams.build import build_stream
from perdure.streams.named.demo import FORMATS, STREAMS, Sizes
from perdure.streams.named.find import CLASS_STREAMS, abouts, named_mistakes
from perdure.streams.task import GeneralText, Row, Task, TaskStream

if TYPE_CHECKING:
    from perdure.recipe.section import Section

__all__ = [
    "CLASS_STREAMS",
    "STREAMS",
    "GeneralText",
    "Row",
    "Sizes",
    "Task",
    "TaskStream",
    "abouts",
    "build_stream",
    "mistakes",
]


def mistakes(section: Section, installed: bool = True) -> Iterator[Mistake]:
    """What is wrong in a recipe's section by what streams there are; its keys are relative to it.

    Args: installed: as of `perdure.streams.kinds.mistakes`.
    """
    if isinstance(section, TaskConfig):
        yield from kinds.mistakes(section, installed)
    elif isinstance(section, StreamConfig):
        yield from named_mistakes(section)
        yield from _scenario_mistakes(section)
    elif isinstance(section, Recipe):
        yield from _head_mistakes(section)


def formats_of(stream: StreamConfig) -> list[str]:
    """The formats of a stream's rows; those of a stream that has none are told elsewhere."""
    if stream.name is not None:
        named = CLASS_STREAMS.get(stream.name)
        return [FORMATS.get(stream.name, "prompt") if named is None else named.format]
    return [task.format for task in [*stream.tasks, *([stream.data] if stream.data else [])]]


def _kinds_of(stream: StreamConfig) -> list[kinds.Kind]:
    """The kinds of a stream's tasks; [] where a format is wrong, which is told elsewhere."""
    try:
        return [kinds.format_of(name)[0] for name in formats_of(stream)]
    except PerdureError:
        return []


def _scenario_mistakes(stream: StreamConfig) -> Iterator[Mistake]:
    """A scenario that tasks of this kind cannot have."""
    for kind in _kinds_of(stream)[:1]:
        if stream.scenario is not None and stream.scenario not in kind.scenarios:
            what = f"tasks of kind {kind.name} have {' or '.join(kind.scenarios)}"
            yield Mistake(("scenario",), what, "format: classes has class-incremental streams")


def _head_mistakes(recipe: Recipe) -> Iterator[Mistake]:
    """What a recipe says of classifiers although its stream has none, or no relations."""
    model = recipe.model
    fields = type(model).model_fields
    if any(kind.name == kinds.GENERATION for kind in _kinds_of(recipe.stream)):
        for key in ("head", "pooling", "template"):
            if getattr(model, key) != fields[key].get_default(call_default_factory=True):
                what = f"has no effect on tasks of kind {kinds.GENERATION}"
                yield Mistake(("model", key), what, "leave it out, or write format: classes")
    elif "classes" in formats_of(recipe.stream):
        remedy = "rows of format: relations have two entities"
        if model.pooling == "entity_starts":
            yield Mistake(("model", "pooling"), "has no effect with format: classes", remedy)
        for part in ("{head}", "{tail}"):
            if part in (model.template or ""):
                what = f"has {part} in it, and rows of format: classes have no entities"
                yield Mistake(("model", "template"), what, remedy)
