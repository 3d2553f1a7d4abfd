"""What a recipe cannot know of its tasks by itself: formats, metrics, named streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perdure.errors import PerdureError
from perdure.recipe.mistakes import Key, Mistake
from perdure.recipe.schema import MethodSpec
from perdure.recipe.section import Section
from perdure.streams import CLASS_STREAMS, kinds, mistakes
from perdure.streams.named.demo import FORMATS


class StreamJudge:
    """A `perdure.recipe.section.Judge` of tasks and streams; it takes methods as they are."""

    def mistakes(self, section: Section) -> Iterator[Mistake]:
        yield from mistakes(section, installed=False)

    def method(self, item: MethodSpec) -> tuple[MethodSpec | None, list[Mistake]]:
        return item, []

    def defaults(self, data: dict[str, Any]) -> Mapping[str, Any]:
        """Those of the kind of the stream's first task; none where that is not clear yet."""
        stream = data.get("stream")
        stream = stream if isinstance(stream, dict) else {}
        tasks, source, name = (stream.get(key) for key in ("tasks", "data", "name"))
        first = tasks[0] if isinstance(tasks, list) and tasks else None
        form = first.get("format") if isinstance(first, dict) else None
        if isinstance(name, str):
            form = CLASS_STREAMS[name].format if name in CLASS_STREAMS else FORMATS.get(name)
        elif isinstance(source, dict):
            form = source.get("format", "classes")
        try:
            return kinds.format_of(form)[0].defaults if isinstance(form, str) else {}
        except PerdureError:  # told where formats are looked at
            return {}

    def of_data(self, data: dict[str, Any]) -> Iterator[Mistake]:
        """Metrics that are not installed; those of a recorded run are told when they are needed."""
        stream = data.get("stream")
        stream = stream if isinstance(stream, dict) else {}
        tasks = stream.get("tasks")
        sections: list[tuple[Key, Any]] = [
            (("stream", "tasks", i), task)
            for i, task in enumerate(tasks if isinstance(tasks, list) else [])
        ]
        for key, section in [*sections, (("stream", "data"), stream.get("data"))]:
            name = section.get("metric") if isinstance(section, dict) else None
            for mistake in kinds.metric_mistakes(name if isinstance(name, str) else None):
                yield Mistake((*key, *mistake.key), mistake.what, mistake.remedy)
