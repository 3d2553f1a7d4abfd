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
