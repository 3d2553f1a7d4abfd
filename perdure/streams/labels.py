"""One label for all its written forms: which labels a task has, and which one a row bears."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perdure.errors import DataError, brief, task_named
from perdure.streams.cells import folded
from perdure.streams.kinds import Format
from perdure.streams.tables import Mistakes, choices

if TYPE_CHECKING:
    from perdure.recipe.data import TaskConfig
    from perdure.streams.rows import Placed

logger = logging.getLogger("perdure")


def settle_labels(
    splits: Mapping[str, list[Placed]], form: Format, config: TaskConfig, mistakes: Mistakes
) -> tuple[str, ...]:
    """Return a task's labels, and give each row the form of its label that is among them.

    Forms of a label are equal as `folded` writes them. The declared one counts; where labels are
    not declared, the one that most training rows have (test rows, of a task that is only scored).
    A label that is not among them, or no other
    label beside it, is noted as a mistake.
    """
    declared = tuple(config.labels or dict.fromkeys((config.label_names or {}).values()))
    split = "train" if "train" in splits else "test"
    whose = "declared labels" if declared else f"labels of the {_CALLED[split]} split"
    labels = declared or _found(splits[split], form, config.name)
    if not labels:
        return ()
    # A table that is one task among others may have one class.
    if len(labels) == 1 and not declared and getattr(config, "task", None) is None:
        what = f'{config.place(split)}: "{brief(labels[0])}" is the only label'
        mistakes.add(config.name, what, "there is nothing to tell apart")
    known, forms = set(labels), {_form(label): label for label in labels}
    lower = {_form(label, True): label for label in labels}
    for rows in splits.values():
        for number, placed in enumerate(rows):
            if (label := placed.row[form.label]) in known:
                continue
            if (meant := forms.get(_form(label))) is not None:
                rows[number] = placed._replace(row={**placed.row, form.label: meant})
                continue
            what = f'{placed.place}: label "{brief(label)}" is not one of the {whose}'
            remedy = choices(label, labels, whose)
            if (other := lower.get(_form(label, True))) is not None:
                what = f'{what}: it differs only in case from "{brief(other)}"'
                mapped = f", or map it: label_names: {{{brief(label)}: {brief(other)}}}"
                remedy = [f"write both alike{mapped if form.renames else ''}"]
            mistakes.add(placed.source, what, remedy)
    return labels


_CALLED = {"train": "training", "test": "test"}


def same_tokens(
    task: str, labels: Iterable[str], tokens: Callable[[str], Sequence[int]]
) -> list[DataError]:
    """Labels that a tokenizer writes with the same tokens: no model can choose between them.

    Args: tokens: gives the token ids of a label.
    """
    first: dict[tuple[int, ...], str] = {}
    found: list[DataError] = []
    for label in labels:
        ids = tuple(tokens(label))
        if (other := first.setdefault(ids, label)) != label:
            what = (
                f'{task_named(task)}: labels "{brief(other)}" and "{brief(label)}" are the same '
                f"tokens in the model's tokenizer: {brief(list(ids))}"
            )
            remedy = "give them other names by label_names, or take another model"
            found.append(DataError(what, remedy, task_named(task)))
    return found


def _found(train: list[Placed], form: Format, task: str) -> tuple[str, ...]:
    """The labels of the training rows, each in its most frequent form, sorted."""
    counts = Counter(placed.row[form.label] for placed in train)
    forms: dict[Hashable, list[Any]] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], len(label), label)):
        forms.setdefault(_form(label), []).append(label)
    several = [f'"{same[0]}" ({len(same)})' for same in forms.values() if len(same) > 1]
    if several:
        logger.warning(
            "%s: labels that are written in several ways, which look alike, are read as one: %s",
            task_named(task),
            ", ".join(map(brief, several[:5])),
        )
    labels = sorted(same[0] for same in forms.values())
    for pair in _alike_but_for_case(labels):
        logger.warning(
            '%s: the labels "%s" and "%s" differ only in case and count as two; if they are '
            "one, %s",
            task_named(task),
            *map(brief, pair),
            "map one to the other in label_names" if form.renames else "write both alike",
        )
    return tuple(labels)


def _alike_but_for_case(labels: Iterable[str]) -> list[tuple[str, str]]:
    first: dict[Hashable, str] = {}
    pairs = []
    for label in labels:
        other = first.setdefault(_form(label, True), label)
        if other is not label:
            pairs.append((other, label))
    return pairs


def _form(label: Any, any_case: bool = False) -> Hashable:
    """What equal labels have in common; labels of other packages' kinds may be no text."""
    if not isinstance(label, str):
        return label
    return folded(label).casefold() if any_case else folded(label)
