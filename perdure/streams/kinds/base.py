"""The records that describe a kind of task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from perdure.recipe.data import TaskConfig
from perdure.recipe.mistakes import Mistake

Row = dict[str, Any]
Needs = Literal["labels", "text", "likelihood"]


@dataclass(frozen=True)
class Metric:
    """How answers are scored, as data; a task names it.

    Attributes:
        name: as a recipe writes it; label: as people read it.
        needs: what scoring computes first: the likelihood of each declared label, a generated
            text, or the likelihood of the right answer.
        function: "module:function" of one item's score, f(prediction, answer) -> float, where
            `needs` is "text".
    """

    name: str
    label: str
    needs: Needs
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0
    function: str = ""


@dataclass(frozen=True)
class Format:
    """A way to write rows of a kind.

    Attributes:
        columns: what is read of a record, by our names.
        metric: the default.
        row: makes a row of a record's values; raises `perdure.streams.cells.CellError`.
        mistakes: what is wrong in a task's section, beyond each key by itself.
    """

    name: str
    columns: tuple[str, ...]
    metric: str
    row: Callable[[Mapping[str, Any], TaskConfig], Row]
    mistakes: Callable[[TaskConfig], Iterator[Mistake]] = field(default=lambda task: iter(()))


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        learner: "module:Class" of its `perdure.learners.base.Learner`, imported when it learns.
    """

    name: str
    formats: tuple[Format, ...]
    metrics: tuple[Metric, ...]
    learner: str
