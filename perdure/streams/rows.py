"""Turn records of any source into the one row schema, and deal rows to splits.

    format   columns               row
    prompt   prompt, answer        the prompt as user message
    chat     messages              the last assistant message is the answer, what is before it
                                   the prompt; what follows it is left out
    labels   text, label           the text as user message, the label as answer

An instruction goes in front as a system message, before one that the data brings along.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.recipe.columns import columns_in
from perdure.recipe.data import COLUMNS
from perdure.streams.cells import CellError, EmptyCell, answer_of, as_text, cell_text, one_spaced
from perdure.streams.sources import Mistakes, Record, Table, choices
from perdure.streams.task import Row

if TYPE_CHECKING:
    from perdure.recipe.data import TaskConfig

logger = logging.getLogger("perdure")
LOOKED_AT = 20
"""Rows of a hub data set that are read for each that its caps keep."""
ROLES = ("system", "user", "assistant", "tool")


class Placed(NamedTuple):
    """A row and where it stood: "file:line" of `source`, a table's name."""

    row: Row
    place: str
    source: str


def columns_read(task: TaskConfig) -> tuple[str, ...]:
    """Return the data's columns that a task's rows are made of."""
    return tuple(name for ours in COLUMNS[task.format] for name in columns_in(task.column(ours)))


def enough_rows(task: TaskConfig, split: str) -> int | None:
    """Return how many rows of a split are enough to choose the kept ones from; None: all."""
    caps = {
        "train": task.max_train_rows,
        "validation": task.max_validation_rows,
        "test": task.max_test_rows,
    }
    needed = {split}
    if split == "train":  # splits that are not given come from it
        needed |= {"test"} if task.test is None else set()
        needed |= {"validation"} if task.validation is None and task.validation_share else set()
    kept = [caps[name] for name in needed]
    return None if None in kept else LOOKED_AT * sum(filter(None, kept))


def to_rows(table: Table, task: TaskConfig, mistakes: Mistakes) -> list[Placed]:
    """Return a row for each record that has no mistake; mistakes are noted with their place.

    An empty cell is one, except in a hub data set, which its user cannot mend: there the row is
    left out, and how many are is told.
    """
    columns = {ours: task.column(ours) for ours in COLUMNS[task.format]}
    missing = [
        (ours, theirs)
        for ours, source in columns.items()
        for theirs in columns_in(source)
        if theirs not in table.columns
    ]
    for ours, theirs in missing:
        remedy = choices(theirs, table.columns, "columns there are")
        if len(table.columns) == 1 and any(sign in table.columns[0] for sign in ",;\t"):
            remedy.append("the header is one cell: .csv is separated by commas, .tsv by tabs")
        if ours not in task.columns:
            remedy.append(f"name it in the recipe: columns: {{{ours}: your-column}}")
        where = task.place(f"columns.{ours}")
        mistakes.add(table.name, f'{where}: {table.name} has no column "{theirs}"', remedy)
    if missing:
        return []
    rows: list[Placed] = []
    empty: list[str] = []
    needed = columns_read(task)
    for record in table.records:
        try:
            rows.append(Placed(_row(record, columns, needed, task), record.place, table.name))
        except CellError as wrong:
            if task.dataset is not None and isinstance(wrong, EmptyCell):
                empty.append(f"{record.place}: {wrong.what}")
            else:
                mistakes.add(table.name, f"{record.place}: {wrong.what}", wrong.remedy)
    if empty and len(empty) == len(table.records):
        mistakes.add(table.name, empty[0], "so it is in each row: name another column, or split")
    elif empty:
        told = "task %s: %d of %d rows are left out, as there is nothing in them (the first: %s)"
        logger.warning(told, task.name, len(empty), len(table.records), empty[0])
    return rows


def _row(
    record: Record, columns: Mapping[str, str], needed: Sequence[str], task: TaskConfig
) -> Row:
    for theirs in needed:
        if theirs not in record.values:
            raise CellError(
                f'no "{theirs}", which other rows have', f"has: {', '.join(record.values)}"
            )
    if task.format == "chat":
        prompt, answer = _conversation(record.values[columns["messages"]], columns["messages"])
    else:
        asked, answered = (columns[ours] for ours in COLUMNS[task.format])
        prompt = [{"role": "user", "content": cell_text(record.values, asked)}]
        answer = cell_text(record.values, answered)
    if task.format == "labels":
        answer = answer.strip()
    if task.label_names is not None:
        named = answer_of(record.values.get(columns["label"]), answer, task.label_names)
        if named is None:
            raise CellError(
                f'label "{answer}" is not in label_names',
                *choices(answer, task.label_names, "those there are"),
            )
        answer = named
    if task.instruction:
        if prompt[0]["role"] == "system":
            own = prompt.pop(0)["content"]
            prompt.insert(0, {"role": "system", "content": f"{task.instruction}\n\n{own}"})
        else:
            prompt.insert(0, {"role": "system", "content": task.instruction})
    return {"prompt": prompt, "answer": answer}


def _conversation(value: Any, column: str) -> tuple[list[dict[str, str]], str]:
    """Split a list of messages into prompt and answer; in a CSV cell it is JSON."""
    shape = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise CellError(f'"{column}" is no JSON: {error}', f"write {shape}") from None
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise CellError(f'"{column}" is no list of messages', f"write {shape}")
    messages: list[dict[str, str]] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise CellError(
                f'"{column}": message {number} has no role and content', f"write {shape}"
            )
        if message["role"] not in ROLES:
            raise CellError(
                f'"{column}": message {number}: role "{message["role"]}" is unknown',
                *choices(str(message["role"]), ROLES, "roles there are"),
            )
        content = as_text(message["content"], f"{column}, message {number}")
        messages.append({"role": str(message["role"]), "content": content})
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise CellError(f'"{column}" has no message of the assistant', "its last one is the answer")
    if not any(m["role"] == "user" for m in messages[:last]):
        raise CellError(f'"{column}" has no message of the user before the answer')
    return messages[:last], messages[last]["content"]


def key(row: Row) -> str:
    """Return what makes two rows the same question: the prompt, whitespace and case aside."""
    said = [[m["role"], one_spaced(m["content"]).casefold()] for m in row["prompt"]]
    return json.dumps(said, ensure_ascii=False)


def shuffle_key(seed: int, text: str) -> bytes:
    """Return a sort key that shuffles; it depends on seed and text, never on the row's position.

    So a row that is added or taken out moves no other row to another split.
    """
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def hold_out(rows: list[Placed], share: float, seed: int) -> tuple[list[Placed], list[Placed]]:
    """Return (rows kept, rows held out), both in file order; held out: `share`, at least one.

    Rows of the same prompt stay on one side, so a little more than `share` may be held out.
    """
    groups: dict[str, list[int]] = {}
    for index, placed in enumerate(rows):
        groups.setdefault(key(placed.row), []).append(index)
    wanted = max(1, round(share * len(rows)))
    out: set[int] = set()
    for name in sorted(groups, key=lambda name: shuffle_key(seed, name)):
        if len(out) >= wanted:
            break
        out.update(groups[name])
    kept = [placed for index, placed in enumerate(rows) if index not in out]
    return kept, [rows[index] for index in sorted(out)]


def capped(rows: list[Placed], most: int | None, seed: int) -> list[Placed]:
    """Return `most` rows, the first of a seeded shuffle, in file order; None returns all."""
    if most is None or len(rows) <= most:
        return rows
    order = sorted(range(len(rows)), key=lambda i: (shuffle_key(seed, key(rows[i].row)), i))
    return [rows[i] for i in sorted(order[:most])]


def each_once(rows: Sequence[Row], most: int | None = None) -> list[Row]:
    """Rows without repeats, the first `most`: a row counted twice would look like more evidence."""
    once = {repr((row["prompt"], row["answer"])): row for row in rows}
    return list(once.values())[:most]


def row_key(row: Mapping[str, Any]) -> str:
    """A short hash of a row's content, the same in every process and on every machine."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
