"""Named streams by name: the demo's, and those of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.recipe.data import DataConfig
from perdure.recipe.mistakes import Mistake, near
from perdure.streams.named import banking77, clinc150, fewrel, tacred, topic3
from perdure.streams.named.demo import STREAMS

if TYPE_CHECKING:
    from perdure.recipe.data import StreamConfig
    from perdure.streams.named.base import ClassStream

CLASS_STREAMS: dict[str, ClassStream] = {
    module.STREAM.name: module.STREAM for module in (clinc150, banking77, topic3, fewrel, tacred)
}


def abouts() -> dict[str, str]:
    """Every named stream with its one line for people."""
    found = {name: about for name, (about, _) in STREAMS.items()}
    return found | {name: stream.about for name, stream in CLASS_STREAMS.items()}


def table_like(name: str | None) -> DataConfig:
    """The section of a table whose rows are read as a named stream's: by our names of columns.

    Args: name: a stream of classes; any other name, or None, stands for texts with a class.
    """
    form = CLASS_STREAMS[name].format if name in CLASS_STREAMS else "classes"
    return DataConfig(train="rows.jsonl", tasks=1, format=form)


def named_mistakes(config: StreamConfig) -> Iterator[Mistake]:
    """What is wrong with a stream's name, and with keys that go with it."""
    name = config.name
    if name is None:
        return
    if name not in abouts():
        hint = near(name, list(abouts())) + " all of them: perdure streams"
        yield Mistake(("name",), f'no stream is called "{name}"', hint.strip())
        return
    if name in STREAMS:
        for key in ("folder", "data"):
            if getattr(config, key) is not None:
                yield Mistake((key,), f"has no effect with the stream {name}", "leave it out")
        return
    stream, data = CLASS_STREAMS[name], config.data
    if config.folder is None and not stream.hub:
        remedy = f"write folder: where {', '.join(stream.files)} of {stream.home} lie"
        yield Mistake(("name",), f"{name} is on no hub", remedy)
    if data is not None and stream.validated and "validation_share" in data.model_fields_set:
        default = type(data).model_fields["validation_share"].default
        if data.validation_share != default:
            what = f"has no effect: {name} has validation rows of its own"
            yield Mistake(("data", "validation_share"), what, "leave it out")
    if data is not None and not (data.fix_label_names or stream.scrambled):
        what = f"has no effect: the names of {name} are right as they are"
        yield Mistake(("data", "fix_label_names"), what, "leave it out")
    if data is not None and data.dev_from == "test" and stream.validated:
        what = f"has no effect: {name} has validation rows of its own"
        yield Mistake(("data", "dev_from"), what, "leave it out")
