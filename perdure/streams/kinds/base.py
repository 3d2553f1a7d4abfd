"""The records that describe a kind of task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from perdure.errors import UsageError, task_named
from perdure.recipe.data import Scenario, TaskConfig
from perdure.recipe.mistakes import Mistake

Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """How answers are scored, as data; a task names it.

    Attributes:
        name: as a recipe writes it; label: as people read it.
        needs: what scoring computes first. Perdure computes "labels" (the likelihood of each
            declared label), "text" (a generated text) and "likelihood" (that of the right
            answer); another package's learner may compute something else.
        low, high: the range of an item's score; infinity where it has no end.
        pooling: a task's score is the mean of its items' scores, or, where each item has a loss,
            the exponential of the mean loss of all tokens.
        function: one item's score, f(prediction, answer) -> float, where `needs` is "text"; or
            its place, "module:function", so that naming a metric imports nothing.
        reads: keys of a row that the function is given too, by name, where the row has them.
    """

    name: str
    label: str
    needs: str
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0
    pooling: Literal["items", "tokens"] = "items"
    function: str | Callable[..., float] = ""
    reads: tuple[str, ...] = ()

    @property
    def bounded(self) -> bool:
        """Whether the range has two ends, so that the noise of a mean is known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def scores_items(self) -> bool:
        """Whether each row gets a score of its own whose mean is the task's score."""
        return self.pooling == "items"

    def of_item(self) -> Callable[..., float]:
        """Return the function of one item, f(prediction, answer), imported if need be."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        found: Callable[..., float] = getattr(import_module(module), name)
        return found


@dataclass(frozen=True)
class Format:
    """A way to write rows of a kind.

    Attributes:
        columns: what is read of a record, by our names.
        metric: the default metric's name.
        row: makes a row of a record's values; raises `perdure.streams.cells.CellError`.
        label: the row's key that holds one of the task's labels; "" where answers are free.
        optional: columns that are read where they are there; trained: those of them which only
            training rows must have where the recipe names them; sparse: those of them that a row
            may leave out, as if its cell were empty.
        whole: our columns that are one column of the data, never a text of several.
        renames: `label_names` may call its labels otherwise.
        mistakes: what is wrong in a task's section, beyond each key by itself and its columns.
        notes: what of a valid section is perhaps not meant, for a warning each.
        keys: of a task's section, those that only formats that name them have.
        lacks: what a row has not that is trained on by its answer, in words; such rows are left
            out of the training rows as empty ones are. "" where it has all.
    """

    name: str
    columns: tuple[str, ...]
    metric: str
    row: Callable[[Mapping[str, Any], TaskConfig], Row]
    label: str = ""
    optional: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    renames: bool = True
    mistakes: Callable[[TaskConfig], Iterator[Mistake]] = field(default=lambda task: iter(()))
    notes: Callable[[TaskConfig], Iterator[str]] = field(default=lambda task: iter(()))
    keys: tuple[str, ...] = ()
    lacks: Callable[[Row, TaskConfig], str] = field(default=lambda row, task: "")


_WHOLE = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


def whole_row(row: Row) -> str:
    """The row as text: rows that are equal in everything are the same question."""
    return _WHOLE.encode(row)


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        schema: the keys of a row and what each holds.
        encoder: "module:function" of a recipe, which makes what tokenizes its rows before weights
            are loaded (`perdure.engine.rows.RowEncoder`); "": the learner does.
        writes: its models write text: only a causal language model will do.
        learner: "module:Class" of its `perdure.learners.base.Learner`, imported when it learns.
        question: what makes two rows the same question; such rows stay in one split.
        defaults: values of a recipe's keys that it leaves out, by section.
        classes: a row's one label is a class of `Task.labels`; nothing is written as text.
        scenarios: those a stream of such tasks may have; the first is the default.
        ways: words for a task's `learn`, how it can be learned; "none" is not at all.
        parts: the row's keys that decide which question it is and what the right answer is; (): all
            but `group`. Rows that are equal in them are one row.
        turns: the rows that a conversation is trained as with `train_on: all`, one for each answer
            in it; None where a row has one answer.
        with_examples: a row with others before its question, as examples of how to answer; None
            where a row has no place for them.
    """

    name: str
    schema: Mapping[str, str]
    formats: tuple[Format, ...]
    metrics: tuple[Metric, ...]
    learner: str
    encoder: str = ""
    writes: bool = True
    question: Callable[[Row], str] = whole_row
    ways: tuple[str, ...] = ("sft", "none")
    parts: tuple[str, ...] = ()
    turns: Callable[[Row], list[Row]] | None = None
    with_examples: Callable[[Row, Sequence[Row]], Row] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    scenarios: tuple[Scenario, ...] = ("task-incremental", "domain-incremental")
    classes: bool = False

    def item(self, row: Row) -> Row:
        """What of a row makes it that row; what it has beside (its `group`) is left out."""
        names = self.parts or tuple(name for name in row if name != "group")
        return {name: row[name] for name in names if name in row}

    def question_of(self, row: Row) -> str:
        """`question` of a row, whatever group it is in."""
        return self.question({name: part for name, part in row.items() if name != "group"})

    def demand(self, who: str, task: str, keys: Sequence[str] = ("prompt", "answer")) -> None:
        """Refuse a task whose rows have no such keys by the kind's schema.

        Raises:
            UsageError: `who` reads keys that rows of this kind do not have.
        """
        if missing := [key for key in keys if key not in self.schema]:
            raise UsageError(
                f"{who}: {task_named(task)} is of kind {self.name}, whose rows have no "
                f"{' and no '.join(missing)}",
                f"only the learner of kind {self.name} scores it, in a run of its own; here, leave "
                "it out",
            )
