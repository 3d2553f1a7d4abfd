"""Rows that have no label yet, read as a task's own rows are.

A file may be any that a recipe reads, or .txt with a text a line. Of a record only what comes
before the answer is read; the answer's columns need not be there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import RecipeError, UsageError, brief, task_named
from perdure.recipe.columns import check_cell, columns_in
from perdure.streams.cells import CellError, EmptyCell, NoLanguage
from perdure.streams.kinds import Format, Row, format_of
from perdure.streams.languages import parse_direction
from perdure.streams.sources import FORMATS, Reader, Reading
from perdure.streams.tables import Mistakes, Record, Table, choices
from perdure.streams.task import PlacedRow
from perdure.streams.text_files import text_lines

if TYPE_CHECKING:
    from perdure.recipe.data import TaskConfig

logger = logging.getLogger("perdure")
ANSWERS = ("label", "answer", "target")
"""Our columns of an answer, in every format that has one."""
ANSWER = "\0answer"
"""A column that no file has: what stands there is no answer of anybody's."""
NOTHING = "\0nothing"
"""A column that no file has, of what is only learned: nothing stands there."""
TEXT_FILE = ".txt"


class Unlabelled:
    """How rows of a task are read where the answer is what is asked for.

    Args:
        task: the section of the recipe that the task was learned by.
        column: the column that the text is read from; None: as the section says.
        direction: of translations; None: as the section or the rows say.
        chats: tasks of the run that read lists of messages, for a message.
    """

    def __init__(
        self,
        task: TaskConfig,
        column: str | None = None,
        direction: str | None = None,
        chats: Sequence[str] = (),
    ) -> None:
        self.chats = chats
        form = format_of(task.format)[1]
        if direction is not None:
            if "direction" not in form.keys:
                what = f"--direction {direction}: {task_named(task.name)} is no translation"
                raise UsageError(f"{what}: its format is {form.name}", "leave it out")
            parse_direction(direction)
            task = task.model_copy(update={"direction": direction})
        self.first = form.columns[0]
        """Our name of the column that holds the text."""
        if column is not None and (wrong := check_cell(column, self.first in form.whole)):
            what = f"--column {column}: {wrong[0]}"
            mistakes = Mistakes()
            mistakes.add("column", what, wrong[1])
            raise RecipeError(mistakes.listed())
        columns = {ours: ANSWER for ours in form.columns if ours in ANSWERS}
        columns |= dict.fromkeys(form.trained, NOTHING)
        given = {} if column is None else {self.first: column}
        self.asked = [c for c in form.columns if c not in ANSWERS]
        # What names an answer is not looked at: there is none.
        self.task = task.model_copy(
            update={"columns": {**task.columns, **given, **columns}, "label_names": None}
        )
        self.form = form

    def of_file(self, path: Path) -> list[Row | None]:
        """The rows of a file in its order; None for a row with no text in it.

        Raises:
            RecipeError: it cannot be read, has no such column, or holds something else than text.
        """
        mistakes = Mistakes()
        reader = Reader(Path.cwd(), mistakes)
        task = self.task
        table: Table | None
        if path.suffix.lower() == TEXT_FILE:
            text = reader.text(str(path), Reading(None, task.encoding, whose=""))
            records = [
                Record(f"{path}:{n}", {self.first: line})
                for n, line in enumerate(text_lines(text or "") or [""], 1)
            ]
            found = self._plain().of_records(Table(str(path), (self.first,), records), mistakes)
        elif path.suffix.lower() not in FORMATS:
            what = f'{path}: files ending in "{path.suffix}" are not read'
            known = [*FORMATS, TEXT_FILE]
            mistakes.add(str(path), what, choices(path.suffix, known, "endings that are"))
            found = []
        else:
            needed = tuple(c for ours in self.asked for c in columns_in(task.column(ours)))
            table = reader.file(str(path), Reading(task.separator, task.encoding, needed, ""))
            found = [] if table is None else self.of_records(table, mistakes)
        if mistakes:
            raise RecipeError(mistakes.listed())
        if empty := sum(row is None for row in found):
            logger.warning("%s: %d of %d rows have no text: no answer", path, empty, len(found))
        return found

    def of_texts(self, texts: Sequence[str | Mapping[str, Any]]) -> list[Row | None]:
        """Texts, and records by their columns, as rows.

        Raises:
            RecipeError: a record has no such column, or something else than text there.
        """
        mistakes, plain, found = Mistakes(), self._plain(), []
        for number, text in enumerate(texts, 1):
            values = {self.first: text} if isinstance(text, str) else dict(text)
            form = plain if isinstance(text, str) else self
            place = f"text {number}"
            one = Table(place, tuple(values), [Record(place, values)])
            found += form.of_records(one, mistakes) or [None]
        if mistakes:
            raise RecipeError(mistakes.listed())
        return found

    def _plain(self) -> Unlabelled:
        """The same where a record is the text alone."""
        return Unlabelled(self.task, self.first, chats=self.chats)

    def of_records(self, table: Table, mistakes: Mistakes) -> list[Row | None]:
        """The rows of a table; mistakes are noted with their place."""
        found: list[Row | None] = []
        missing = [
            (ours, theirs)
            for ours in self.asked
            for theirs in columns_in(self.task.column(ours))
            if theirs not in table.columns
        ]
        for ours, theirs in missing:
            remedy = choices(theirs, table.columns, "columns there are")
            if ours == self.first:
                remedy = [*remedy, "name the one that holds the text: --column NAME"]
                given = table.records[0].values.values()
                if self.first not in self.form.whole and any(isinstance(v, list) for v in given):
                    remedy = [*remedy, self._of_lists()]
            mistakes.add(table.name, f'{table.name}: no column "{theirs}"', remedy)
        if missing:
            return []
        for record in table.records:
            values = dict.fromkeys(table.columns) | record.values | {ANSWER: "?"}
            # A conversation; a relation's tokens are one column too, but its label is another.
            if reads_messages(self.form):
                source = self.task.column(self.first)
                values[source] = _with_an_answer(values[source])
            try:
                found.append(PlacedRow(self.form.row(values, self.task), record.place))
            except EmptyCell:
                found.append(None)
            except CellError as wrong:
                read = [values[name] for name in columns_in(self.task.column(self.first))]
                plain = self.first not in self.form.whole  # a conversation, or tokens
                lists = plain and any(isinstance(value, list) for value in read)
                told = (self._of_lists(),) if lists else wrong.remedy
                if isinstance(wrong, NoLanguage):
                    told = ("say it for all rows: --direction en-de, or fill the column in",)
                mistakes.add(table.name, f"{record.place}: {wrong.what}", told)
        return found

    def _of_lists(self) -> str:
        """What to do with lists of messages, which this task does not read."""
        if not self.chats:
            return "write one text a row: no task of this run reads lists of messages"
        names = " or ".join(f'--task "{brief(name)}"' for name in self.chats)
        return f"write one text a row; lists of messages are read as another task: {names}"


def reads_messages(form: Format) -> bool:
    """Whether rows of a format are conversations."""
    return form.columns[0] in form.whole and not form.label


def holds_messages(path: Path, column: str, text: str) -> bool:
    """Whether a file's rows have a list in `column`, and no `text` to ask instead.

    Only the first row is looked at; what is wrong with the file is told where it is read.
    """
    row: Any = None
    with suppress(OSError, ValueError):  # pyarrow's own errors are ValueErrors
        if path.suffix.lower() == ".jsonl":
            with open(path, encoding="utf-8-sig") as lines:
                row = json.loads(next((line for line in lines if line.strip()), "null"))
        elif path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            first = next(parquet.ParquetFile(path).iter_batches(1), None)
            row = None if first is None else (first.to_pylist() or [None])[0]
    if not isinstance(row, dict) or not isinstance(row.get(column), list):
        return False
    return column == text or row.get(text) is None


def _with_an_answer(messages: Any) -> Any:
    """A conversation that ends with what is asked, and a place for the answer to it."""
    if isinstance(messages, str) and messages.strip():
        try:
            messages = json.loads(messages)
        except ValueError:  # the text itself
            messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        return messages
    last = messages[-1]
    asked = isinstance(last, dict) and last.get("role") != "assistant"
    return [*messages, {"role": "assistant", "content": "?"}] if asked else messages
