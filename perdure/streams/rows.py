"""Turn records of any source into rows by their kind's format, and deal rows to splits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.errors import brief, task_named
from perdure.recipe.columns import columns_in
from perdure.recipe.data import DataConfig
from perdure.recipe.yaml import ON_COMMAND_LINE
from perdure.streams.cells import CellError, EmptyCell, EmptySystem, cell_text, is_empty
from perdure.streams.kinds import Kind, Row, format_of
from perdure.streams.tables import Mistakes, Record, Table, choices, listed

if TYPE_CHECKING:
    from perdure.recipe.data import TaskConfig

logger = logging.getLogger("perdure")
LOOKED_AT = 20
"""Rows of a hub data set that are read for each that its caps keep."""


class Placed(NamedTuple):
    """A row, where it stood ("file:line" of `source`, a table's name), and what question it is."""

    row: Row
    place: str
    source: str
    question: str
    group: str = ""
    """What its task's `group` says; rows of a group stay in one split, as those of a question."""
    part: str = ""
    """The task that the source's column `by` names."""


def columns_read(task: TaskConfig) -> tuple[str, ...]:
    """Return the data's columns that a task's rows are made of."""
    columns = format_of(task.format)[1].columns
    sources = [task.column(ours) for ours in columns] + [name for _, name in _marks(task)]
    return tuple(name for source in sources for name in columns_in(source))


def enough_rows(task: TaskConfig, split: str) -> int | None:
    """Return how many rows of a split are enough to choose the kept ones from; None: all.

    One source that is cut by its classes is read whole: its caps go by class.
    """
    if isinstance(task, DataConfig):
        return None
    caps = {
        "train": task.max_train_rows,
        "validation": task.max_validation_rows,
        "test": task.max_test_rows,
    }
    needed = {split}
    if split == "train":  # splits that are not given come from it
        needed |= {"test"} if task.test is None and task.test_of is None else set()
        needed |= {"validation"} if task.validation is None and task.validation_share else set()
    kept = [caps[name] for name in needed]
    return None if None in kept else LOOKED_AT * sum(filter(None, kept))


def to_rows(
    table: Table, task: TaskConfig, mistakes: Mistakes, split: str = "train"
) -> list[Placed]:
    """Return a row for each record that has no mistake; mistakes are noted with their place.

    A row with nothing in a cell that is needed is left out, whatever the source, and how many are
    is told; it is a mistake if all of them are.
    """
    kind, form = format_of(task.format)
    by: str | None = getattr(task, "by", None)
    asked = [c for c in form.optional if split == "train" or c not in form.trained]
    named = [ours for ours in asked if ours in task.columns]
    columns = {ours: task.column(ours) for ours in (*form.columns, *named)}
    missing = [
        (ours, theirs)
        for ours, source in columns.items()
        for theirs in columns_in(source)
        if theirs not in table.columns
    ]
    for ours, theirs in missing:
        remedy = choices(theirs, table.columns, "columns there are")
        if len(table.columns) == 1 and task.dataset is None:
            remedy.append("the header is one cell: name what separates the cells, `delimiter`")
        where = task.place(f"columns.{ours}")
        line, _, key = where.rpartition(": ")
        if line == ON_COMMAND_LINE:
            remedy.append(f"give the column's name behind it: {key}=YOUR-COLUMN")
        elif ours not in task.columns:
            remedy.append(f"name it in the recipe: columns: {{{ours}: your-column}}")
        mistakes.add(table.name, f'{where}: {table.name} has no column "{theirs}"', remedy)
    for key, source in _marks(task):
        for theirs in columns_in(source):
            if theirs not in table.columns:
                missing.append((key, theirs))
                what = f'{task.place(key)}: {table.name} has no column "{theirs}"'
                mistakes.add(table.name, what, choices(theirs, table.columns, "columns there are"))
    if missing:
        return []
    rows: list[Placed] = []
    empty: list[tuple[str, EmptyCell]] = []
    full = [source for ours, source in columns.items() if ours not in form.sparse]
    needed = [name for source in full for name in columns_in(source)]
    for record in table.records:
        try:
            _check_values(record, needed)
            row = form.row(record.values, task)
            if split == "train" and (nothing := form.lacks(row, task)):
                raise EmptyCell(nothing)
            if group := _mark(record, task.group):
                row["group"] = group
            part = _mark(record, by)
            if by is not None and not part:
                raise EmptyCell(f'"{by}" is empty', "write which task the row belongs to")
            rows.append(Placed(row, record.place, table.name, kind.question(row), group, part))
        except EmptyCell as none:
            empty.append((f"{record.place}: {none.what}", none))
        except CellError as wrong:
            mistakes.add(table.name, f"{record.place}: {wrong.what}", wrong.remedy)
    if empty:
        first, why = empty[0]
        own = why.remedy if isinstance(why, EmptySystem) else ()
        if len(empty) == len(table.records):
            instead = "; ".join(own) or "name another column, or split"
            mistakes.add(table.name, first, f"so it is in each row: {instead}")
        else:
            told = "%s: %d of %d rows are left out, as there is nothing in them (the first: %s)"
            said = ": ".join((first, *own))
            logger.warning(told, task_named(task.name), len(empty), len(table.records), said)
    return rows


def _marks(task: TaskConfig) -> list[tuple[str, str]]:
    """Keys of a task that name columns of the data beside those of its rows."""
    keys = [(key, getattr(task, key, None)) for key in ("group", "by")]
    return [(key, source) for key, source in keys if source is not None]


def _mark(record: Record, source: str | None) -> str:
    """What a key such as `group` makes of a record; an empty cell belongs to no other row."""
    if source is None:
        return ""
    values = {name: record.values.get(name) for name in columns_in(source)}
    try:
        return cell_text(values, source).strip()
    except EmptyCell:
        return ""


def _check_values(record: Record, needed: Sequence[str]) -> None:
    for theirs in needed:
        if theirs not in record.values:
            if all(map(is_empty, record.values.values())):
                raise EmptyCell("the row is empty")
            raise CellError(
                f'no "{brief(theirs)}", which other rows have',
                f"has: {listed(record.values)}",
            )


def shuffle_key(seed: int, text: str) -> bytes:
    """Return a sort key that shuffles; it depends on seed and text, never on the row's position.

    So a row that is added or taken out moves no other row to another split.
    """
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def hold_out(rows: list[Placed], share: float, seed: int) -> tuple[list[Placed], list[Placed]]:
    """Return (rows kept, rows held out), both in file order; held out: `share`, at least one.

    Rows of the same question, or of one declared group, stay on one side, so a little more than
    `share` may be held out.
    """
    groups: dict[str, list[int]] = {}
    for index, placed in enumerate(rows):
        groups.setdefault(placed.group or placed.question, []).append(index)
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
    order = sorted(range(len(rows)), key=lambda i: (shuffle_key(seed, rows[i].question), i))
    return [rows[i] for i in sorted(order[:most])]


def each_once(kind: Kind, rows: Sequence[Row], most: int | None = None) -> list[Row]:
    """Rows without repeats, the first `most`: a row counted twice would look like more evidence.

    Args: kind: says what of a row decides which one it is.
    """
    once = {repr(kind.item(row)): row for row in rows}
    return list(once.values())[:most]


def row_key(row: Mapping[str, Any]) -> str:
    """A short hash of a row's content, the same in every process and on every machine."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
