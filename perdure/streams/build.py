"""Build the stream that a recipe describes; every mistake in its data is reported at once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.errors import RecipeError, task_named
from perdure.recipe.data import SPLITS
from perdure.streams.classes import Part, apart, cut, tell_untested, whole
from perdure.streams.general_text import general_text
from perdure.streams.growing import check_homes
from perdure.streams.kinds import Format, Kind, format_of, metric_mistakes, metric_of
from perdure.streams.kinds import kind as kind_of
from perdure.streams.labels import settle_labels
from perdure.streams.line_files import line_table
from perdure.streams.named.base import Source
from perdure.streams.named.demo import STREAMS
from perdure.streams.named.find import CLASS_STREAMS
from perdure.streams.repeats import warn_of_repeats, warn_of_shared, warn_of_two_classes
from perdure.streams.rows import (
    Placed,
    capped,
    columns_read,
    enough_rows,
    hold_out,
    to_rows,
)
from perdure.streams.shared_tests import with_test_of
from perdure.streams.sources import Reader, Reading
from perdure.streams.tables import Mistakes, choices
from perdure.streams.task import GeneralText, NoClass, PlacedRow, Row, Task, TaskStream

if TYPE_CHECKING:
    from perdure.recipe.data import DataConfig, StreamConfig, TaskConfig
    from perdure.recipe.general import GeneralConfig

logger = logging.getLogger("perdure")


def build_stream(
    stream: StreamConfig,
    general: GeneralConfig | None,
    folder: Path,
    seed: int,
    before: Sequence[Task] = (),
) -> TaskStream:
    """Read and check all data of a recipe, before any weight is loaded.

    Args:
        stream: a built-in stream's name, or tasks with their files or hub data sets.
        general: where general text comes from; None means a built-in stream's own, else none.
        folder: paths in the recipe are relative to it.
        seed: decides derived splits, which rows stay under a cap, and general text's two sides.
        before: tasks of the run that is extended, whose test rows a new one may share.

    Returns:
        The stream, the same for the same files and seed in any process.

    Raises:
        RecipeError: all mistakes, each a DataError with its file and line.
    """
    mistakes = Mistakes()
    reader = Reader(Path(folder), mistakes)
    text, no_class = GeneralText(), NoClass()
    tasks: Sequence[Task]
    if stream.name in STREAMS:
        built = STREAMS[stream.name][1](seed, None)
        tasks, text = built.tasks, built.general
    elif stream.name is not None:
        tasks, no_class = _named(stream.name, stream, reader, seed)
    elif stream.data is not None:
        tasks, no_class = _cut(stream.data, reader, seed)
    else:
        tasks = _listed(stream.tasks, reader, seed, before)
        if len(tasks) == len(stream.tasks):
            check_homes(tasks, mistakes)
    if general is not None:
        text = general_text(general, reader, seed)
    names = [config.name for config in stream.tasks] or [task.name for task in tasks]
    _check_order(stream, names, mistakes)
    if mistakes:
        raise RecipeError(mistakes.listed())
    if stream.order is not None:
        tasks = [tasks[names.index(name)] for name in stream.order]
    if stream.name not in STREAMS:  # whose texts are each in one task
        warn_of_shared(tasks)
    scenario = stream.scenario or kind_of(tasks[0].kind).scenarios[0]
    return TaskStream(tuple(tasks), text, scenario, stream.name or "+".join(names), no_class)


def _check_order(stream: StreamConfig, names: list[str], mistakes: Mistakes) -> None:
    """Note an order that does not name each task exactly once."""
    for name in dict.fromkeys(stream.order or ()):
        if name not in names:
            what = f'{stream.place("order")}: no task is called "{name}"'
            mistakes.add("order", what, choices(name, names, "tasks there are"))
    for name in names:
        if stream.order is not None and name not in stream.order:
            what = f'{stream.place("order")}: the task "{name}" is left out'
            mistakes.add("order", what, "name every task once, or take the task out")


def _listed(
    configs: Sequence[TaskConfig], reader: Reader, seed: int, before: Sequence[Task] = ()
) -> list[Task]:
    """The tasks that have no mistake, in their order; those that share test rows are read last."""
    found: dict[str, Task | None] = {}
    sections = {config.name: config for config in configs if config.test_of is None}
    old = {task.name: task for task in before if not task.test_of}
    for config in sorted(configs, key=lambda config: config.test_of is not None):
        name = config.test_of or ""
        if config.test_of is None:
            found[config.name] = _task(config, reader, seed)
        elif name == config.name or name not in {*sections, *old}:
            others = [one for one in (*sections, *old) if one != config.name]
            what = f'no other task with test rows of its own is called "{name}"'
            hint = choices(name, others, "there are")
            reader.mistakes.add(config.name, f"{config.place('test_of')}: {what}", hint)
        elif (owner := found.get(name) or old.get(name)) is not None:
            found[config.name] = _task(config, reader, seed, (sections.get(name), owner))
    return [task for config in configs if (task := found.get(config.name)) is not None]


def _task(
    config: TaskConfig,
    reader: Reader,
    seed: int,
    tested_as: tuple[TaskConfig | None, Task] | None = None,
) -> Task | None:
    """Read one task's splits; None if there was a mistake.

    Args: tested_as: the task whose test rows it shares, with its section; None: it is one of the
        run that is extended.
    """
    found = _read(config, reader, seed)
    if found is None:
        return None
    kind, splits, labels = found
    if tested_as is not None:
        splits = with_test_of(*tested_as, config, kind, labels, splits, reader.mistakes)
    before = len(reader.mistakes)
    key = format_of(config.format)[1].label
    if kind.classes and config.train is not None and key is not None:
        part = Part(config.name, labels, splits)
        splits = whole(part, key, config, seed, reader.mistakes)
        tell_untested([part._replace(rows=splits)], key, config)
    else:
        _derive(splits, config, seed, reader.mistakes)
        splits = _within_caps(splits, config, seed)
    if len(reader.mistakes) > before:
        return None
    return _made(config, config.name, kind, labels, splits)


def _cut(config: DataConfig, reader: Reader, seed: int) -> tuple[list[Task], NoClass]:
    """Read one source and cut it into tasks; none if there was a mistake."""
    found = _read_splits(config, reader, seed)
    return ([], NoClass()) if found is None else _cut_up(*found, config, reader.mistakes, seed)


def _named(
    name: str, stream: StreamConfig, reader: Reader, seed: int
) -> tuple[list[Task], NoClass]:
    """Read a named stream of classes; no task if there was a mistake."""
    source = Source(CLASS_STREAMS[name], stream, reader)
    found = source.found()
    if found is None:
        return [], NoClass()
    config, before = source.settings(found), len(reader.mistakes)
    rows = {split: to_rows(table, config, reader.mistakes) for split, table in found.tables.items()}
    if len(reader.mistakes) > before:
        return [], NoClass()
    return _cut_up(*format_of(config.format), rows, config, reader.mistakes, seed, found.tasks)


def _cut_up(
    kind: Kind,
    form: Format,
    splits: dict[str, list[Placed]],
    config: DataConfig,
    mistakes: Mistakes,
    seed: int,
    own: Sequence[Sequence[str]] = (),
) -> tuple[list[Task], NoClass]:
    """Tasks of one source's rows; `own` are a named stream's, each its classes."""
    before = len(mistakes)
    if config.dev_from == "test":
        splits["validation"] = list(splits["test"])
    splits, no_class = apart(splits, form.label, config, seed, mistakes)
    settle_labels(splits, form, config, mistakes)
    if len(mistakes) > before:
        return [], NoClass()
    warn_of_two_classes(config.name, splits, form.label)
    parts = cut(splits, form.label, config, seed, mistakes, own)
    made = [_made(config, part.name, kind, part.classes, part.rows) for part in parts]
    return made, no_class


def _read(
    config: TaskConfig, reader: Reader, seed: int
) -> tuple[Kind, dict[str, list[Placed]], tuple[str, ...]] | None:
    """Rows of the splits that are given, and their labels; None if there was a mistake."""
    before = len(reader.mistakes)
    if (found := _read_splits(config, reader, seed)) is None:
        return None
    kind, form, splits = found
    labels = settle_labels(splits, form, config, reader.mistakes) if form.label else ()
    return None if len(reader.mistakes) > before else (kind, splits, labels)


def _read_splits(
    config: TaskConfig, reader: Reader, seed: int
) -> tuple[Kind, Format, dict[str, list[Placed]]] | None:
    """Rows of the splits that are given; None if there was a mistake."""
    mistakes = reader.mistakes
    before = len(mistakes)
    kind, form = format_of(config.format)
    for mistake in metric_mistakes(config.metric):
        mistakes.add(config.name, f"{config.place('metric')}: {mistake.what}", mistake.remedy)
    given = {"train": config.train, "validation": config.validation, "test": config.test}
    splits: dict[str, list[Placed]] = {}
    for split, source in given.items():
        if source is None:
            continue
        if config.dataset is not None:
            assert isinstance(source, str)  # the section refuses files beside a data set
            table = reader.hub(
                config.dataset,
                config.subset,
                source,
                config.place(split),
                (*columns_read(config), *map(config.column, form.optional)),
                enough_rows(config, split),
                seed,
            )
        else:
            how = Reading(config.separator, config.encoding, columns_read(config))
            if isinstance(source, dict):
                table = line_table(reader, source, how)
            else:
                table = reader.file(source, how)
        splits[split] = (
            to_rows(table, _columns_of(source, config), mistakes, split) if table else []
        )
    for note in form.notes(config):
        logger.warning("%s: %s", task_named(config.name), note)
    if config.train_on == "all" and kind.turns is None:
        what = f"{config.place('train_on')}: all: rows of kind {kind.name} have one answer each"
        mistakes.add(config.name, what, "leave train_on out")
    return None if len(mistakes) > before else (kind, form, splits)


def _columns_of(source: str | dict[str, str], config: TaskConfig) -> TaskConfig:
    """The section without our columns' other names where files are given by our columns."""
    if isinstance(source, str):
        return config
    renamed = {ours: theirs for ours, theirs in config.columns.items() if ours not in source}
    return config.model_copy(update={"columns": renamed})


def _within_caps(
    splits: dict[str, list[Placed]], config: TaskConfig, seed: int
) -> dict[str, list[Placed]]:
    most = {
        "train": config.max_train_rows,
        "validation": config.max_validation_rows,
        "test": config.max_test_rows,
    }
    return {split: capped(rows, most[split], seed) for split, rows in splits.items()}


def _made(
    config: TaskConfig,
    name: str,
    kind: Kind,
    labels: tuple[str, ...],
    splits: dict[str, list[Placed]],
) -> Task:
    warn_of_repeats(name, splits)
    if config.train_on == "all":
        turns = kind.turns or (lambda row: [row])  # of a kind without turns it was refused
        splits["train"] = [
            placed._replace(row=row) for placed in splits["train"] for row in turns(placed.row)
        ]
    read_from = config.read_from("train") or config.read_from("test")
    rows = [[PlacedRow(placed.row, placed.place) for placed in splits[split]] for split in SPLITS]
    return Task(
        name=name,
        train=rows[0],
        validation=rows[1],
        test=rows[2],
        metric=metric_of(config),
        kind=kind.name,
        version=_version(rows),
        labels=labels,
        max_new_tokens=config.max_new_tokens,
        source=f"data set {config.dataset}" if config.dataset else read_from,
        learn=config.learn,
        until=config.until,
        answer=config.answer,
        prefill=config.prefill,
        test_of=config.test_of or "",
    )


def _derive(
    splits: dict[str, list[Placed]], config: TaskConfig, seed: int, mistakes: Mistakes
) -> None:
    """Take the splits that are not given from the training rows."""
    if config.train is None:
        splits["train"], splits["validation"] = [], splits.get("validation", [])
        return
    # Test first, so that it stays the same whether or not a validation file is given.
    given = splits["train"]
    total = len(given)
    if "test" not in splits:
        splits["train"], splits["test"] = hold_out(splits["train"], config.test_share, seed)
    if "validation" not in splits:
        splits["validation"] = []
        if config.validation_share > 0 and splits["train"]:
            share = config.validation_share * total / len(splits["train"])
            splits["train"], splits["validation"] = hold_out(splits["train"], share, seed)
    if not splits["train"]:
        what, more = _too_few(given)
        what = f"{config.place('train')}: {what}"
        mistakes.add(config.name, what, f"give `test` and `validation`, or {more}")


def _too_few(rows: Sequence[Placed]) -> tuple[str, str]:
    """Why none of these rows can be set aside, and what rows it takes."""
    total = len(rows)
    several = len({placed.group or placed.question for placed in rows})
    aside = "to set some aside for testing"
    if several == total:
        return f"{total} rows are too few {aside}", "more training rows"
    grouped = any(placed.group for placed in rows)
    more = "rows of more groups" if grouped else "more rows that differ"
    if several > 1:
        kinds = "groups" if grouped else "different rows"
        return f"{total} rows are {several} {kinds}, too few {aside}", more
    same = "are the same" if all(placed.row == rows[0].row for placed in rows) else "ask the same"
    same = "are of one group" if grouped else same
    return f"all {total} rows {same}: none can be set aside for testing", more


def _version(splits: Sequence[Sequence[Row]]) -> str:
    """Return a short hash of the rows, so that a run notices that its data was changed."""
    text = json.dumps(splits, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
