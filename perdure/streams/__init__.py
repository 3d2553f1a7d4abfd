"""Tasks and streams of tasks: what is learned, from whatever source, in one row schema."""

from perdure.recipe.data import METRICS, Metric
from perdure.streams.build import build_stream
from perdure.streams.named.demo import STREAMS, Sizes
from perdure.streams.task import GeneralText, Row, Task, TaskStream

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
