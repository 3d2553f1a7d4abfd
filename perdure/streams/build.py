"""Build the stream that a recipe describes; every mistake in its data is reported at once."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.errors import RecipeError
from perdure.streams.builtin import STREAMS, pydoc_texts
from perdure.streams.rows import COLUMNS, Placed, capped, hold_out, key, rank, to_rows
from perdure.streams.sources import Mistakes, Reader, Table, near, shown
from perdure.streams.task import GeneralText, Task, TaskStream

if TYPE_CHECKING:
    from perdure.config import GeneralConfig, StreamConfig, TaskConfig

logger = logging.getLogger("perdure")


def build_stream(
    stream: StreamConfig, general: GeneralConfig | None, folder: Path, seed: int
) -> TaskStream:
    """Read and check all data of a recipe, before any weight is loaded.

    Args:
        stream: a built-in stream's name, or tasks with their files or hub data sets.
        general: where general text comes from; None means a built-in stream's own, else none.
        folder: paths in the recipe are relative to it.
        seed: decides derived splits, which rows stay under a cap, and general text's two sides.

    Returns:
        The stream, the same for the same files and seed in any process.

    Raises:
        RecipeError: all mistakes, each a DataError with its file and line.
    """
    mistakes = Mistakes()
    reader = Reader(Path(folder), mistakes)
    if stream.name is not None:
        built = _builtin(stream, seed, mistakes)
        tasks, text = (built.tasks, built.general) if built else ((), GeneralText())
    else:
        if not stream.tasks:
            what = "stream: neither `name` nor `tasks` is given"
            mistakes.add("stream", what, near("", STREAMS, "built-in streams there are"))
        found = [_task(config, reader, seed) for config in stream.tasks]
        tasks, text = tuple(task for task in found if task), GeneralText()
        names = [config.name for config in stream.tasks]
        for name in sorted({name for name in names if names.count(name) > 1}):
            mistakes.add("stream", f'stream.tasks: the name "{name}" is used twice')
    if general is not None:
        text = _general(general, reader, seed)
    tasks = _ordered(stream, tasks, mistakes)
    if mistakes:
        raise RecipeError(mistakes.listed())
    name = stream.name or "+".join(task.name for task in tasks)
    return TaskStream(tasks, text, stream.scenario, name)


def _builtin(stream: StreamConfig, seed: int, mistakes: Mistakes) -> TaskStream | None:
    assert stream.name is not None
    if stream.tasks:
        what = "stream: both `name` and `tasks` are given"
        mistakes.add("stream", what, "a built-in stream has its own tasks: take one of them out")
    elif stream.name not in STREAMS:
        what = f'stream.name: no built-in stream is called "{stream.name}"'
        mistakes.add("stream", what, [*near(stream.name, STREAMS, "all of them")])
    else:
        return STREAMS[stream.name][1](seed, None)
    return None


def _ordered(stream: StreamConfig, tasks: tuple[Task, ...], mistakes: Mistakes) -> tuple[Task, ...]:
    """Return the tasks as `order` wants them; it must name each exactly once."""
    if stream.order is None:
        return tasks
    # A task whose data is broken is missing from `tasks`, but not from the recipe.
    names = [t.name for t in stream.tasks] or [t.name for t in tasks]
    wrong = len(mistakes)
    for name in dict.fromkeys(stream.order):
        if name not in names:
            what = f'stream.order: no task is called "{name}"'
            mistakes.add("order", what, near(name, names, "tasks there are"))
        elif stream.order.count(name) > 1:
            mistakes.add("order", f'stream.order: "{name}" is there twice')
    for name in names:
        if name not in stream.order:
            what = f'stream.order: the task "{name}" is left out'
            mistakes.add("order", what, "name every task once, or take the task out")
    if len(mistakes) > wrong:
        return tasks
    place = {name: index for index, name in enumerate(stream.order)}
    return tuple(sorted(tasks, key=lambda task: place[task.name]))


def _task(config: TaskConfig, reader: Reader, seed: int) -> Task | None:
    """Read one task's splits; None if there was a mistake."""
    mistakes = reader.mistakes
    where = f'task "{config.name}"'
    before = len(mistakes)
    for ours in config.columns:
        if ours not in COLUMNS[config.format]:
            what = f'{where}: columns: format {config.format} has no column "{ours}"'
            mistakes.add(where, what, near(ours, COLUMNS[config.format], "columns it has"))
    labels = _declared(config, mistakes)
    given = {"train": config.train, "validation": config.validation, "test": config.test}
    splits: dict[str, list[Placed]] = {}
    for split, source in given.items():
        if source is None:
            continue
        table: Table | None
        if config.dataset is not None:
            table = reader.hub(config.dataset, config.subset, source)
        else:
            table = reader.file(source)
        splits[split] = to_rows(table, config, mistakes) if table else []
    if labels is None and config.format == "labels":
        labels = tuple(sorted({placed.row["answer"] for placed in splits["train"]}))
    if len(mistakes) > before:
        return None
    labels = labels or ()
    if config.format == "labels" and len(labels) == 1:
        what = f'{where}: "{labels[0]}" is the only label'
        mistakes.add(where, what, "there is nothing to tell apart")
    if labels:
        _check_labels(splits, labels, config, mistakes)
    metric = config.metric or ("label_likelihood" if config.format == "labels" else "exact_match")
    if metric == "label_likelihood" and not labels:
        what = f"{where}: metric label_likelihood needs a set of labels"
        mistakes.add(where, what, "give `labels`, or use format: labels")
    _derive(splits, config, seed, mistakes)
    if len(mistakes) > before:
        return None
    most = (config.max_train_rows, config.max_validation_rows, config.max_test_rows)
    train, validation, test = (
        capped(splits[split], count, seed)
        for split, count in zip(("train", "validation", "test"), most, strict=True)
    )
    _warn_of_overlap(where, train, test)
    kept = [[placed.row for placed in rows] for rows in (train, validation, test)]
    return Task(
        name=config.name,
        train=kept[0],
        validation=kept[1],
        test=kept[2],
        metric=metric,
        version=_version(kept),
        labels=labels,
        max_new_tokens=config.max_new_tokens,
        source=f"hub: {config.dataset}" if config.dataset else config.train,
    )


def _declared(config: TaskConfig, mistakes: Mistakes) -> tuple[str, ...] | None:
    """Return the labels that the recipe declares, None if it declares none."""
    named = config.label_names
    labels = config.labels
    if labels is not None and named is not None:
        for value, label in named.items():
            if label not in labels:
                what = f'task "{config.name}": label_names: {value}: "{label}" is not in `labels`'
                mistakes.add(config.name, what, near(label, labels, "labels"))
    if labels is None and named is not None:
        labels = list(named.values())
    return None if labels is None else tuple(dict.fromkeys(labels))


def _check_labels(
    splits: dict[str, list[Placed]],
    labels: tuple[str, ...],
    config: TaskConfig,
    mistakes: Mistakes,
) -> None:
    declared = config.labels is not None or config.label_names is not None
    whose = "declared labels" if declared else "labels of the training split"
    known = set(labels)
    for rows in splits.values():
        for placed in rows:
            if (label := placed.row["answer"]) not in known:
                what = f'{placed.place}: label "{label}" is not one of the {whose}'
                remedy = near(label, labels, whose)
                mistakes.add(placed.source, what, remedy)


def _derive(
    splits: dict[str, list[Placed]], config: TaskConfig, seed: int, mistakes: Mistakes
) -> None:
    """Take the splits that are not given from the training rows."""
    where = f'task "{config.name}"'
    # Test first, so that it stays the same whether or not a validation file is given.
    total = len(splits["train"])
    if "test" not in splits:
        if config.test_share <= 0:
            what = f"{where}: no test rows: `test` is not given and test_share is 0"
            mistakes.add(where, what, "give a file, or a share of the training rows")
            return
        splits["train"], splits["test"] = hold_out(splits["train"], config.test_share, seed)
    if "validation" not in splits:
        splits["validation"] = []
        if config.validation_share > 0 and splits["train"]:
            share = config.validation_share * total / len(splits["train"])
            splits["train"], splits["validation"] = hold_out(splits["train"], share, seed)
    if not splits["train"]:
        what = f"{where}: {total} rows are too few to take test and validation rows from"
        mistakes.add(where, what, "give `test` and `validation`, or more training rows")


def _warn_of_overlap(where: str, train: list[Placed], test: list[Placed]) -> None:
    seen = {key(placed.row): placed.place for placed in reversed(train)}
    both = [placed for placed in test if key(placed.row) in seen]
    if both:
        logger.warning(
            "%s: %d of %d test rows have a prompt that is trained on (the first: %s, as %s); "
            "the score of these rows shows memory, not skill",
            where,
            len(both),
            len(test),
            both[0].place,
            seen[key(both[0].row)],
        )


def _version(splits: list[list[dict[str, object]]]) -> str:
    """Return a short hash of the rows, so that a run notices that its data was changed."""
    text = json.dumps(splits, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _general(config: GeneralConfig, reader: Reader, seed: int) -> GeneralText:
    """Read general text and split it into a part to replay and a part to measure on."""
    mistakes = reader.mistakes
    if config.source == "pydoc":
        text = pydoc_texts(seed)
        replay, held_out, name = list(text.replay), list(text.held_out), text.source
    else:
        name = shown(reader.folder / config.source)
        texts = _texts(config, reader)
        if texts is None:
            return GeneralText()
        # The same texts are held out, however many are replayed.
        order = sorted(dict.fromkeys(texts), key=lambda text: rank(seed, text))
        held_out, replay = order[: config.held_out_rows], order[config.held_out_rows :]
    for side, there, wanted in (
        ("held_out_rows", len(held_out), config.held_out_rows),
        ("replay_rows", len(replay), config.replay_rows),
    ):
        if there < wanted:
            what = f"general.{side}: {wanted} texts wanted, but {name} has {there} for it"
            mistakes.add("general", what, "ask for fewer, or give more text")
    return GeneralText(
        tuple(replay[: config.replay_rows]), tuple(held_out[: config.held_out_rows]), name
    )


def _texts(config: GeneralConfig, reader: Reader) -> list[str] | None:
    """Return the texts of a file: paragraphs of .txt, else cells of one column."""
    name = shown(reader.folder / config.source)
    if config.source.lower().endswith(".txt"):
        content = reader.text(config.source)
        if content is None:
            return None
        texts = [block.strip() for block in re.split(r"\n\s*\n", content)]
    else:
        table = reader.file(config.source)
        if table is None:
            return None
        if config.column not in table.columns:
            what = f'{name}: no column "{config.column}" (general.column)'
            reader.mistakes.add(name, what, near(config.column, table.columns, "columns there are"))
            return None
        texts = [str(r.values.get(config.column) or "").strip() for r in table.records]
    if not any(texts):
        reader.mistakes.add(name, f"{name}: empty: no text")
        return None
    return [text for text in texts if text]
