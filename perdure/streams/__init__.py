"""Tasks and streams of tasks: what is learned, from whatever source, in its kind's row schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.recipe.data import StreamConfig, TaskConfig
from perdure.streams import kinds
from perdure.streams.build import build_stream
from perdure.streams.named.demo import STREAMS, Sizes, name_mistakes
from perdure.streams.task import GeneralText, Row, Task, TaskStream

if TYPE_CHECKING:
    from perdure.recipe.mistakes import Mistake
    from perdure.recipe.section import Section

__all__ = [
    "STREAMS",
    "GeneralText",
    "Row",
    "Sizes",
    "Task",
    "TaskStream",
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
        yield from name_mistakes(section.name)
        yield from _scenario_mistakes(section)


def _scenario_mistakes(stream: StreamConfig) -> Iterator[Mistake]:
    """A scenario that tasks of this kind cannot have; formats that are wrong are told elsewhere."""
    from perdure.errors import PerdureError
    from perdure.recipe.mistakes import Mistake

    sections = [*stream.tasks, *([stream.data] if stream.data else [])]
    try:
        known = [kinds.format_of(section.format)[0] for section in sections]
    except PerdureError:
        return
    for kind in known[:1]:
        if stream.scenario is not None and stream.scenario not in kind.scenarios:
            what = f"tasks of kind {kind.name} have {' or '.join(kind.scenarios)}"
            yield Mistake(("scenario",), what, "format: classes has class-incremental streams")
