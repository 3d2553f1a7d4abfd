"""Tasks and streams of tasks: what is learned, from whatever source, in one row schema."""

from perdure.streams.build import build_stream
from perdure.streams.builtin import STREAMS, Sizes
from perdure.streams.task import METRICS, GeneralText, Metric, Row, Task, TaskStream

__all__ = [
    "METRICS",
    "STREAMS",
    "GeneralText",
    "Metric",
    "Row",
    "Sizes",
    "Task",
    "TaskStream",
    "build_stream",
]
